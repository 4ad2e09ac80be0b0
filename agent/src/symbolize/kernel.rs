//! Kernel functions, from `/proc/kallsyms`.
//!
//! kallsyms gives no sizes, so a function ends where the next symbol of any kind starts,
//! and one that has no successor in its own module at most [`MAX_TAIL`] further on. Its
//! lines are read into tables of our own instead of blazesym's: those keep data symbols
//! as functions, drop module names, resolve every address past the last symbol to that
//! symbol, and take three times the memory.
//!
//! The kernel's own functions never move. Those of modules and BPF programs come and go,
//! so they are read again now and then (reading all of kallsyms takes about 20 ms).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::kallsyms::{self, Kallsyms, is_kernel_address};

/// Whether kernel frames can be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelStatus {
    /// They can.
    Available {
        /// How many functions are known.
        functions: usize,
    },
    /// kallsyms can be read, but all its addresses are zero.
    HiddenByKptrRestrict,
    /// kallsyms cannot be read: no procfs, or a kernel without `CONFIG_KALLSYMS`.
    NoKallsyms {
        /// The path that was tried.
        path: PathBuf,
        /// What the kernel said.
        error: io::ErrorKind,
    },
}

impl fmt::Display for KernelStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available { functions } => write!(f, "{functions} kernel functions"),
            Self::HiddenByKptrRestrict => f.write_str(
                "the kernel hides its symbols from this process: grant CAP_SYSLOG and set \
                 `sysctl kernel.kptr_restrict` to 0 or 1",
            ),
            Self::NoKallsyms { path, error } => write!(
                f,
                "cannot read `{}` ({error}): mount procfs and use a kernel with CONFIG_KALLSYMS",
                path.display()
            ),
        }
    }
}

/// What a kernel address is in.
pub(super) struct KernelSymbol<'a> {
    /// The symbol as kallsyms lists it.
    pub(super) system_name: &'a [u8],
    /// The name for people, where it is another: with the module, or a BPF program's own.
    pub(super) readable: Option<String>,
}

pub(super) struct Kernel {
    kallsyms: PathBuf,
    tables: Option<Kallsyms>,
    status: KernelStatus,
    /// Counts changes of `tables.loadable`; names found before may be wrong after.
    generation: u32,
    /// Windows since the loadable symbols were read.
    age: u32,
    /// Windows to wait before an unknown address is a reason to read them again; doubles
    /// when that did not help.
    patience: u32,
}

/// Real ones have 8 MiB.
const MAX_KALLSYMS_BYTES: u64 = 64 << 20;
/// How old what is known of modules may be, in windows.
const MAX_AGE: u32 = 6;
const MAX_PATIENCE: u32 = 64;

impl Kernel {
    pub(super) fn new(kallsyms: &Path) -> Self {
        let mut kernel = Self {
            kallsyms: kallsyms.to_owned(),
            tables: None,
            status: KernelStatus::HiddenByKptrRestrict,
            generation: 0,
            age: 0,
            patience: 1,
        };
        kernel.load();
        kernel
    }

    pub(super) fn status(&self) -> &KernelStatus {
        &self.status
    }

    pub(super) fn bytes(&self) -> usize {
        self.tables.as_ref().map_or(0, |tables| tables.core.bytes() + tables.loadable.bytes())
    }

    /// Which state of modules and BPF programs a name of `address` was or will be found
    /// in: 0 for the kernel's own code, which does not change.
    pub(super) fn generation(&self, address: u64) -> u32 {
        if self.is_core(address) { 0 } else { self.generation + 1 }
    }

    fn is_core(&self, address: u64) -> bool {
        self.tables.as_ref().is_some_and(|tables| tables.core.spans(address))
    }

    /// A window has ended.
    pub(super) fn trim(&mut self) {
        self.age = self.age.saturating_add(1);
    }

    /// Reads modules and BPF programs again if what is known of them is old, or seems to
    /// lack one of these addresses.
    pub(super) fn refresh(&mut self, addresses: &[u64]) {
        let Some(tables) = &self.tables else { return };
        let mut loadable =
            addresses.iter().filter(|address| !tables.core.spans(**address)).peekable();
        if loadable.peek().is_none() {
            return;
        }
        let unknown = |tables: &Kallsyms| {
            addresses.iter().any(|address| {
                is_kernel_address(*address)
                    && !tables.core.spans(*address)
                    && tables.loadable.lookup(*address).is_none()
            })
        };
        let missing = unknown(tables);
        if self.age < MAX_AGE && !(missing && self.age >= self.patience) {
            return;
        }
        self.load();
        let helped = self.tables.as_ref().is_some_and(|tables| !unknown(tables));
        self.patience = if helped { 1 } else { (self.patience * 2).min(MAX_PATIENCE) };
    }

    /// The function at `address`.
    pub(super) fn lookup(&self, address: u64) -> Option<KernelSymbol<'_>> {
        let tables = self.tables.as_ref()?;
        let listed = tables.core.lookup(address).or_else(|| tables.loadable.lookup(address))?;
        let mut parts = listed.splitn(2, |byte| *byte == b'\t');
        let system_name = parts.next()?;
        let readable = parts.next().map(|module| readable_name(system_name, module));
        Some(KernelSymbol { system_name, readable })
    }

    fn load(&mut self) {
        self.age = 0;
        let file = match File::open(&self.kallsyms) {
            Ok(file) => file,
            Err(error) => {
                let path = self.kallsyms.clone();
                self.status = KernelStatus::NoKallsyms { path, error: error.kind() };
                return;
            }
        };
        // What is known of the kernel itself stays; only the rest can change.
        match kallsyms::read(file.take(MAX_KALLSYMS_BYTES), self.tables.is_none()) {
            Ok(read) if read.all_zero => self.status = KernelStatus::HiddenByKptrRestrict,
            Ok(mut read) => {
                if let Some(known) = self.tables.take() {
                    if known.loadable_digest != read.loadable_digest {
                        self.generation = self.generation.wrapping_add(1);
                    }
                    read.core = known.core;
                }
                let functions = read.core.len() + read.loadable.len();
                self.status = KernelStatus::Available { functions };
                self.tables = Some(read);
            }
            Err(error) => {
                let path = self.kallsyms.clone();
                self.status = KernelStatus::NoKallsyms { path, error: error.kind() };
            }
        }
    }
}

/// `bpf_prog_6deef7357e7b4530_sd_fw_ingress` of `[bpf]` is `sd_fw_ingress [bpf]`: the tag
/// is a hash of the program, which would tell versions of one program apart.
fn readable_name(system_name: &[u8], module: &[u8]) -> String {
    let name = String::from_utf8_lossy(system_name);
    let own = name
        .strip_prefix("bpf_prog_")
        .and_then(|rest| rest.split_once('_'))
        .filter(|(tag, own)| tag.len() == 16 && !own.is_empty())
        .map_or(&*name, |(_, own)| own);
    format!("{own} {}", String::from_utf8_lossy(module))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::kallsyms::MAX_TAIL;
    use super::*;

    const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
0000000000035000 A __per_cpu_end
ffffffff81000000 T _text
ffffffff81000000 t do_first
ffffffff81000100 W weak_alias
ffffffff81000100 T __global_alias
ffffffff81000100 T global_alias
ffffffff81000200 D some_data
ffffffff81000300 T second
ffffffff81000400 T _etext
ffffffff82000000 D more_data
ffffffffc0000000 t mod_read\t[mymod]
ffffffffc0000100 d mod_data\t[mymod]
ffffffffc0100000 t bpf_prog_6deef7357e7b4530_on_switch\t[bpf]
";

    fn kernel(kallsyms: &str) -> (Kernel, tempfile::NamedTempFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(kallsyms.as_bytes()).unwrap();
        (Kernel::new(file.path()), file)
    }

    fn check(kernel: &Kernel, address: u64, expected: Option<&str>) {
        let name = kernel.lookup(address).map(|symbol| {
            symbol.readable.unwrap_or_else(|| String::from_utf8_lossy(symbol.system_name).into())
        });
        assert_eq!(name.as_deref(), expected, "{address:#x}");
    }

    #[test]
    fn address_resolves_to_the_function_around_it() {
        let (kernel, _file) = kernel(KALLSYMS);
        check(&kernel, 0xffff_ffff_8100_0000, Some("do_first"));
        check(&kernel, 0xffff_ffff_8100_00ff, Some("do_first"));
        check(&kernel, 0xffff_ffff_8100_01ff, Some("global_alias"));
        check(&kernel, 0xffff_ffff_8100_0300, Some("second"));
    }

    #[test]
    fn address_outside_is_unresolved() {
        let (kernel, _file) = kernel(KALLSYMS);
        for address in [
            0,
            0x1000,
            0x7fff_0000_0000,
            0xffff_ffff_80ff_ffff,
            0xffff_ffff_8100_0200,
            0xffff_ffff_8100_0400,
            0xffff_ffff_8200_0000,
            0xffff_ffff_c000_0100,
            0xffff_ffff_c010_0000 + MAX_TAIL,
            u64::MAX,
        ] {
            check(&kernel, address, None);
        }
    }

    #[test]
    fn modules_and_bpf_programs_are_named() {
        let (kernel, _file) = kernel(KALLSYMS);
        check(&kernel, 0xffff_ffff_c000_0010, Some("mod_read [mymod]"));
        check(&kernel, 0xffff_ffff_c010_0010, Some("on_switch [bpf]"));
    }

    #[test]
    fn hidden_addresses_are_reported_with_the_way_out() {
        let (kernel, _file) = kernel("0000000000000000 T _text\n0000000000000000 t do_first\n");
        assert_eq!(kernel.status(), &KernelStatus::HiddenByKptrRestrict);
        assert!(kernel.status().to_string().contains("CAP_SYSLOG"));
        check(&kernel, 0xffff_ffff_8100_0000, None);
    }

    #[test]
    fn missing_kallsyms_is_reported() {
        let kernel = Kernel::new(Path::new("/nonexistent/kallsyms"));
        assert!(matches!(kernel.status(), KernelStatus::NoKallsyms { .. }));
        check(&kernel, 0xffff_ffff_8100_0000, None);
    }

    #[test]
    fn program_loaded_later_is_found_after_a_window() {
        let (mut kernel, mut file) = kernel(KALLSYMS);
        let address = 0xffff_ffff_c020_0000_u64;
        let before = kernel.generation(address);
        writeln!(file, "{address:x} t bpf_prog_0123456789abcdef_late\t[bpf]").unwrap();
        kernel.refresh(&[address]);
        check(&kernel, address, None);
        kernel.trim();
        kernel.refresh(&[address]);
        check(&kernel, address, Some("late [bpf]"));
        assert_ne!(kernel.generation(address), before);
        check(&kernel, 0xffff_ffff_8100_0300, Some("second"));
    }
}
