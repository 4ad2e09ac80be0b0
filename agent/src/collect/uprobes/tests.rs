//! Probes on a program of our own, counted. Like all that needs BPF, this is left out where it is not
//! permitted.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use aya::EbpfLoader;
use aya::maps::{Array, PerCpuArray};
use everflame_agent_common::stats::{Counter, Program, slot};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

use super::*;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("EVERFLAME_BPF_OBJECT"));

/// A program that does as it is told and can be told apart from all others: itself, in a test that
/// is not one.
const TOLD: &str = "EVERFLAME_TEST_CALLS";

/// What is probed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn everflame_test_probed(size: u64) -> u64 {
    std::hint::black_box(size)
}

/// Calls the function as often as the environment says, when told to by a byte on standard input.
#[test]
fn calls_what_is_probed() {
    let Ok(calls) = std::env::var(TOLD) else { return };
    let mut byte = [0];
    std::io::stdin().read_exact(&mut byte).expect("a byte");
    for call in 0..calls.parse().expect("a number") {
        everflame_test_probed(call);
    }
}

struct Caller(Child);

impl Caller {
    fn start(calls: u64) -> Self {
        let test = "collect::uprobes::tests::calls_what_is_probed";
        let child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", test])
            .env(TOLD, calls.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("it starts"))
    }

    /// Waits for it to end.
    fn finish(mut self) {
        let mut stdin = self.0.stdin.take().expect("piped");
        stdin.write_all(b"\n").expect("it reads");
        assert!(self.0.wait().expect("it ends").success());
    }
}

fn site() -> Site {
    let binary = std::fs::read("/proc/self/exe").expect("this program");
    let file = object::File::parse(&*binary).expect("an ELF file");
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok("everflame_test_probed"));
    let address = symbol.expect("it has symbols").address();
    let segment = file
        .segments()
        .find(|segment| (segment.address()..segment.address() + segment.size()).contains(&address))
        .expect("it is loaded");
    let offset = address - segment.address() + segment.file_range().0;
    Site { offset, ..Site::default() }
}

/// What one test calls is counted by another one that probes all processes: one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// How many runs of the program there are while `caller` and another one make their calls.
fn counted(form: UprobeForm, for_all: bool) -> Option<u64> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Array::<_, u64>::create(1, 0).ok()?;
    let mut loader = EbpfLoader::new();
    let mut ebpf = loader.allow_unsupported_maps().load(OBJECT).expect("it is permitted");
    let program = match form {
        UprobeForm::Multi => UprobeProgram::load(&mut ebpf, OBJECT, "allocation"),
        UprobeForm::PerfEvents => UprobeProgram::load_for_events(&mut ebpf, "allocation"),
    };
    let program = program.expect("the kernel takes it");
    println!("asked for {form:?}, got {:?}", program.form());
    let stats = ebpf.take_map("STATS").expect("counters");
    let stats = PerCpuArray::<_, u64>::try_from(stats).expect("of each CPU");
    let runs = || -> u64 {
        let runs = stats.get(&slot(Program::Allocation, Counter::Runs), 0);
        runs.expect("a counter").iter().sum()
    };
    let (caller, other) = (Caller::start(1000), Caller::start(100));
    let pid = caller.0.id();
    let file = PathBuf::from(format!("/proc/{pid}/exe"));
    let pid = (!for_all).then_some(pid);
    let uprobes = program.attach(&file, &[site()], pid).expect("it is attached");
    assert_eq!(uprobes.links(), 1);
    caller.finish();
    other.finish();
    let counted = runs();
    drop(uprobes);
    Caller::start(10).finish();
    assert_eq!(runs(), counted, "detached");
    Some(counted)
}

#[test]
fn process_is_probed_and_others_are_not() {
    for form in [UprobeForm::Multi, UprobeForm::PerfEvents] {
        let Some(runs) = counted(form, false) else { return };
        assert_eq!(runs, 1000, "{form:?}");
    }
}

#[test]
fn all_processes_are_probed() {
    for form in [UprobeForm::Multi, UprobeForm::PerfEvents] {
        let Some(runs) = counted(form, true) else { return };
        assert_eq!(runs, 1100, "{form:?}");
    }
}
