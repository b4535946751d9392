//! When the files are looked at, under a clock of the tests' own.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use super::*;
use crate::config::CertificateFiles;

fn write(directory: &Path) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    for (name, text) in [("pem", certificate.pem()), ("key", key.serialize_pem())] {
        // As another file, so that the clock of the file system does not matter.
        std::fs::write(directory.join("new"), text).unwrap();
        std::fs::rename(directory.join("new"), directory.join(name)).unwrap();
    }
}

fn open() -> (Arc<Tls>, TaskTracker, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path());
    let files = CertificateFiles { certificate: directory.path().join("pem"), key: directory.path().join("key") };
    let tls = Tls::open("a listener".to_owned(), ListenerTls { certificates: vec![files], client_ca: None }).unwrap();
    (Arc::new(tls), TaskTracker::new(), directory)
}

/// Whether the next connection has another configuration than the last.
async fn is_renewed(tls: &Arc<Tls>, tasks: &TaskTracker) -> bool {
    let before = Arc::clone(&tls.current.lock().config);
    tls.acceptor(tasks).await;
    !Arc::ptr_eq(&before, &tls.current.lock().config)
}

#[tokio::test(start_paused = true)]
async fn files_are_looked_at_now_and_then() {
    let (tls, tasks, directory) = open();
    assert!(!is_renewed(&tls, &tasks).await);
    write(directory.path());
    assert!(!is_renewed(&tls, &tasks).await, "they were read a moment ago");
    tokio::time::advance(LOOK_EVERY).await;
    assert!(is_renewed(&tls, &tasks).await);
    write(directory.path());
    assert!(!is_renewed(&tls, &tasks).await, "and looked at a moment ago");
    tokio::time::advance(LOOK_EVERY).await;
    assert!(is_renewed(&tls, &tasks).await);
    tokio::time::advance(LOOK_EVERY).await;
    assert!(!is_renewed(&tls, &tasks).await, "sessions go on where nothing has changed");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_keeps_nobody_out() {
    let (tls, tasks, directory) = open();
    let pipe = directory.path().join("pem");
    std::fs::remove_file(&pipe).unwrap();
    // Who opens it waits for a writer.
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    tokio::time::advance(LOOK_EVERY).await;
    // It looks, waits, and goes on.
    let (renewed, ()) = tokio::join!(is_renewed(&tls, &tasks), tokio::time::advance(WAIT));
    assert!(!renewed);
    assert_eq!(tasks.len(), 1, "it still hangs");
    // A busy machine may not have let it begin: then the next one would be the one that hangs, and time stands still.
    while !tls.loaded.is_locked() {
        assert!(!tasks.is_empty());
        tokio::task::yield_now().await;
    }
    tokio::time::advance(LOOK_EVERY).await;
    assert!(!is_renewed(&tls, &tasks).await, "the next one does not wait for it");
    let writer = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    // Who opens it once more is not to wait again.
    std::fs::remove_file(&pipe).unwrap();
    drop(writer);
    tasks.close();
    tasks.wait().await;
}
