//! Programs with the library loaded, and what can be seen of it in them.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use everflame_tests::allocations::{Allocating, Truth};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

/// Path of `libeverflame_alloc.so` as it is handed out, built with the profile `preload`.
pub(super) fn library() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
        // A folder of its own: cargo holds a lock on the other one, and this is seldom built again.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("preload");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--profile", "preload", "--package", "everflame-alloc"])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "cannot build the library: {status}");
        target.join("preload/libeverflame_alloc.so")
    });
    &LIBRARY
}

/// A program that has it loaded.
pub(super) struct Program {
    allocating: Allocating,
}

impl Program {
    pub(super) fn start(command: &mut Command) -> Self {
        command.env("LD_PRELOAD", library()).env_remove("EVERFLAME_ALLOC_PERIOD");
        Self { allocating: Allocating::start_command(command) }
    }

    pub(super) fn pid(&self) -> u32 {
        self.allocating.pid()
    }

    /// Has it allocate, and waits until it has.
    pub(super) fn allocate(&mut self) -> Vec<Truth> {
        self.allocating.allocate()
    }

    /// Lets it end when it has allocated.
    pub(super) fn end(self) {
        self.allocating.finish();
    }

    /// How many probes are attached, as the library in it sees it.
    pub(super) fn semaphore(&self) -> u16 {
        let bytes = self.read("everflame_alloc_semaphore", 2);
        u16::from_ne_bytes([bytes[0], bytes[1]])
    }

    /// The period that it samples with.
    pub(super) fn period(&self) -> u64 {
        u64::from_ne_bytes(self.read("everflame_alloc_period", 8).try_into().unwrap())
    }

    /// Whether the code of the functions that are probed is what the file has.
    pub(super) fn has_its_own_code(&self) -> bool {
        ["everflame_alloc_sampled", "everflame_free_sampled"].iter().all(|name| {
            let (file, svma) = (std::fs::read(library()).unwrap(), find(name));
            let parsed = object::File::parse(&*file).unwrap();
            let mut segments = parsed.segments();
            let code = segments.find_map(|s| s.data_range(svma, 4).ok().flatten()).unwrap();
            self.read(name, 4) == code
        })
    }

    /// Memory of the library's.
    fn read(&self, symbol: &str, len: usize) -> Vec<u8> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        // The first mapping is that of the file's begin, which has address 0 there.
        let first = maps.lines().find(|line| line.ends_with("/libeverflame_alloc.so"));
        let start = first.and_then(|line| line.split('-').next()).unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let mut bytes = vec![0; len];
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.pid())).unwrap();
        memory.read_exact_at(&mut bytes, start + find(symbol)).unwrap();
        bytes
    }
}

/// Address of a symbol of the library.
fn find(name: &str) -> u64 {
    let file = std::fs::read(library()).unwrap();
    let parsed = object::File::parse(&*file).unwrap();
    let mut symbols = parsed.dynamic_symbols();
    let symbol = symbols.find(|symbol| symbol.name() == Ok(name)).unwrap();
    symbol.address()
}
