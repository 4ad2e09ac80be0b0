//! The binaries whose symbols are in memory: least recently used ones go when the budget
//! is exceeded, and ones that cannot be used are remembered.
//!
//! Reading a large program's debug information takes as long as seconds. A binary that
//! was dropped is therefore not read again before the time that it took has been spread
//! over enough windows to cost [`OPEN_BUDGET`] in each. Until then its functions are
//! resolved without lines and inlined calls if its symbols fit the budget, and not at all
//! otherwise; such answers are counted as deferred and not kept.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::binary::{Binary, BinaryError, BinaryOptions};
use super::data_symbols::{self, DataSymbol};
use super::vdso;
use super::{SymbolizeConfig, SymbolizeStats};
use crate::object::{BuildId, ObjectFile, ObjectKind};

/// How much time of a window, on average, may go into reading one binary again.
const OPEN_BUDGET: Duration = Duration::from_millis(20);
/// A binary that has not been needed for this many windows is dropped.
const MAX_IDLE_WINDOWS: u32 = 6;
/// Data in a file whose symbols cannot be read is not asked for again for this many windows.
const RETRY_WINDOWS: u32 = 60;
/// Beyond this many distinct files, what is known of them is forgotten.
const MAX_KNOWN: usize = 16 << 10;

/// What makes two files the same: the linker's word, else that of the file system.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    BuildId(BuildId),
    Inode(Inode),
    Vdso,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Inode {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Inode {
    fn of(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl Identity {
    /// `None` for what cannot be symbolised.
    pub(super) fn of(object: &ObjectFile) -> Option<Self> {
        match (&object.kind, object.build_id) {
            (ObjectKind::Vdso, _) => Some(Self::Vdso),
            (ObjectKind::Elf { .. }, Some(build_id)) => Some(Self::BuildId(build_id)),
            (ObjectKind::Elf { file: Some(file) }, None) => Inode::of(file).map(Self::Inode),
            _ => None,
        }
    }
}

struct Known {
    number: u32,
    binary: Option<Binary>,
    used: u32,
    /// The window from which on the binary may be read (again).
    not_before: u32,
    /// The window from which on the names of its data may be read again.
    data_not_before: u32,
}

pub(super) struct Binaries {
    known: HashMap<Identity, Known>,
    /// By inode, not build id: another file of that build id may be well.
    unusable: HashSet<Inode>,
    window: u32,
    next_number: u32,
}

impl Binaries {
    pub(super) fn new() -> Self {
        Self { known: HashMap::new(), unusable: HashSet::new(), window: 0, next_number: 0 }
    }

    /// A number for the file that is never given to another.
    pub(super) fn number(&mut self, identity: Identity) -> u32 {
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        let known = self.known.entry(identity).or_insert_with(|| {
            self.next_number += 1;
            let number = self.next_number;
            let (used, not_before) = (self.window, self.window);
            Known { number, binary: None, used, not_before, data_not_before: not_before }
        });
        known.number
    }

    /// The file's binary, read if need be; `None` if it is unusable or deferred.
    pub(super) fn get(
        &mut self,
        identity: Identity,
        object: &Arc<ObjectFile>,
        config: &SymbolizeConfig,
        stats: &mut SymbolizeStats,
    ) -> Option<&mut Binary> {
        let window = self.window;
        let known = self.known.get_mut(&identity)?;
        known.used = window;
        if !known.binary.as_ref().is_some_and(Binary::is_complete) {
            let inode = match &object.kind {
                ObjectKind::Elf { file: Some(file) } => Some(Inode::of(file)?),
                // What there is of the same build id has to do.
                ObjectKind::Elf { file: None } => return known.binary.as_mut(),
                _ => None,
            };
            if inode.is_some_and(|inode| self.unusable.contains(&inode)) {
                return None;
            }
            if known.not_before > window {
                stats.binaries_deferred += 1;
                return known.binary.as_mut();
            }
            let started = Instant::now();
            match open(object, config) {
                Ok(binary) => {
                    stats.binaries_opened += 1;
                    stats.parse_failures += binary.failures;
                    let (bytes, elapsed) = (binary.bytes(), started.elapsed());
                    tracing::debug!(path = object.path, bytes, ?elapsed, "binary read");
                    known.binary = Some(binary);
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(path = object.path, error, "binary is not symbolised");
                    stats.parse_failures += 1;
                    if self.unusable.len() >= MAX_KNOWN {
                        self.unusable.clear();
                    }
                    self.unusable.extend(inode);
                }
            }
            known.not_before = window.saturating_add(1).saturating_add(windows_for(started));
        }
        known.binary.as_mut()
    }

    /// The names of data at these addresses in the file (svma); `None` if they are deferred or
    /// cannot be read.
    pub(super) fn data(
        &mut self,
        identity: Identity,
        object: &ObjectFile,
        svmas: &[u64],
        config: &SymbolizeConfig,
        stats: &mut SymbolizeStats,
    ) -> Option<Vec<Option<DataSymbol>>> {
        let known = self.known.get_mut(&identity)?;
        let ObjectKind::Elf { file: Some(file) } = &object.kind else { return None };
        if known.data_not_before > self.window {
            stats.binaries_deferred += 1;
            return None;
        }
        let started = Instant::now();
        let found = data_symbols::find(file, &options(object, config), svmas);
        let mut windows = windows_for(started);
        let path = object.path.as_str();
        match &found {
            Ok(_) => tracing::debug!(path, elapsed = ?started.elapsed(), "names of data read"),
            Err(error) => {
                let error: &dyn std::error::Error = error;
                tracing::debug!(path, error, "data is not named");
                stats.parse_failures += 1;
                windows = windows.max(RETRY_WINDOWS);
            }
        }
        known.data_not_before = self.window.saturating_add(windows);
        found.ok()
    }

    /// Drops debug information and then whole binaries, the least recently used first,
    /// until no more than `budget` bytes are in use. Those of `keep` stay.
    pub(super) fn shrink_to(&mut self, budget: usize, keep: Option<Identity>) -> u64 {
        let mut bytes = self.bytes();
        let mut held: Vec<&mut Known> = self
            .known
            .iter_mut()
            .filter(|(identity, known)| known.binary.is_some() && keep != Some(**identity))
            .map(|(_, known)| known)
            .collect();
        held.sort_by_key(|known| known.used);
        let mut dropped = 0;
        for binary in held.iter_mut().filter_map(|known| known.binary.as_mut()) {
            if bytes > budget {
                let before = binary.bytes();
                dropped += u64::from(binary.drop_dwarf());
                bytes = bytes.saturating_sub(before - binary.bytes());
            }
        }
        for known in held {
            if bytes > budget {
                bytes = bytes.saturating_sub(known.binary.take().map_or(0, |it| it.bytes()));
                dropped += 1;
            }
        }
        dropped
    }

    /// Ends a window: drops what has been idle for long.
    pub(super) fn next_window(&mut self) -> u64 {
        self.window += 1;
        let mut dropped = 0;
        for known in self.known.values_mut() {
            if self.window - known.used > MAX_IDLE_WINDOWS && known.binary.take().is_some() {
                dropped += 1;
            }
        }
        dropped
    }

    pub(super) fn bytes(&self) -> usize {
        self.known.values().filter_map(|known| known.binary.as_ref()).map(Binary::bytes).sum()
    }
}

/// How many windows it takes until what has taken so long may be done again.
fn windows_for(started: Instant) -> u32 {
    let windows = started.elapsed().as_nanos() / OPEN_BUDGET.as_nanos();
    u32::try_from(windows).unwrap_or(u32::MAX)
}

fn options<'a>(object: &'a ObjectFile, config: &'a SymbolizeConfig) -> BinaryOptions<'a> {
    BinaryOptions {
        path: &object.path,
        build_id: object.build_id,
        debug_dirs: &config.debug_dirs,
        inlines: config.inlines,
        source_lines: config.source_lines || config.inlines,
        dwarf_limit: config.dwarf_bytes,
        max_functions: config.max_functions,
    }
}

fn open(object: &ObjectFile, config: &SymbolizeConfig) -> Result<Binary, BinaryError> {
    let mut options = options(object, config);
    match &object.kind {
        ObjectKind::Elf { file: Some(file) } => Binary::open(file, &options),
        ObjectKind::Vdso => {
            // A mapping's build id may be of another kernel's vDSO, from a recording.
            options.build_id = None;
            Binary::open(&vdso::read()?, &options)
        }
        _ => Err(BinaryError::NoFile),
    }
}
