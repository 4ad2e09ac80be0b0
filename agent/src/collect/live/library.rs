//! Finds in a file what a profiler of the live heap attaches to: see `alloc/src/abi.rs`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Object as _, ObjectSymbol as _, elf};

/// Larger files are not the library, which is some 100 KiB. It is told by its symbols, not by its name.
const MAX_BYTES: u64 = 1 << 20;

/// Where the library has its probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Library {
    /// Of `everflame_alloc_sampled`, in the file.
    pub(super) allocated_offset: u64,
    /// Of `everflame_free_sampled`, in the file.
    pub(super) freed_offset: u64,
    /// Of `everflame_alloc_semaphore`, in the file.
    pub(super) semaphore_offset: u64,
    /// Of `everflame_alloc_period`, from where the file's byte 0 would be mapped with its code.
    period_distance: u64,
}

impl Library {
    /// What is in this file. `None` if it is not the library.
    pub(super) fn find(file: &File) -> Option<Self> {
        let len = file.metadata().ok()?.len();
        if len > MAX_BYTES {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        file.read_exact_at(&mut bytes, 0).ok()?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let elf = ElfFile64::<object::Endianness>::parse(bytes).ok()?;
        let svma = |name: &[u8]| {
            let mut symbols = elf.dynamic_symbols();
            let symbol = symbols.find(|s| s.is_definition() && s.name_bytes() == Ok(name))?;
            Some(symbol.address())
        };
        let endian = elf.endian();
        let loaded =
            || elf.elf_program_headers().iter().filter(|p| p.p_type(endian) == elf::PT_LOAD);
        let offset = |svma: u64| {
            loaded().find_map(|segment| {
                let within = svma.checked_sub(segment.p_vaddr(endian))?;
                let is_in_file = within < segment.p_filesz(endian);
                is_in_file.then(|| segment.p_offset(endian).wrapping_add(within))
            })
        };
        let allocated_svma = svma(b"everflame_alloc_sampled")?;
        let allocated_offset = offset(allocated_svma)?;
        // Where the code's segment would have the file's first byte.
        let base_svma = allocated_svma.wrapping_sub(allocated_offset);
        Some(Self {
            allocated_offset,
            freed_offset: offset(svma(b"everflame_free_sampled")?)?,
            semaphore_offset: offset(svma(b"everflame_alloc_semaphore")?)?,
            period_distance: svma(b"everflame_alloc_period")?.wrapping_sub(base_svma),
        })
    }

    /// Where a process has the period, by where it has mapped the library's code from.
    pub(super) fn period_avma(&self, code_avma: u64, code_offset: u64) -> u64 {
        code_avma.wrapping_sub(code_offset).wrapping_add(self.period_distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_not_the_library() {
        assert_eq!(Library::parse(b""), None);
        assert_eq!(Library::parse(b"\x7fELF"), None);
        let own = File::open("/proc/self/exe").unwrap();
        assert_eq!(Library::find(&own), None);
    }
}
