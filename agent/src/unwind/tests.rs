//! What processes are told, with maps of the kernel. Like all that needs BPF, this is left out
//! where it is not permitted.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use aya::EbpfLoader;
use aya::maps::{Array, Map};
use everflame_agent_common::limits::CHUNK_PAGES;
use everflame_agent_common::unwind::PlainSign;
use everflame_agent_common::unwind::page::{find_stretch, shard};
use everflame_unwind::Limits;

use super::compiler::Compiler;
use super::evict::LAYOUT_SHARE;
use super::idle::EVICT_AT_ONCE;
use super::key::Key;
use super::layout::Content;
use super::pages::PageStore;
use super::processes::Processes;
use super::tables::{Lookup, Tables};
use super::worker::Message;
use crate::collect::ProcessEvent;
use crate::object::{ObjectFile, ObjectKind};
use crate::process::{Backing, Mapping, ObjectCache, SeededProcess, seed};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("EVERFLAME_BPF_OBJECT"));

/// All but the threads of a worker.
struct Fixture {
    processes: Processes,
    tables: Tables,
    compiler: Compiler,
    /// What the compiler has done.
    inbox: Receiver<Message>,
    now: Instant,
    cpu_ticks: HashMap<u32, u64>,
}

impl Fixture {
    /// Room for so many processes, and one chunk of pages. `None` where BPF is not permitted.
    fn new(max_processes: u32) -> Option<Self> {
        Array::<_, u64>::create(1, 0).ok()?;
        let mut loader = EbpfLoader::new();
        let loader = loader.allow_unsupported_maps().map_max_entries("PROCESSES", max_processes);
        let mut ebpf = loader.load(OBJECT).expect("what it needs is permitted");
        let mut map = |name| -> Map { ebpf.take_map(name).expect("the object has it") };
        let chunks = map("CHUNKS").try_into().expect("an array of arrays");
        let shards = map("SHARDS").try_into().expect("an array");
        let processes = map("PROCESSES").try_into().expect("a hash map");
        let pages = PageStore::new(chunks, 1 << 20).expect("a megabyte");
        let (outbox, inbox) = sync_channel(16);
        Some(Self {
            processes: Processes::new(processes, max_processes),
            tables: Tables::new(pages, shards),
            compiler: Compiler::start(None, Limits::default(), outbox).expect("a thread"),
            inbox,
            now: Instant::now(),
            cpu_ticks: HashMap::new(),
        })
    }

    fn apply(&mut self, time_ns: u64, event: ProcessEvent) {
        self.processes.apply(time_ns, event, &mut self.tables);
    }

    fn publish(&mut self) {
        self.processes.publish(&mut self.tables, &self.compiler);
    }

    fn seed(&mut self, pid: u32) {
        let seeded = SeededProcess {
            pid,
            name: String::new(),
            kernel_thread: false,
            mappings: vec![anonymous(0x1000)],
            executable: None,
        };
        self.apply(1, ProcessEvent::Seed(seeded));
    }

    fn exec(&mut self, time_ns: u64, pid: u32) {
        let name = String::new();
        self.apply(time_ns, ProcessEvent::Comm { pid, tid: pid, name, exec: true });
    }

    fn fork(&mut self, time_ns: u64, parent: u32, pid: u32) {
        self.apply(time_ns, ProcessEvent::Fork { pid, parent });
    }

    fn mmap(&mut self, time_ns: u64, pid: u32, mapping: Mapping) {
        self.apply(time_ns, ProcessEvent::Mmap { pid, mapping });
    }

    fn look(&mut self) {
        let ticks = |pid: u32| Some(self.cpu_ticks.get(&pid).copied().unwrap_or(0));
        self.processes.look(self.now, &self.tables, ticks);
    }

    /// Takes the next table from the compiler. `Some` if layouts have to be written anew.
    fn compiled(&mut self) -> Option<Key> {
        let Ok(Message::Compiled(compiled)) = self.inbox.recv() else {
            panic!("the compiler has ended")
        };
        let key = compiled.key;
        self.tables.compiled(*compiled).then_some(key)
    }

    /// Whether the programs have a layout for this process.
    fn is_told(&self, pid: u32) -> bool {
        self.processes.map.get(&pid, 0).is_ok()
    }

    /// What the layout says of an address: a constant, or a shard's slot.
    fn what(&self, pid: u32, address: u64) -> Option<u32> {
        let [_, root, ..] = self.processes.map.get(&pid, 0).ok()?;
        let page = self.tables.pages.read(u32::try_from(root & 0xffff_ffff).ok()?)?;
        u32::try_from(find_stretch::<PlainSign>(&page, address).what & 0xffff_ffff).ok()
    }
}

fn anonymous(start_avma: u64) -> Mapping {
    Mapping {
        start_avma,
        end_avma: start_avma + 0x1000,
        file_offset: 0,
        backing: Backing::Anonymous,
        path: Arc::from(""),
        mapped_ns: 0,
    }
}

fn this_program() -> Backing {
    let file = File::open(std::env::current_exe().expect("this program")).expect("its file");
    let object = ObjectFile {
        path: String::new(),
        build_id: None,
        kind: ObjectKind::Elf { file: Some(file) },
    };
    Backing::Object(Arc::new(object))
}

const UNMAPPED: Option<u32> = Some(shard::UNMAPPED);
const CODE: Option<u32> = Some(shard::FRAME_POINTER);
const PENDING: Option<u32> = Some(shard::PENDING);

#[test]
fn records_of_one_batch_yield_the_layouts_of_its_end() {
    let Some(mut it) = Fixture::new(64) else { return };
    it.exec(10, 1);
    it.mmap(11, 1, anonymous(0x10000));
    it.publish();
    assert_eq!((it.what(1, 0x10000), it.what(1, 0x20000)), (CODE, UNMAPPED));

    it.fork(20, 1, 2);
    assert!(!it.is_told(2), "it may have become another program by now");
    it.exec(30, 2);
    it.mmap(31, 2, anonymous(0x20000));
    it.fork(40, 2, 3);
    it.mmap(41, 2, anonymous(0x30000));
    it.apply(50, ProcessEvent::Exit { pid: 2 });
    it.fork(60, 1, 4);
    it.publish();
    assert!(!it.is_told(2));
    let of_3 = [0x10000, 0x20000, 0x30000].map(|address| it.what(3, address));
    assert_eq!(of_3, [UNMAPPED, CODE, UNMAPPED], "what its parent was when it was forked");
    assert_eq!(it.what(4, 0x10000), CODE);

    // Told of late, by another CPU's buffer.
    it.fork(5, 3, 1);
    it.apply(5, ProcessEvent::Exit { pid: 4 });
    it.publish();
    assert_eq!((it.what(1, 0x10000), it.what(4, 0x10000)), (CODE, CODE));
}

#[test]
fn copies_get_what_is_told_too_late_of_their_parent() {
    let Some(mut it) = Fixture::new(64) else { return };
    it.exec(10, 1);
    it.mmap(11, 1, anonymous(0x10000));
    it.fork(20, 1, 2);
    it.fork(40, 2, 3);
    it.fork(50, 2, 4);
    it.exec(60, 4);
    it.publish();
    assert_eq!(it.what(3, 0x10000), CODE);

    // From the buffer of a CPU that 2 ran on before it made its copies.
    it.exec(30, 2);
    it.mmap(31, 2, anonymous(0x20000));
    it.mmap(41, 2, anonymous(0x30000));
    it.publish();
    let memory = [0x10000, 0x20000, 0x30000];
    assert_eq!(memory.map(|address| it.what(2, address)), [UNMAPPED, CODE, CODE]);
    assert_eq!(memory.map(|address| it.what(3, address)), [UNMAPPED, CODE, UNMAPPED]);
    assert!(!it.is_told(4), "another program, with nothing mapped yet");
}

#[test]
fn process_that_was_refused_is_told_once_there_is_room_and_it_runs() {
    let Some(mut it) = Fixture::new(4) else { return };
    for pid in 1..=6 {
        it.seed(pid);
    }
    it.publish();
    let refused: Vec<u32> = (1..=6).filter(|pid| !it.is_told(*pid)).collect();
    assert_eq!((refused.len(), it.tables.stats.processes_refused), (2, 2));
    assert_eq!(it.tables.layout_pages, 4, "refused layouts take no pages");
    let told = (1..=6).find(|pid| it.is_told(*pid)).expect("four are told");

    it.look();
    it.apply(5, ProcessEvent::Exit { pid: told });
    it.publish();
    it.look();
    it.publish();
    assert!(!it.is_told(refused[0]), "it does not run");
    it.cpu_ticks.insert(refused[0], 1);
    it.look();
    it.publish();
    assert_eq!([it.is_told(refused[0]), it.is_told(refused[1])], [true, false]);

    // The other one runs, too, and all that were told are idle for long enough.
    it.cpu_ticks.insert(refused[1], 1);
    it.now -= Duration::from_secs(60);
    it.processes.by_pid.values_mut().for_each(|process| process.activity = None);
    it.look();
    it.now += Duration::from_secs(60);
    it.cpu_ticks.insert(refused[1], 2);
    it.look();
    it.publish();
    assert!(it.is_told(refused[1]), "one that is idle has made room");
    assert!(it.tables.stats.layouts_evicted > 0);
}

#[test]
fn idle_layouts_make_room_within_their_share_of_the_budget() {
    let Some(mut it) = Fixture::new(1024) else { return };
    let share = CHUNK_PAGES / 2;
    assert_eq!(it.tables.max_layout_pages(), CHUNK_PAGES as usize / LAYOUT_SHARE);
    for pid in 1..=share {
        it.seed(pid);
    }
    it.publish();
    assert_eq!((it.processes.told(), it.processes.dormant.len()), (share as usize, 0));

    it.seed(500);
    it.publish();
    assert!(!it.is_told(500), "nobody has been idle as far as is known");
    assert!(it.tables.pages.available() >= share as usize - 1, "the rest is for rows");
    assert_eq!((it.tables.stats.over_budget, it.processes.dormant.len()), (1, 1));

    // Half a minute ago nobody ran; since then all but the first ones have.
    it.now = Instant::now().checked_sub(Duration::from_secs(30)).expect("a machine that is up");
    it.look();
    it.now = Instant::now();
    it.cpu_ticks = (8..=share).map(|pid| (pid, 7)).collect();
    it.cpu_ticks.insert(500, 1);
    it.look();
    it.publish();
    assert!(it.is_told(500), "it has been seen to run");
    let evicted: Vec<u32> = (1..=share).filter(|pid| !it.is_told(*pid)).collect();
    assert_eq!(evicted, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(it.tables.stats.layouts_evicted, 7);
    assert_eq!(it.tables.layout_pages, share as usize - 7 + 1);

    it.cpu_ticks.insert(3, 1);
    it.look();
    it.publish();
    assert!(it.is_told(3), "it runs again");
    for pid in (1..=share).chain([500]) {
        it.apply(9, ProcessEvent::Exit { pid });
    }
    assert_eq!((it.tables.layout_pages, it.processes.told()), (0, 0));
}

#[test]
fn busy_processes_keep_a_layout_that_they_share_with_idle_ones() {
    let Some(mut it) = Fixture::new(8) else { return };
    it.seed(1);
    it.publish();
    for pid in 2..=8 {
        it.fork(2, 1, pid);
    }
    it.publish();
    assert_eq!((it.processes.told(), it.tables.layout_pages), (8, 1));
    it.seed(9);
    it.publish();
    it.now = Instant::now().checked_sub(Duration::from_secs(30)).expect("a machine that is up");
    it.look();
    it.now = Instant::now();
    it.cpu_ticks.insert(4, 1);
    it.cpu_ticks.insert(9, 1);
    it.look();
    it.publish();
    assert!(!it.is_told(9) && (1..=8).all(|pid| it.is_told(pid)));
}

#[test]
fn table_that_comes_late_reaches_all_that_share_a_layout() {
    let Some(mut it) = Fixture::new(8) else { return };
    let backing = this_program();
    it.exec(1, 1);
    it.mmap(2, 1, Mapping { backing, ..anonymous(0x10000) });
    it.publish();
    assert_eq!(it.what(1, 0x10000), PENDING);
    it.fork(3, 1, 2);
    // A daemon's parent is gone before its table is there.
    it.apply(4, ProcessEvent::Exit { pid: 1 });
    it.publish();
    assert_eq!(it.what(2, 0x10000), PENDING);
    let key = it.compiled().expect("layouts are to be written anew");
    it.processes.mark(key);
    it.publish();
    assert!(it.is_told(2));
    assert_ne!(it.what(2, 0x10000), PENDING);
}

#[test]
fn large_tables_are_loaded_when_a_stack_meets_them() {
    let Some(mut it) = Fixture::new(8) else { return };
    let address = large_tables_are_loaded_when_a_stack_meets_them as fn() as usize as u64;
    let seeded = seed(std::process::id(), &mut ObjectCache::default()).expect("this process");
    let covers = |mapping: &Mapping| (mapping.start_avma..mapping.end_avma).contains(&address);
    let mapping = seeded.mappings.into_iter().find(covers).expect("this program");
    it.tables.content(&mapping, Some(&it.compiler));
    it.compiled();
    it.tables.update_stats();
    assert_eq!((it.tables.stats.tables, it.tables.stats.shards), (1, 0), "known and not loaded");
    let Content::Shards(slots) = it.tables.content(&mapping, None) else { panic!("not known") };
    let [root, extent, _] = it.tables.shards.get(&slots[0].slot, 0).expect("within the map");
    let expected = u64::from(slots[0].start_offset) | u64::from(slots[0].end_offset) << 32;
    assert_eq!((root, extent), (0, expected), "programs know that there is something to load");

    // A stack waits until it is.
    assert!(matches!(it.tables.look_up(&mapping, address, &it.compiler), Lookup::Wait));
    it.compiled();
    assert!(matches!(it.tables.look_up(&mapping, address, &it.compiler), Lookup::Rule(_)));
    it.tables.update_stats();
    assert!(it.tables.stats.shards > 0);
}

#[test]
fn no_more_layouts_are_evicted_at_once_than_is_worth_it() {
    let Some(mut it) = Fixture::new(1024) else { return };
    let share = CHUNK_PAGES / 2;
    for pid in 1..=share {
        it.seed(pid);
    }
    it.publish();
    it.now = Instant::now().checked_sub(Duration::from_secs(30)).expect("a machine that is up");
    it.look();
    it.seed(500);
    it.publish();
    assert!(it.is_told(500));
    assert_eq!(it.processes.told(), share as usize - EVICT_AT_ONCE + 1);
}
