//! The allocators of a process: which functions to probe, and where.
//!
//! Found by name in the symbol tables of the files whose code a process has mapped, be they libraries or the program
//! with an allocator linked in. A function that has several names is probed once. Where one function of an
//! allocator calls another, both would count: a sample whose caller lies in an allocator's function is to be left out
//! ([`Code::contains`]); where it jumps there instead, so that the caller cannot be told, the first is told
//! to leave it to the second.

mod names;
#[cfg(target_arch = "x86_64")]
mod placement;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
#[cfg(target_arch = "x86_64")]
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use everflame_agent_common::allocation::{Allocator, Entry, SizeArgument};
use thiserror::Error;
use tracing::debug;

use crate::collect::Site;
use crate::object::{ObjectFile, ObjectKind};
use crate::process::{Backing, Mappings};
use crate::symbolize::{NamedFunction, NamedFunctionsError, named_functions};

/// Functions of an allocator lie together, with those that they call; what lies between them is its own
/// unless it is more than that.
const MAX_SPAN: u64 = 64 << 10;

/// How much of a file around a function is looked at.
const MAX_CODE_BYTES: u64 = 256 << 10;

/// Why no allocations of a process can be seen.
#[derive(Debug, Error)]
pub enum AllocatorsError {
    /// No function has a name that is known.
    #[error(
        "no allocator found in pid {pid}, tried {}: none has a symbol called {}{}",
        files(.tried), names::LOOKED_FOR, not_readable(.unreadable)
    )]
    None {
        /// The process.
        pid: u32,
        /// Files that were looked into.
        tried: Vec<String>,
        /// Files that could not be.
        unreadable: Vec<String>,
    },
}

fn files(tried: &[String]) -> String {
    if tried.is_empty() { "no files".to_owned() } else { tried.join(", ") }
}

fn not_readable(files: &[String]) -> String {
    if files.is_empty() { String::new() } else { format!("; not readable: {}", files.join(", ")) }
}

/// A function of an allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its best known name.
    pub name: String,
    /// Whose it is.
    pub allocator: Allocator,
    /// Offsets in the file.
    pub code: Range<u64>,
    /// Where it is probed; `None` if another one counts what it is asked for, or there is no place for a probe.
    pub site: Option<Site>,
    /// The instruction there.
    pub instruction: String,
    /// Whether the kernel executes that itself, rather than single-step the program.
    pub is_cheap: bool,
}

/// The functions of a file.
#[derive(Debug, Default)]
struct InFile {
    functions: Vec<Function>,
    /// Offsets between which all is an allocator's.
    code: Vec<Range<u64>>,
}

/// The functions of all files of a process.
#[derive(Debug)]
pub struct Allocators {
    /// Files with functions to probe, by a path that the kernel can open.
    pub files: Vec<ProbedFile>,
    /// Where they are in the process.
    pub code: Code,
    /// Functions at whose places the kernel single-steps the program.
    pub slow: Vec<String>,
}

/// A file and what to probe in it.
#[derive(Debug)]
pub struct ProbedFile {
    /// Held open, so that the path is right.
    pub object: Arc<ObjectFile>,
    /// The file, by way of our descriptor.
    pub path: PathBuf,
    /// Places to probe.
    pub sites: Vec<Site>,
}

/// Where the code of a process's allocators lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code(Vec<Range<u64>>);

impl Code {
    /// Where each stretch of it begins.
    pub fn starts(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(|code| code.start)
    }

    /// Whether an address of the process lies in an allocator.
    pub fn contains(&self, avma: u64) -> bool {
        self.0.iter().any(|code| code.contains(&avma))
    }
}

/// Looks into files, each once.
#[derive(Debug, Default)]
pub struct AllocatorCache {
    by_object: HashMap<usize, (Weak<ObjectFile>, Option<Arc<InFile>>)>,
}

impl AllocatorCache {
    /// What allocates in a process that has this in its memory.
    pub fn find(&mut self, pid: u32, mappings: &Mappings) -> Result<Allocators, AllocatorsError> {
        self.by_object.retain(|_, (object, _)| object.strong_count() > 0);
        let mut found = Allocators { files: Vec::new(), code: Code::default(), slow: Vec::new() };
        let (mut tried, mut unreadable) = (Vec::new(), Vec::new());
        for mapping in mappings.iter() {
            let Backing::Object(object) = &mapping.backing else { continue };
            let ObjectKind::Elf { file } = &object.kind else { continue };
            let (Some(file), Some(functions)) = (file, self.in_file(object)) else {
                unreadable.push(object.path.clone());
                continue;
            };
            if functions.functions.is_empty() {
                tried.push(object.path.clone());
                continue;
            }
            let mapped =
                mapping.file_offset..mapping.file_offset + (mapping.end_avma - mapping.start_avma);
            for code in functions.code.iter().filter(|code| mapped.contains(&code.start)) {
                let avma = |offset: u64| mapping.start_avma + (offset - mapping.file_offset);
                found.code.0.push(avma(code.start)..avma(code.end.min(mapped.end)));
            }
            if !found.files.iter().any(|known| Arc::ptr_eq(&known.object, object)) {
                let sites: Vec<Site> = functions.functions.iter().filter_map(|f| f.site).collect();
                let slow = functions.functions.iter().filter(|f| f.site.is_some() && !f.is_cheap);
                found.slow.extend(slow.map(|function| function.name.clone()));
                let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                found.files.push(ProbedFile { object: Arc::clone(object), path, sites });
            }
        }
        if found.files.is_empty() {
            tried.dedup();
            return Err(AllocatorsError::None { pid, tried, unreadable });
        }
        Ok(found)
    }

    fn in_file(&mut self, object: &Arc<ObjectFile>) -> Option<Arc<InFile>> {
        let key = Arc::as_ptr(object).addr();
        let (_, found) = self.by_object.entry(key).or_insert_with(|| {
            let file = match &object.kind {
                ObjectKind::Elf { file: Some(file) } => look(file),
                _ => return (Arc::downgrade(object), None),
            };
            let found = file.inspect_err(|error| {
                debug!(path = object.path, error = error as &dyn std::error::Error, "no functions");
            });
            (Arc::downgrade(object), found.ok().map(Arc::new))
        });
        found.clone()
    }
}

/// Finds the functions of a file.
fn look(file: &File) -> Result<InFile, NamedFunctionsError> {
    let all = named_functions(file, names::may_begin, |name| names::read(name).is_some())?;
    if all.iter().any(|function| function.name == names::PRELOADED) {
        return Ok(InFile::default());
    }
    let named: Vec<(NamedFunction, names::Name)> = all
        .into_iter()
        .filter_map(|function| Some((names::read(&function.name)?, function)))
        .map(|(name, function)| (function, name))
        .collect();
    let of_file = named.iter().find_map(|(_, name)| name.allocator);
    let mut by_offset: BTreeMap<u64, Vec<&(NamedFunction, names::Name)>> = BTreeMap::new();
    for function in &named {
        by_offset.entry(function.0.offset).or_default().push(function);
    }
    let knows_operators = of_file.is_some_and(|allocator| allocator != Allocator::Glibc);
    let mut functions: Vec<(Function, SizeArgument)> = Vec::new();
    for (offset, aliases) in by_offset {
        let sized =
            aliases.iter().filter_map(|(function, name)| Some((function, name, name.size?)));
        let allowed = sized.filter(|(_, name, _)| !name.is_operator || knows_operators);
        // The shortest name is the one that people know.
        let best = allowed.min_by_key(|(function, ..)| (function.name.len(), &function.name));
        let Some((function, _, size)) = best else { continue };
        let allocator = aliases.iter().find_map(|(_, name)| name.allocator).or(of_file);
        let function = Function {
            name: function.name.clone(),
            allocator: allocator.unwrap_or(Allocator::Other),
            code: offset..offset + function.size,
            site: None,
            instruction: String::new(),
            is_cheap: false,
        };
        functions.push((function, size));
    }
    place(file, &mut functions);
    let functions: Vec<Function> = functions.into_iter().map(|(function, _)| function).collect();
    Ok(InFile { code: code(&functions), functions })
}

/// Chooses where each function is probed.
fn place(file: &File, functions: &mut [(Function, SizeArgument)]) {
    let starts: Vec<u64> = functions.iter().map(|(function, _)| function.code.start).collect();
    for (function, size) in functions {
        let placement = placement_of(file, function, *size);
        let start = function.code.start;
        let goes_on =
            starts.iter().any(|other| *other != start && placement.jumps_to.contains(other));
        let argument = if goes_on { left_to_another(&function.name, *size) } else { Some(*size) };
        function.site = argument.filter(|_| !placement.is_harmful).map(|size| Site {
            offset: start + placement.distance,
            ref_ctr_offset: None,
            cookie: Entry { size, allocator: function.allocator }.cookie(),
        });
        function.instruction = placement.instruction;
        function.is_cheap = placement.is_cheap;
    }
}

/// What the code of a function says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Placement {
    /// Bytes from the function's start to where it is probed.
    distance: u64,
    /// What is there, for people.
    instruction: String,
    /// Whether the kernel does the work of that instruction itself.
    is_cheap: bool,
    /// Whether a probe there may end the process, or a child of it.
    is_harmful: bool,
    /// Offsets that it jumps to, by itself or by way of others.
    jumps_to: HashSet<u64>,
}

#[cfg(target_arch = "x86_64")]
fn placement_of(file: &File, function: &Function, size: SizeArgument) -> Placement {
    let (start, end) = (function.code.start, function.code.end);
    let from = start.saturating_sub(MAX_CODE_BYTES / 2);
    let mut code = vec![0; usize::try_from(MAX_CODE_BYTES).unwrap_or(0)];
    let read = file.read_at(&mut code, from).unwrap_or(0);
    placement::choose(&code[..read], from, (start, end - start), size)
}

/// Without a look at the code: what the C library jumps to on all architectures is known.
#[cfg(not(target_arch = "x86_64"))]
fn placement_of(_file: &File, _function: &Function, _size: SizeArgument) -> Placement {
    Placement::default()
}

/// What is left to count for a function that may jump on to another one that is probed.
fn left_to_another(name: &str, size: SizeArgument) -> Option<SizeArgument> {
    match (name.trim_start_matches('_'), size) {
        (name, SizeArgument::Second) if name.ends_with("realloc") => {
            Some(SizeArgument::SecondUnlessNull)
        }
        (name, SizeArgument::Second)
            if name.ends_with("memalign") || name.ends_with("aligned_alloc") =>
        {
            Some(SizeArgument::SecondUnlessSmall)
        }
        // Aligned to a page, which is never left to malloc.
        (name, SizeArgument::First) if name.ends_with("valloc") => Some(size),
        _ => None,
    }
}

/// Where the code of allocators lies in a file.
fn code(functions: &[Function]) -> Vec<Range<u64>> {
    let mut code: Vec<Range<u64>> =
        functions.iter().map(|function| function.code.clone()).collect();
    for allocator in Allocator::ALL {
        let of = |function: &&Function| {
            function.allocator == allocator && !function.name.starts_with("_Z")
        };
        let start = functions.iter().filter(of).map(|function| function.code.start).min();
        let end = functions.iter().filter(of).map(|function| function.code.end).max();
        if let (Some(start), Some(end)) = (start, end)
            && allocator != Allocator::Other
            && end - start <= MAX_SPAN
        {
            code.push(start..end);
        }
    }
    code
}

#[cfg(test)]
mod tests;
