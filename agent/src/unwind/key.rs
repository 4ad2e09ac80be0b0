//! What makes two files the same for the unwinder.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Weak};

use crate::object::{BuildId, ObjectFile, ObjectKind};

/// Identifies the contents of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// The linker's identity; with the size, as a stripped copy has another layout, and with
    /// the owner: whoever can write a file can claim any build id in it, and must not have
    /// others' files walked by its rules.
    BuildId {
        /// The identity.
        build_id: BuildId,
        /// Bytes.
        size: u64,
        /// User id.
        owner: u32,
    },
    /// Device, inode, size and time of modification (seconds, nanoseconds).
    Inode(u64, u64, u64, i64, i64),
    /// The vDSO.
    Vdso,
}

impl Key {
    fn of_file(file: &File, build_id: Option<BuildId>) -> Option<Self> {
        let data = file.metadata().ok()?;
        Some(match build_id {
            Some(build_id) => Self::BuildId { build_id, size: data.size(), owner: data.uid() },
            None => {
                Self::Inode(data.dev(), data.ino(), data.size(), data.mtime(), data.mtime_nsec())
            }
        })
    }
}

/// Keys of files that are in use.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// By address. A weak reference keeps the address from being used again.
    by_address: HashMap<usize, (Weak<ObjectFile>, Option<Key>)>,
    sweep_at: usize,
}

impl Keys {
    /// The key of a file with code; `None` if it cannot be read.
    pub(super) fn of(&mut self, object: &Arc<ObjectFile>) -> Option<Key> {
        let file = match &object.kind {
            ObjectKind::Elf { file: Some(file) } => file,
            ObjectKind::Vdso => return Some(Key::Vdso),
            _ => return None,
        };
        let address = Arc::as_ptr(object).addr();
        if let Some((_, key)) = self.by_address.get(&address) {
            return *key;
        }
        if self.by_address.len() >= self.sweep_at {
            self.by_address.retain(|_, (object, _)| object.strong_count() > 0);
            self.sweep_at = self.by_address.len() * 2 + 256;
        }
        let key = Key::of_file(file, object.build_id);
        self.by_address.insert(address, (Arc::downgrade(object), key));
        key
    }
}
