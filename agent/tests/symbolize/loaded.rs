//! Data of a process that is there: this one, and a library that it loads.

use std::ffi::{CString, c_void};
use std::process;
use std::ptr;
use std::sync::atomic::AtomicU32;

use everflame_agent::collect::ProcessEvent;
use everflame_agent::process::{ObjectCache, ProcessTable, seed};

use crate::binary::{Built, symbolizer};

static LOCK: AtomicU32 = AtomicU32::new(0);
static INITIALISED: AtomicU32 = AtomicU32::new(7);

/// A library in this process's memory.
struct Library(*mut c_void);

impl Library {
    fn load(built: &Built) -> Self {
        let path = CString::new(built.path.to_str().unwrap()).unwrap();
        // SAFETY: the library has nothing in it that runs when it is loaded.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null());
        Self(handle)
    }

    fn address(&self, name: &str) -> u64 {
        let name = CString::new(name).unwrap();
        // SAFETY: the handle is of a library that is loaded, the name ends in NUL.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!address.is_null());
        address.addr() as u64
    }

    fn unload(self) {
        // SAFETY: no reference into the library exists.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0);
    }
}

struct This(ProcessTable);

impl This {
    fn new() -> Self {
        let seeded = seed(process::id(), &mut ObjectCache::default()).unwrap();
        let mut table = ProcessTable::default();
        table.apply(1, ProcessEvent::Seed(seeded));
        Self(table)
    }

    fn name_of(&mut self, avma: u64, now_ns: u64) -> Option<String> {
        let place = self.0.get_mut(process::id()).data_place(process::id(), avma, now_ns)?;
        let name = symbolizer().data(&place.object, &[place.svma]).remove(0);
        // Nothing here is stripped.
        Some(name.unwrap().to_string())
    }
}

#[test]
fn variables_of_this_program_are_named_but_not_its_heap_or_stack() {
    let mut this = This::new();
    for (variable, name) in [(&LOCK, "LOCK"), (&INITIALISED, "INITIALISED")] {
        let found = this.name_of(ptr::from_ref(variable).addr() as u64, 1);
        assert_eq!(found, Some(format!("symbolize::loaded::{name}")));
    }
    let stack = AtomicU32::new(0);
    let heap = [Box::new(AtomicU32::new(0))];
    let large = vec![0_u8; 1 << 20];
    for address in
        [ptr::from_ref(&stack).addr(), ptr::from_ref(&*heap[0]).addr(), large[9..].as_ptr().addr()]
    {
        assert_eq!(this.name_of(address as u64, 1), None);
    }
}

const LIBRARY_C: &str = "int lock = 1; char large[1 << 20]; int code(void) { return lock; }";

fn library() -> Built {
    Built::new("library.c", LIBRARY_C, &["gcc", "-shared", "-fPIC"])
}

#[test]
fn memory_where_a_library_was_is_not_taken_for_it() {
    let built = library();
    let loaded = Library::load(&built);
    let (lock, large) = (loaded.address("lock"), loaded.address("large"));
    let addresses = [(lock, "lock"), (large, "large"), (large + (1 << 19), "large+0x80000")];
    // Taken now, asked later: nobody tells of unmapping.
    let mut before = This::new();
    let mut asked = This::new();
    for (address, name) in addresses {
        assert_eq!(asked.name_of(address, 1).as_deref(), Some(name));
    }
    loaded.unload();
    let length = 1 << 20;
    let wanted = ptr::without_provenance_mut(usize::try_from(large).unwrap() & !4095);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: it replaces nothing. Where another thread was faster, that one's memory is there.
    unsafe { libc::mmap(wanted, length, protection, flags, -1, 0) };
    for (address, _) in addresses {
        assert_eq!(before.name_of(address, 1), None);
    }
    assert_eq!(asked.name_of(lock, 1).as_deref(), Some("lock"), "an answer is kept");
}

#[test]
fn maps_are_not_read_without_end() {
    let built = library();
    let loaded = Library::load(&built);
    let large = loaded.address("large");
    let mut this = This::new();
    let mut named = |from: u64, now_ns| {
        (from..from + 100).filter(|offset| this.name_of(large + offset, now_ns).is_some()).count()
    };
    assert_eq!(named(0, 1), 64);
    assert_eq!(named(0, 2), 64, "these are known, and no others");
    assert_eq!(named(0, 20_000_000_000), 100, "later there is time for more");
}
