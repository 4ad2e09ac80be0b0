//! Where in a file an address of a process's data is: what a lock is named by.
//!
//! The process table knows executable mappings only, which is enough: a loader puts all load
//! segments of a file at the same distance (the load bias) from the addresses in its program
//! headers (svma), so one mapping tells where the others are:
//!
//! ```text
//! bias = start_avma - svma(file_offset)        of the executable mapping
//! svma = avma - bias                           must lie in p_vaddr .. p_vaddr + p_memsz
//! ```
//!
//! That holds for .bss, too, which has no file behind it. The invariant is that nothing is
//! guessed: perf tells of no unmapping, so memory of another use can lie where a library was.
//! An answer is therefore compared with /proc/PID/maps while the process is there.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{Endianness, elf};

use super::objects::read_program_headers;
use super::seed::{MapsLine, all_memory};
use super::{Backing, Mapping, Mappings};
use crate::object::{ObjectFile, ObjectKind};

/// Addresses of one process that answers are kept for; one more, and all are forgotten.
const MAX_KNOWN: usize = 256;

/// How often a process's /proc/PID/maps, which can be long, is read in [`LOOK_INTERVAL_NS`].
const MAX_LOOKS: u32 = 64;
const LOOK_INTERVAL_NS: u64 = 10_000_000_000;

/// Generated code and the like between a file's code and its data, at most.
const MAX_SKIPPED: usize = 16;

/// An address of data in a file.
#[derive(Clone, Debug)]
pub struct DataPlace {
    /// The file.
    pub object: Arc<ObjectFile>,
    /// The address in the file.
    pub svma: u64,
}

/// Answers that one process has been asked for.
#[derive(Debug, Default)]
pub(super) struct DataPlaces {
    known: HashMap<u64, Option<DataPlace>>,
    looks: u32,
    looks_since_ns: u64,
}

impl Clone for DataPlaces {
    /// Copies of a process are of a child or of a moment: not worth copying answers for.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl DataPlaces {
    pub(super) fn find(
        &mut self,
        pid: u32,
        mappings: &Mappings,
        avma: u64,
        now_ns: u64,
    ) -> Option<DataPlace> {
        if let Some(known) = self.known.get(&avma) {
            return known.clone();
        }
        let mut found = Candidate::find(mappings, avma);
        if let Some(candidate) = &found {
            if !self.may_look(now_ns) {
                return None;
            }
            // What is mapped in a process that is gone by now cannot be asked for.
            if all_memory(pid).is_some_and(|memory| !candidate.agrees_with(&memory)) {
                found = None;
            }
        }
        let found = found
            .map(|found| DataPlace { object: Arc::clone(found.object), svma: found.data.svma });
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(avma, found.clone());
        found
    }

    /// To be called when something has been mapped.
    pub(super) fn forget(&mut self) {
        self.known = HashMap::new();
    }

    fn may_look(&mut self, now_ns: u64) -> bool {
        if now_ns.saturating_sub(self.looks_since_ns) >= LOOK_INTERVAL_NS {
            (self.looks, self.looks_since_ns) = (0, now_ns);
        }
        self.looks += 1;
        self.looks <= MAX_LOOKS
    }
}

/// What the table of processes says.
struct Candidate<'m> {
    object: &'m Arc<ObjectFile>,
    /// The mapping that tells where the file was loaded.
    code: &'m Mapping,
    avma: u64,
    data: Data,
}

/// An address in a writable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Data {
    svma: u64,
    /// Where it is in the file; none in .bss.
    file_offset: Option<u64>,
}

impl<'m> Candidate<'m> {
    /// Data follows its file's code, with nothing in between.
    fn find(mappings: &'m Mappings, avma: u64) -> Option<Self> {
        let mut below = mappings.at_or_below(avma).take(MAX_SKIPPED);
        let (object, file, code) = below.find_map(|mapping| match &mapping.backing {
            Backing::Object(object) => match &object.kind {
                ObjectKind::Elf { file: Some(file) } => Some((object, file, mapping)),
                _ => None,
            },
            Backing::Anonymous => None,
        })?;
        let segments = LoadSegments::read(file)?;
        let data = segments.data_at(avma, code)?;
        Some(Self { object, code, avma, data })
    }

    /// Whether memory, in order of address, is laid out as it must be: the code is there still,
    /// the data is of the same file or, in .bss, follows what is.
    fn agrees_with(&self, memory: &[MapsLine]) -> bool {
        let contains = |line: &&MapsLine, avma: u64| {
            (line.memory.start_avma..line.memory.end_avma).contains(&avma)
        };
        let find = |avma| memory.iter().find(|line| contains(line, avma));
        let Some(code) = find(self.code.start_avma).filter(|line| line.is_executable) else {
            return false;
        };
        let Some(data) = find(self.avma).map(|line| &line.memory) else { return false };
        let mut below = memory.iter().rev().filter(|line| line.memory.start_avma <= self.avma);
        let file = below.find_map(|line| line.memory.inode);
        if file.is_none() || file != code.memory.inode {
            return false;
        }
        // The rest of the last page of a file is .bss, too.
        let mapped_offset = (self.avma - data.start_avma).wrapping_add(data.file_offset);
        match (data.inode, self.data.file_offset) {
            (Some(_), Some(offset)) => offset == mapped_offset,
            (Some(_), None) | (None, None) => true,
            (None, Some(_)) => false,
        }
    }
}

/// The parts of a file that are loaded into memory.
struct LoadSegments(Vec<LoadSegment>);

#[derive(Clone, Copy)]
struct LoadSegment {
    flags: u32,
    offset: u64,
    file_size: u64,
    svma: u64,
    memory_size: u64,
}

impl LoadSegments {
    fn read(file: &File) -> Option<Self> {
        type Header = elf::FileHeader64<Endianness>;
        let head = read_program_headers(file)?;
        let header = Header::parse(&*head).ok()?;
        let endian = header.endian().ok()?;
        let headers = header.program_headers(endian, &*head).ok()?.iter();
        let loaded = headers.filter(|header| header.p_type(endian) == elf::PT_LOAD);
        let segment = |header: &elf::ProgramHeader64<Endianness>| LoadSegment {
            flags: header.p_flags(endian),
            offset: header.p_offset(endian),
            file_size: header.p_filesz(endian),
            svma: header.p_vaddr(endian),
            memory_size: header.p_memsz(endian),
        };
        Some(Self(loaded.map(segment).collect()))
    }

    /// What is at an address, if `code` is mapped from this file.
    fn data_at(&self, avma: u64, code: &Mapping) -> Option<Data> {
        let svma = avma.wrapping_sub(self.bias(code)?);
        only(self.0.iter().filter_map(|segment| {
            let within = svma.checked_sub(segment.svma)?;
            let is_data = segment.flags & elf::PF_W != 0 && within < segment.memory_size;
            let in_file = within < segment.file_size;
            let file_offset = in_file.then(|| segment.offset.wrapping_add(within));
            is_data.then_some(Data { svma, file_offset })
        }))
    }

    /// What is to be added to an address in the file.
    fn bias(&self, code: &Mapping) -> Option<u64> {
        let executable = self.0.iter().filter(|segment| segment.flags & elf::PF_X != 0);
        only(executable.filter_map(|segment| {
            let within = segment.mapped_offset(code.file_offset)?;
            Some(code.start_avma.wrapping_sub(segment.svma.wrapping_add(within)))
        }))
    }
}

impl LoadSegment {
    /// How far into the segment an offset in the file is; negative, as a wrapped number, in
    /// the rest of its first page.
    fn mapped_offset(&self, file_offset: u64) -> Option<u64> {
        let page = rustix::param::page_size() as u64;
        let start = self.offset & !(page - 1);
        let end = self.offset.checked_add(self.file_size)?;
        (start..end).contains(&file_offset).then(|| file_offset.wrapping_sub(self.offset))
    }
}

/// The one value that all agree on.
fn only<T: PartialEq>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}
