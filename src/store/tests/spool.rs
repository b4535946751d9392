//! Uploads: content whose digest is known when it ends.

use super::*;
use crate::oci::Hasher;

async fn spool(store: &Store, content: &[u8], length: Option<u64>) -> Spool {
    let mut spool = store.spool(length).await.unwrap();
    for chunk in content.chunks(70_000) {
        spool.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    spool
}

#[tokio::test]
async fn what_is_spooled_becomes_a_blob_under_either_algorithm() {
    let fixture = fixture(1 << 30);
    for content in [&b""[..], b"x", &vec![7; 3_000_000]] {
        for algorithm in Algorithm::ALL {
            for length in [None, Some(content.len() as u64)] {
                let digest = Digest::of(algorithm, content);
                let spool = spool(&fixture.store, content, length).await;
                let blob = spool.finish(&digest).await.unwrap();
                assert_eq!((blob.len, blob.trust), (content.len() as u64, Trust::Verified));
                assert_eq!(read(&fixture.store, &digest).await, Some((content.to_vec(), Trust::Verified)));
            }
        }
    }
    assert_eq!(fixture.strays().await, 0);
    assert_eq!((fixture.metrics.store_bytes.get(), fixture.metrics.store_blobs.get()), (2 * 3_000_001, 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_digest_so_far_is_of_all_that_was_accepted_and_nothing_else() {
    let fixture = fixture(1 << 30);
    let mut upload = fixture.store.spool(None).await.unwrap();
    let (mut all, mut progress) = (Vec::new(), upload.progress());
    for n in 0..20_u8 {
        let chunk = vec![n; 1_000 + usize::from(n) * 37_000];
        all.extend_from_slice(&chunk);
        upload.write(chunk.into()).await.unwrap();
        if n % 3 == 0 {
            for algorithm in Algorithm::ALL {
                assert_eq!(upload.digest_so_far(algorithm).await.unwrap(), Digest::of(algorithm, &all));
            }
            assert_eq!(upload.written(), all.len() as u64);
        }
    }
    assert_eq!(upload.flush().await.unwrap(), all.len() as u64);
    assert_eq!(*progress.borrow_and_update(), all.len() as u64);
    let mut there = vec![0; all.len()];
    upload.reader().read(|file| file.read_exact_at(&mut there, 0)).unwrap();
    assert!(there == all, "a replay reads what was sent");
    upload.finish(&sha256(&all)).await.unwrap();
    assert!(progress.changed().await.is_err(), "closed");
}

#[tokio::test]
async fn another_digest_or_length_leaves_nothing() {
    let fixture = fixture(1 << 30);
    for algorithm in Algorithm::ALL {
        let (asked, is) = (Digest::of(algorithm, b"right"), Digest::of(algorithm, b"wrong"));
        match spool(&fixture.store, b"wrong", None).await.finish(&asked).await.unwrap_err() {
            StoreError::DigestMismatch { expected, actual } => assert_eq!((*expected, *actual), (asked, is)),
            other => panic!("{other}"),
        }
        assert!(fixture.store.blob(&asked).await.unwrap().is_none());
        assert!(fixture.store.blob(&is).await.unwrap().is_none());
    }
    let short = spool(&fixture.store, b"righ", Some(5)).await;
    let error = short.finish(&sha256(b"righ")).await.unwrap_err();
    assert!(matches!(error, StoreError::LengthMismatch { expected: 5, actual: 4 }), "{error}");
    let mut long = spool(&fixture.store, b"righ", Some(5)).await;
    let error = long.write(Bytes::from_static(b"t!")).await.unwrap_err();
    assert!(matches!(error, StoreError::LengthMismatch { expected: 5, actual: 6 }), "{error}");
    drop(long);
    assert_eq!(fixture.strays().await, 0);
    assert_eq!(fixture.metrics.store_bytes.get(), 0, "nothing stays promised");
}

#[tokio::test]
async fn an_announced_length_evicts_nothing_and_what_comes_does() {
    let fixture = fixture(100_000);
    let older = put(&fixture.store, &vec![5; 50_000]).await;
    let error = fixture.store.spool(Some(100_001)).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { length: 100_001, capacity: 100_000 }), "{error}");
    let mut upload = fixture.store.spool(Some(90_000)).await.unwrap();
    assert!(fixture.path(&older).exists(), "a length is only a word");
    let content = vec![6; 90_000];
    upload.write(content.clone().into()).await.unwrap();
    upload.finish(&sha256(&content)).await.unwrap();
    assert!(!fixture.path(&older).exists());
    assert_eq!(fixture.metrics.store_bytes.get(), 90_000);
}

#[tokio::test]
async fn no_space_is_said_and_given_back() {
    let fixture = fixture(100_000);
    let mut upload = spool(&fixture.store, &vec![1; 60_000], None).await;
    upload.flush().await.unwrap();
    assert!(fixture.metrics.store_bytes.get() >= 60_000, "it counts while it is there");
    upload.write(vec![2; 60_000].into()).await.unwrap();
    let error = upload.flush().await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace) && error.is_full(), "{error}");
    let error = upload.write(Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace), "it is said again: {error}");
    drop(upload);
    assert_eq!(fixture.strays().await, 0);
    assert_eq!(fixture.metrics.store_bytes.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_hashed_all_the_same() {
    for step in [1_000, 50_000, 300_000] {
        let fixture = fixture(1_000_000);
        let mut upload = Box::new(fixture.store.spool(None).await.unwrap());
        let (mut all, mut n) = (Vec::new(), 0_u8);
        loop {
            let chunk = vec![n; step];
            if upload.write(chunk.clone().into()).await.is_err() {
                break;
            }
            // In the file, in the queue, or on the way: it was accepted.
            all.extend_from_slice(&chunk);
            n = n.wrapping_add(1);
        }
        assert!(all.len() as u64 >= 1_000_000 - step as u64);
        let hashers = upload.into_hashers().await;
        let digests: Vec<_> = hashers.into_iter().map(Hasher::finish).collect();
        for algorithm in Algorithm::ALL {
            assert!(digests.contains(&Digest::of(algorithm, &all)), "{algorithm:?} in steps of {step}");
        }
        assert_eq!(fixture.strays().await, 0);
        assert_eq!(fixture.metrics.store_bytes.get(), 0, "its room is given back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_goes_back_to_what_counts() {
    let content = vec![7; 800_000];
    for algorithm in Algorithm::ALL {
        for (again, lengths) in [(100_000, &[600_000][..]), (300_000, &[700_000, 600_000]), (0, &[600_000, 600_000])] {
            let fixture = fixture(1_000_000);
            let mut upload = spool(&fixture.store, &content, None).await;
            let before = upload.reader();
            for length in lengths {
                upload.rewind(*length).await.unwrap();
                assert_eq!((upload.written(), upload.flush().await.unwrap()), (*length, *length));
            }
            let kept = content.get(..600_000).unwrap();
            assert_eq!(upload.digest_so_far(algorithm).await.unwrap(), Digest::of(algorithm, kept));
            assert!(before.read(|_| Ok(())).is_err(), "what it reads may not be what was there");
            let all = [kept, &vec![9; again]].concat();
            let mut there = vec![0; all.len()];
            upload.write(vec![9; again].into()).await.unwrap();
            upload.flush().await.unwrap();
            upload.reader().read(|file| file.read_exact_at(&mut there, 0)).unwrap();
            assert!(there == all);
            let digest = Digest::of(algorithm, &all);
            upload.finish(&digest).await.unwrap();
            assert_eq!(read(&fixture.store, &digest).await, Some((all.clone(), Trust::Verified)));
            assert_eq!(std::fs::metadata(fixture.path(&digest)).unwrap().len(), all.len() as u64, "nothing behind it");
            assert_eq!(fixture.metrics.store_bytes.get(), i64::try_from(all.len()).unwrap());
            assert_eq!(fixture.strays().await, 0);
        }
    }
}

#[tokio::test]
async fn going_back_may_be_given_up_and_tried_again() {
    let fixture = fixture(1 << 30);
    let mut upload = spool(&fixture.store, &vec![7; 3_000_000], None).await;
    let reader = upload.reader();
    for _ in 0..3 {
        assert!(futures_util::poll!(Box::pin(upload.rewind(1_000_000))).is_pending());
    }
    assert!(reader.read(|_| Ok(())).is_ok(), "nothing has changed");
    assert_eq!(upload.flush().await.unwrap(), 3_000_000);
    upload.rewind(1_000_000).await.unwrap();
    upload.finish(&sha256(&vec![7; 1_000_000])).await.unwrap();
}

#[tokio::test]
async fn a_crash_in_mid_upload_leaves_no_file() {
    let fixture = fixture(1 << 30);
    let mut upload = spool(&fixture.store, b"half", None).await;
    upload.flush().await.unwrap();
    let fills = fixture.root.path().join("fills");
    let names: Vec<_> = std::fs::read_dir(&fills).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 1);
    drop(upload);
    fixture.strays().await;
    // As kill -9 would leave it.
    std::fs::write(fills.join(&names[0]), "half").unwrap();
    let fixture = fixture.restart(false, false).await;
    assert_eq!(fixture.strays().await, 0);
    assert_eq!(fixture.metrics.store_bytes.get(), 0);
}

#[tokio::test]
async fn a_closed_store_takes_no_upload() {
    let fixture = fixture(1 << 30);
    let upload = spool(&fixture.store, b"x", None).await;
    fixture.store.close().await;
    assert!(matches!(fixture.store.spool(None).await, Err(StoreError::Stopped)));
    assert!(matches!(upload.finish(&sha256(b"x")).await, Err(StoreError::Stopped)));
    assert!(!fixture.path(&sha256(b"x")).exists());
}
