//! Keys that only this store has: for the tokens and upload locations that it hands out. They are never exported.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::layout::PRIVATE;
use super::record::{Damage, decode};
use super::{Inner, Store, StoreError};

/// Bytes of a key.
const LENGTH: usize = 32;
/// More than its record needs.
const LIMIT: u64 = 4 << 10;

/// What a key's file says.
#[derive(Serialize, Deserialize)]
struct KeyRecord {
    key: String,
}

// === impl Store ===

impl Store {
    /// The key of this name, made at random if there is none. A damaged one is replaced: what was made with it is not
    /// accepted any more. Blocks; for the start.
    pub fn private_key(&self, name: &str) -> Result<[u8; LENGTH], StoreError> {
        self.0.private_key(name).map_err(|error| error.within(self.root()))
    }
}

// === impl Inner ===

impl Inner {
    fn private_key(&self, name: &str) -> Result<[u8; LENGTH], StoreError> {
        let path = Path::new(PRIVATE).join(name);
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || !name.bytes().all(is_plain) {
            return Err(StoreError::io("name a key", &path, io::ErrorKind::InvalidInput.into()));
        }
        let _keys = self.keys.lock();
        match self.disk.read(&path) {
            Ok(file) => {
                let permissions = file.metadata().and_then(|found| {
                    if found.permissions().mode() & 0o077 != 0 {
                        tracing::warn!(path = %path.display(), "a key could be read by others and is closed to them");
                        self.disk.close_file(&file)?;
                    }
                    Ok(())
                });
                permissions.map_err(|e| StoreError::io("close to others", &path, e))?;
                let damage: Box<dyn std::error::Error> = match self.disk.read_all(&path, LIMIT) {
                    Ok(bytes) => match parse(&bytes) {
                        Ok(key) => return Ok(key),
                        Err(damage) => damage.into(),
                    },
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => error.into(),
                    Err(error) => return Err(StoreError::io("read", &path, error)),
                };
                tracing::warn!(
                    path = %path.display(), error = &*damage,
                    "a key is damaged and is replaced: what was made with it is not accepted any more"
                );
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("read", &path, error)),
        }
        let mut key = [0; LENGTH];
        let filled = rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty());
        match filled {
            Ok(LENGTH) => {}
            Ok(_) => return Err(StoreError::io("make", &path, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => return Err(StoreError::io("make", &path, error.into())),
        }
        self.records.write_private(&self.disk, &self.group, &path, &KeyRecord { key: STANDARD.encode(key) })?;
        Ok(key)
    }
}

fn parse(bytes: &[u8]) -> Result<[u8; LENGTH], Damage> {
    let record: KeyRecord = decode(bytes)?;
    STANDARD.decode(record.key).ok().and_then(|key| key.try_into().ok()).ok_or(Damage::Checksum)
}
