//! Turns addresses into functions, source files and lines, in user space.
//!
//! Three kinds of addresses are resolved: those of the kernel, offsets in files (ELF
//! binaries and the vDSO), and those of code that a process generated. Where a name comes
//! from:
//!
//! | address | sources |
//! | --- | --- |
//! | kernel | `/proc/kallsyms` |
//! | ELF | DWARF (inlined functions and lines) by blazesym, from the file or its separate debug file; `.symtab`, `.gnu_debugdata`, `.dynsym` |
//! | data | `.symtab`, `.dynsym`, of the separate debug file as well |
//! | vDSO | the symbols of the image in our own memory |
//! | JIT | `/tmp/perf-PID.map` and jitdump files |
//!
//! Invariants: an address that lies in no known function resolves to nothing, never to
//! the nearest name. Everything that is kept is within [`SymbolizeConfig::cache_bytes`];
//! only the binary that is being read can exceed it, until the window ends. No file,
//! however malformed or hostile, makes this code panic, hang, or use memory without bound.

mod binaries;
mod binary;
mod data_symbols;
mod debug_file;
mod dwarf;
mod dwarf_nesting;
mod elf;
mod elf_symbols;
mod foreign_file;
mod frame_cache;
mod image;
mod jit;
mod jitdump;
mod kallsyms;
mod kernel;
mod line;
mod name_file;
mod named_functions;
mod perf_map;
mod stats;
mod symbol_table;
mod vdso;

use std::path::PathBuf;
use std::sync::Arc;

pub use self::kernel::KernelStatus;
pub(crate) use self::line::demangle;
pub use self::line::{Function, Line};
pub(crate) use self::named_functions::{NamedFunction, NamedFunctionsError, named_functions};
pub use self::stats::SymbolizeStats;
pub(crate) use self::vdso::read as vdso_image;

use self::binaries::{Binaries, Identity};
use self::data_symbols::MAX_ADDRESSES;
use self::frame_cache::{FrameCache, FrameKey, Space};
use self::jit::Jits;
use self::kernel::Kernel;
use self::line::Functions;
use crate::object::{JitProcess, ObjectFile};

/// How much is looked up, where, and how much of it is kept.
#[derive(Clone, Debug)]
pub struct SymbolizeConfig {
    /// The most memory, in bytes, for what is kept between calls: resolved frames, symbol
    /// tables, debug information.
    pub cache_bytes: usize,
    /// The most debug information, in bytes, that is read of one binary; one with more
    /// has its functions resolved, but not their lines and inlined functions. While such
    /// a binary is being resolved, up to twice as much can be in memory.
    pub dwarf_bytes: u64,
    /// The most functions that are read of one binary. Each takes 32 bytes while the binary
    /// is being read, and 16 as long as it is in use.
    pub max_functions: usize,
    /// Where separate debug files are installed.
    pub debug_dirs: Vec<PathBuf>,
    /// Whether to look up inlined functions.
    pub inlines: bool,
    /// Whether to look up source files and lines. Inlined functions come with theirs.
    pub source_lines: bool,
    /// The kernel's symbols.
    pub kallsyms: PathBuf,
}

impl Default for SymbolizeConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 24 << 20,
            dwarf_bytes: 32 << 20,
            max_functions: 400_000,
            debug_dirs: vec![PathBuf::from("/usr/lib/debug")],
            inlines: true,
            source_lines: true,
            kallsyms: PathBuf::from("/proc/kallsyms"),
        }
    }
}

/// Resolves addresses, and keeps what it has learned for the next time.
///
/// It belongs to one thread (it is not `Send`: blazesym's state is not), so create it on
/// the thread that symbolises. Calls block while files are read. Return addresses are the
/// caller's to adjust: pass the address of the call, not of what follows it.
pub struct Symbolizer {
    config: SymbolizeConfig,
    functions: Functions,
    frames: FrameCache,
    kernel: Option<Kernel>,
    binaries: Binaries,
    jits: Jits,
    stats: SymbolizeStats,
    unresolved: Arc<[Line]>,
    /// What has been read since the last window leaves freed memory behind.
    opened_before_window: u64,
    kernel_is_new: bool,
    /// What frames took after they were last cut down. It can exceed their share, since
    /// functions stay as long as the caller holds lines of them; cutting down again before
    /// they have grown would free nothing.
    frames_floor: usize,
}

impl Symbolizer {
    /// Reads nothing yet.
    pub fn new(config: SymbolizeConfig) -> Self {
        Self {
            config,
            functions: Functions::default(),
            frames: FrameCache::new(),
            kernel: None,
            binaries: Binaries::new(),
            jits: Jits::new(),
            stats: SymbolizeStats::default(),
            unresolved: Arc::new([]),
            opened_before_window: 0,
            kernel_is_new: true,
            frames_floor: 0,
        }
    }

    /// Resolves kernel addresses: for each, in order, at most one line.
    pub fn kernel(&mut self, addresses: &[u64]) -> Vec<Arc<[Line]>> {
        let kernel = self.kernel.get_or_insert_with(|| Kernel::new(&self.config.kallsyms));
        kernel.refresh(addresses);
        let mut resolved = Vec::with_capacity(addresses.len());
        for &address in addresses {
            let key = FrameKey { space: Space::Kernel(kernel.generation(address)), address };
            let lines = self.frames.get(key);
            self.stats.count_cache(lines.is_some());
            resolved.push(lines.unwrap_or_else(|| {
                let Some(symbol) = kernel.lookup(address) else {
                    // Not kept: a module or BPF program can be loaded there.
                    return Arc::clone(&self.unresolved);
                };
                let readable = symbol.readable.as_deref();
                let function = self.functions.intern(symbol.system_name, readable, None);
                let lines: Arc<[Line]> = Arc::new([Line::named(function)]);
                self.frames.insert(key, Arc::clone(&lines));
                lines
            }));
        }
        self.stats.count_resolved(&resolved);
        self.shrink(None);
        resolved
    }

    /// Resolves offsets in a file: for each, in order, the functions there, innermost
    /// inlined function first; nothing if unknown.
    pub fn object(&mut self, object: &Arc<ObjectFile>, file_offsets: &[u64]) -> Vec<Arc<[Line]>> {
        let mut resolved = Vec::with_capacity(file_offsets.len());
        let Some(identity) = Identity::of(object) else {
            resolved.resize_with(file_offsets.len(), || Arc::clone(&self.unresolved));
            self.stats.count_resolved(&resolved);
            return resolved;
        };
        let space = Space::Object(self.binaries.number(identity));
        let mut missing: Vec<usize> = Vec::new();
        for &address in file_offsets {
            let lines = self.frames.get(FrameKey { space, address });
            self.stats.count_cache(lines.is_some());
            if lines.is_none() {
                missing.push(resolved.len());
            }
            resolved.push(lines.unwrap_or_else(|| Arc::clone(&self.unresolved)));
        }
        if !missing.is_empty() {
            self.look_up(identity, object, file_offsets, &missing, &mut resolved);
        }
        self.stats.count_resolved(&resolved);
        self.shrink(Some(identity));
        resolved
    }

    /// Resolves those of the offsets that are `missing` from the cache.
    fn look_up(
        &mut self,
        identity: Identity,
        object: &Arc<ObjectFile>,
        file_offsets: &[u64],
        missing: &[usize],
        resolved: &mut [Arc<[Line]>],
    ) {
        // Before another binary comes into memory, not after.
        self.shrink(Some(identity));
        let space = Space::Object(self.binaries.number(identity));
        let Some(binary) = self.binaries.get(identity, object, &self.config, &mut self.stats)
        else {
            return;
        };
        let failures = binary.failures;
        for &index in missing {
            let key = FrameKey { space, address: file_offsets[index] };
            let lines = binary.lookup(key.address, &mut self.functions);
            let lines = if lines.is_empty() { Arc::clone(&self.unresolved) } else { lines.into() };
            if binary.is_complete() {
                self.frames.insert(key, Arc::clone(&lines));
            }
            resolved[index] = lines;
        }
        self.stats.parse_failures += binary.failures - failures;
    }

    /// Resolves addresses of code that a process generated: for each, in order, at most
    /// one line.
    pub fn jit(&mut self, process: &JitProcess, addresses: &[u64]) -> Vec<Arc<[Line]>> {
        let mut resolved = Vec::with_capacity(addresses.len());
        let code = self.jits.refreshed(process, &mut self.stats);
        let space = Space::Jit { process: code.number(), generation: code.generation() };
        for &address in addresses {
            let key = FrameKey { space, address };
            let lines = self.frames.get(key);
            self.stats.count_cache(lines.is_some());
            resolved.push(lines.unwrap_or_else(
                || match code.lookup(address, &mut self.functions) {
                    Some(line) => {
                        let lines: Arc<[Line]> = Arc::new([line]);
                        self.frames.insert(key, Arc::clone(&lines));
                        lines
                    }
                    // Not kept: the runtime may not have written its name yet.
                    None => Arc::clone(&self.unresolved),
                },
            ));
        }
        self.stats.count_resolved(&resolved);
        self.shrink(None);
        resolved
    }

    /// Names data: for each address in the file (svma), in order, what lies there, as
    /// `table_lock` or, within it, `table_lock+0x10`; nothing if unknown. Of many addresses that
    /// are asked for the first time some stay without a name until the next time.
    pub fn data(&mut self, object: &Arc<ObjectFile>, svmas: &[u64]) -> Vec<Option<Arc<str>>> {
        let Some(identity) = Identity::of(object) else { return vec![None; svmas.len()] };
        let space = Space::Data(self.binaries.number(identity));
        let key = |address| FrameKey { space, address };
        let mut missing: Vec<u64> = svmas.to_vec();
        missing.retain(|svma| self.frames.get(key(*svma)).is_none());
        missing.truncate(MAX_ADDRESSES);
        if !missing.is_empty()
            && let Some(found) =
                self.binaries.data(identity, object, &missing, &self.config, &mut self.stats)
        {
            for (svma, symbol) in missing.into_iter().zip(found) {
                let lines = match symbol {
                    Some(symbol) => Arc::new([Line::named(self.functions.intern_data(&symbol))]),
                    None => Arc::clone(&self.unresolved),
                };
                self.frames.insert(key(svma), lines);
            }
        }
        let mut name = |svma: &u64| {
            let lines = self.frames.get(key(*svma))?;
            lines.first().map(|line| Arc::clone(&line.function.name))
        };
        let names = svmas.iter().map(&mut name).collect();
        self.shrink(None);
        names
    }

    /// Whether kernel frames can be named, and what to do if not.
    pub fn kernel_status(&mut self) -> KernelStatus {
        let kernel = self.kernel.get_or_insert_with(|| Kernel::new(&self.config.kallsyms));
        kernel.status().clone()
    }

    /// To be called when a window has ended: gives back what exceeds the budget or has
    /// not been used for some windows.
    pub fn trim(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            kernel.trim();
        }
        self.stats.evictions += self.binaries.next_window() + self.jits.next_window();
        self.frames.next_window();
        self.functions.sweep();
        self.frames_floor = 0;
        self.shrink(None);
        if self.stats.binaries_opened != self.opened_before_window || self.kernel_is_new {
            return_memory();
        }
        self.opened_before_window = self.stats.binaries_opened;
        self.kernel_is_new = false;
    }

    /// Counters since the start, and how much memory is in use now.
    pub fn stats(&self) -> SymbolizeStats {
        let mut stats = self.stats;
        stats.evictions += self.frames.evictions();
        stats.cache_bytes = self.bytes();
        stats
    }

    fn bytes(&self) -> usize {
        let kernel = self.kernel.as_ref().map_or(0, Kernel::bytes);
        let frames = self.frames.bytes() + self.functions.bytes();
        kernel + frames + self.binaries.bytes() + self.jits.bytes()
    }

    fn shrink_frames(&mut self, budget: usize) {
        self.functions.sweep();
        let share = self.frames.bytes() + self.functions.bytes();
        if share > budget {
            // Functions go with the frames that refer to them.
            let kept = self.frames.bytes() as u128 * budget as u128 * 3 / 4 / share as u128;
            self.frames.shrink_to(usize::try_from(kept).unwrap_or(0));
            self.functions.sweep();
        }
        self.frames_floor = self.frames.bytes() + self.functions.bytes() + budget / 8;
    }

    /// A third of the budget is for frames, the rest for what they are resolved from.
    fn shrink(&mut self, in_use: Option<Identity>) {
        let frames = self.config.cache_bytes / 3;
        if self.frames.bytes() + self.functions.bytes() > frames.max(self.frames_floor) {
            self.shrink_frames(frames);
        }
        let kernel = self.kernel.as_ref().map_or(0, Kernel::bytes);
        let sources = (self.config.cache_bytes - frames).saturating_sub(kernel);
        let (jits, binaries) = (self.jits.bytes(), self.binaries.bytes());
        if jits + binaries > sources {
            // Generated code cannot be read again once its process is gone.
            self.stats.evictions += self.jits.shrink_to(sources / 2);
            let left = sources.saturating_sub(self.jits.bytes());
            self.stats.evictions += self.binaries.shrink_to(left, in_use);
        }
    }
}

/// Reading a binary takes many small allocations; glibc would keep what they took.
fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
