//! Heaps of processes that there are not.

use everflame_agent_common::live::{RESTORED, WILL_BE_FREED};

use super::*;
use crate::collect::ProcessEvent;
use crate::object::{ObjectFile, ObjectKind};
use crate::process::{Process, ProcessTable};

/// Processes, whose generations nobody else can make.
#[derive(Default)]
struct Host(ProcessTable);

impl Host {
    fn program(&mut self, pid: u32) -> (u32, Generation) {
        let Process { generation, .. } = self.0.get_mut(pid);
        (pid, *generation)
    }

    fn fork(&mut self, pid: u32, parent: u32) -> (u32, Generation) {
        self.0.apply(0, ProcessEvent::Fork { pid, parent });
        self.program(pid)
    }
}

fn object(address: u64, size: u64) -> Allocated {
    Allocated { address, size, period: 1 << 10, flags: WILL_BE_FREED }
}

fn ranges() -> Vec<MappedRange> {
    let object = Arc::new(ObjectFile {
        path: "/bin/app".to_owned(),
        build_id: None,
        kind: ObjectKind::Elf { file: None },
    });
    vec![MappedRange { object, start: 0, end: 0x1000 }]
}

fn stack(leaf: u64) -> [Frame; 2] {
    [Frame { range: 0, address: leaf }, Frame { range: Frame::UNMAPPED, address: 1 }]
}

/// Allocates an object of a KiB in a function that is known by its address.
fn allocate(heaps: &mut LiveHeaps, program: (u32, Generation), address: u64, leaf: u64) {
    let id = heaps.allocated(program, address, &object(address, 1 << 10)).unwrap();
    heaps.set_stack(id, &stack(leaf), &ranges());
}

/// Objects that are held by each function, in tenths.
fn held(heaps: &LiveHeaps, pid: u32) -> Vec<(u64, u64)> {
    let tenths = |totals: &HeapTotals| (totals.held_objects * 10.0).round() as u64;
    let mut held: Vec<_> = heaps
        .held(pid, 1000)
        .iter()
        .map(|(stack, totals)| (stack[0].address, tenths(totals)))
        .collect();
    held.sort_unstable();
    held
}

#[test]
fn an_object_stands_for_the_inverse_of_its_probability() {
    // Many times the period: itself. Far below it: period / size.
    let of = Weights::of;
    assert!((of(1 << 20, 1 << 10).objects - 1.0).abs() < 1e-9);
    assert!((of(1, 1 << 20).bytes / f64::from(1 << 20) - 1.0).abs() < 1e-6);
    let half = of(1 << 10, 1 << 10);
    assert!((half.objects - 1.0 / (1.0 - (-1.0f64).exp())).abs() < 1e-12);
    assert!((half.bytes - half.objects * 1024.0).abs() < 1e-9);
    // What a broken process may say.
    assert!(of(0, 0).bytes.is_finite());
}

#[test]
fn what_was_freed_is_not_held() {
    let (mut heaps, mut host) = (LiveHeaps::default(), Host::default());
    let program = host.program(7);
    allocate(&mut heaps, program, 100, 0xa);
    allocate(&mut heaps, program, 200, 0xa);
    allocate(&mut heaps, program, 300, 0xb);
    heaps.freed(program, 200);
    // 1 / (1 - 1 / e) = 1.58.
    assert_eq!(held(&heaps, 7), [(0xa, 16), (0xb, 16)]);
    let oldest = heaps.held(7, 1000).iter().map(|(_, totals)| totals.oldest_ns).max();
    assert_eq!(oldest, Some(900));
    heaps.freed(program, 200);
    heaps.freed(host.program(8), 100);
    let stats = heaps.stats();
    assert_eq!((stats.objects, stats.heaps, stats.unknown_ends), (2, 1, 2));
}

#[test]
fn stack_that_comes_after_the_end_of_its_object_is_nobodys() {
    let (mut heaps, mut host) = (LiveHeaps::default(), Host::default());
    let program = host.program(7);
    let first = heaps.allocated(program, 1, &object(100, 8)).unwrap();
    assert_eq!(held(&heaps, 7), [], "its stack is not known yet");
    heaps.freed(program, 100);
    let second = heaps.allocated(program, 2, &object(100, 8)).unwrap();
    heaps.set_stack(first, &stack(0xa), &ranges());
    assert_eq!(held(&heaps, 7), []);
    heaps.set_stack(second, &stack(0xb), &ranges());
    assert_eq!(held(&heaps, 7)[0].0, 0xb);
}

#[test]
fn child_of_fork_holds_copies() {
    let (mut heaps, mut host) = (LiveHeaps::default(), Host::default());
    let parent = host.program(7);
    allocate(&mut heaps, parent, 100, 0xa);
    let late = heaps.allocated(parent, 2, &object(200, 1 << 10)).unwrap();
    let child = host.fork(8, 7);
    heaps.forked(child, parent);
    assert_eq!(heaps.stats().objects, 2, "shared");
    heaps.set_stack(late, &stack(0xb), &ranges());
    assert_eq!(held(&heaps, 8), held(&heaps, 7));
    heaps.freed(child, 100);
    assert_eq!(held(&heaps, 8), [(0xb, 16)]);
    assert_eq!(held(&heaps, 7), [(0xa, 16), (0xb, 16)]);
    assert_eq!(heaps.stats().objects, 3);
    heaps.ended(7);
    assert_eq!(heaps.stats().objects, 1);
    heaps.ended(8);
    heaps.collect();
    assert_eq!(heaps.stats(), LiveStats::default());
}

#[test]
fn another_program_begins_with_nothing() {
    let (mut heaps, mut host) = (LiveHeaps::default(), Host::default());
    let before = host.program(7);
    allocate(&mut heaps, before, 100, 0xa);
    let name = "other".to_owned();
    host.0.apply(1, ProcessEvent::Comm { pid: 7, tid: 7, name, exec: true });
    let after = host.program(7);
    assert_ne!(before, after);
    heaps.freed(after, 100);
    assert_eq!(heaps.stats().unknown_ends, 1, "the other program's");
    allocate(&mut heaps, after, 300, 0xb);
    assert_eq!(held(&heaps, 7), [(0xb, 16)]);
    assert_eq!(heaps.stats().objects, 1);
}

#[test]
fn object_whose_realloc_failed_is_what_it_was() {
    let (mut heaps, mut host) = (LiveHeaps::default(), Host::default());
    let program = host.program(7);
    allocate(&mut heaps, program, 100, 0xa);
    heaps.freed(program, 100);
    let again = Allocated { flags: WILL_BE_FREED | RESTORED, ..object(100, 1 << 10) };
    heaps.restored(program, &again);
    assert_eq!(held(&heaps, 7), [(0xa, 16)]);
    assert_eq!(heaps.held(7, 1000)[0].1.oldest_ns, 900);
    // One that was there before anybody looked.
    heaps.restored(program, &Allocated { address: 500, ..again });
    assert_eq!(heaps.stats().objects, 1);
}

#[test]
fn objects_whose_end_will_not_be_told_are_not_followed() {
    let (mut heaps, mut host) = (LiveHeaps::default(), Host::default());
    let program = host.program(7);
    assert_eq!(heaps.allocated(program, 1, &Allocated { flags: 0, ..object(100, 8) }), None);
    assert_eq!((heaps.stats().objects, heaps.stats().refused), (0, 1));
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let (mut heaps, mut host) = (LiveHeaps::with_limit(64 << 10), Host::default());
    let program = host.program(7);
    for address in 1..10_000 {
        if let Some(id) = heaps.allocated(program, 1, &object(address, 8)) {
            heaps.set_stack(id, &stack(address), &ranges());
        }
    }
    let full = heaps.stats();
    // A stack may come in above.
    assert!(full.bytes <= (64 << 10) + 256 && full.objects > 100, "{full:?}");
    assert_eq!(full.objects as u64 + full.refused, 9_999);
    // To copy the table for a child would be too much: it begins with nothing.
    let child = host.fork(8, 7);
    heaps.forked(child, program);
    heaps.freed(child, 1);
    assert_eq!((held(&heaps, 8), held(&heaps, 7).len()), (vec![], full.objects));
    assert_eq!(heaps.stats().refused, full.refused + full.objects as u64);
    heaps.ended(7);
    allocate(&mut heaps, program, 100, 0xa);
    assert_eq!(held(&heaps, 7).len(), 1);
    heaps.collect();
    assert!(heaps.stats().bytes < 1 << 10, "{:?}", heaps.stats());
}
