//! One server per data directory.
//!
//! The lock is the kernel's, on a file that stays: it ends with the process,
//! however that ends, so there is no stale lock to clean up.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use super::StoreError;

const LOCK_FILE: &str = "everflame-server.lock";

/// Holds the data directory until it is dropped.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

impl DataDirLock {
    /// Takes the data directory, creating it when it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it.
    pub fn acquire(data_dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(data_dir).map_err(|source| StoreError::Io {
            action: "create the data directory",
            path: data_dir.to_owned(),
            source,
        })?;
        let path = data_dir.join(LOCK_FILE);
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|source| StoreError::Io {
            action: "open the lock file",
            path: path.clone(),
            source,
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: data_dir.to_owned() }),
            Err(TryLockError::Error(source)) => {
                Err(StoreError::Io { action: "lock", path, source })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_owner_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDirLock::acquire(dir.path()).unwrap();
        let second = DataDirLock::acquire(dir.path());
        assert!(matches!(second, Err(StoreError::Locked { .. })), "{second:?}");
        drop(first);
        DataDirLock::acquire(dir.path()).unwrap();
    }
}
