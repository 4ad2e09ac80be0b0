//! Programs that start, as the side-band tells of them. Like all that needs rights, this is left out where it is not
//! permitted.

use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::collect::host::online_cpus;

/// Whether anybody is woken within this time.
fn is_woken(sideband: &Sideband, within: Duration) -> bool {
    let descriptors: Vec<_> = sideband.descriptors().map(|(_, descriptor)| descriptor).collect();
    let mut waiting: Vec<PollFd<'_>> =
        descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)).collect();
    let within = Timespec::try_from(within).unwrap();
    poll(&mut waiting, Some(&within)).unwrap() > 0
}

/// Starts a program, and returns its process id when it has ended.
fn run() -> u32 {
    let mut child = Command::new("/bin/true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

/// Whether the records say that a process was started, has mapped its program, and is gone.
fn tells_of(sideband: &mut Sideband, wanted: u32) -> bool {
    let mut told = [false; 3];
    sideband.drain(&mut ObjectCache::default(), |_, event| match event {
        ProcessEvent::Fork { pid, .. } => told[0] |= pid == wanted,
        ProcessEvent::Mmap { pid, .. } => told[1] |= pid == wanted,
        ProcessEvent::Exit { pid } => told[2] |= pid == wanted,
        _ => {}
    });
    told == [true; 3]
}

#[test]
fn reader_is_woken_unless_it_does_not_want_to_be_and_reads_all_the_same() {
    let mut sideband = match Sideband::start(&online_cpus().unwrap()) {
        Ok(sideband) => sideband,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            return;
        }
    };
    for _ in 0..2 {
        sideband.set_bells(true);
        let pid = run();
        assert!(is_woken(&sideband, Duration::from_secs(1)));
        assert!(tells_of(&mut sideband, pid));

        sideband.set_bells(false);
        // What rang before.
        while is_woken(&sideband, Duration::ZERO) {}
        let pid = run();
        assert!(!is_woken(&sideband, Duration::from_millis(50)));
        assert!(tells_of(&mut sideband, pid));
    }
    assert_eq!(sideband.lost(), 0);
}
