//! Keys under `private/`.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_key_is_made_once_and_nobody_else_reads_it() {
    let fixture = fixture(1 << 30);
    let key = fixture.store.private_key("token").unwrap();
    let other = fixture.store.private_key("upload").unwrap();
    assert!(key != other && key != [0; 32]);
    assert_eq!(fixture.store.private_key("token").unwrap(), key);
    let path = fixture.root.path().join("private/token");
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::set_permissions(path.parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let crashed = fixture.crashed(InMemory).await;
    assert_eq!(crashed.store.private_key("token").unwrap(), key, "it survives");
    let path = crashed.root.path().join("private/token");
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600), "and is closed again");
    assert_eq!(crashed.strays().await, 0);
}

#[tokio::test]
async fn a_damaged_key_is_replaced() {
    let fixture = fixture(1 << 30);
    let mut key = fixture.store.private_key("token").unwrap();
    let path = fixture.root.path().join("private/token");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() - 9] ^= 1;
    for damaged in [Vec::new(), whole[..40].to_vec(), flipped, vec![b' '; 9000]] {
        std::fs::write(&path, damaged).unwrap();
        let next = fixture.store.private_key("token").unwrap();
        assert_ne!(next, key);
        assert_eq!(fixture.store.private_key("token").unwrap(), next);
        assert_eq!(mode(&path), 0o600);
        key = next;
    }
}

#[tokio::test]
async fn a_key_is_no_path_and_no_link() {
    let fixture = fixture(1 << 30);
    for name in ["", "..", "../lock", "a/b", "Token"] {
        assert!(fixture.store.private_key(name).is_err(), "{name:?}");
    }
    let private = fixture.root.path().join("private");
    std::fs::write(fixture.root.path().join("planted"), "").unwrap();
    std::os::unix::fs::symlink("../planted", private.join("token")).unwrap();
    let error = fixture.store.private_key("token").unwrap_err().to_string();
    assert!(error.contains("private/token"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_who_ask_get_the_same_key() {
    let fixture = fixture(1 << 30);
    let asked = (0..16).map(|_| {
        let store = fixture.store.clone();
        tokio::task::spawn_blocking(move || store.private_key("token").unwrap())
    });
    let keys = futures_util::future::join_all(asked).await;
    let first = *keys[0].as_ref().unwrap();
    assert!(keys.into_iter().all(|key| key.unwrap() == first));
}
