//! Waits of real threads, as this machine's kernel shows them in /proc, and what is made of
//! them. /proc/PID/stack needs root.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{Reason, Wait, classify, is_idle};

/// How long to look for a wait before it counts as not happening.
const PATIENCE: Duration = Duration::from_secs(20);

/// A thread as it waits.
struct Observed {
    wait: Wait,
    kernel: Vec<String>,
}

impl Observed {
    /// None while the thread runs, and if it moved on between the reads.
    fn of(task: &str) -> Option<Self> {
        let before = fs::read_to_string(format!("{task}/syscall")).ok()?;
        let stack = fs::read_to_string(format!("{task}/stack")).ok()?;
        let stat = fs::read_to_string(format!("{task}/stat")).ok()?;
        let after = fs::read_to_string(format!("{task}/syscall")).ok()?;
        let task_state = match stat.rsplit_once(") ")?.1.chars().next()? {
            'S' => 1,
            'D' => 2,
            _ => return None,
        };
        let kernel = stack
            .lines()
            .filter_map(|line| Some(line.split_once("] ")?.1.split_once('+')?.0.to_owned()))
            .collect::<Vec<_>>();
        // Not in a system call, the number is -1.
        let mut numbers = before.split_whitespace();
        let syscall = numbers.next()?.parse::<i64>().ok()?.try_into().ok();
        let mut args = [0; 6];
        if syscall.is_some() {
            for (arg, number) in args.iter_mut().zip(numbers) {
                *arg = u64::from_str_radix(number.trim_start_matches("0x"), 16).ok()?;
            }
        }
        let wait = Wait { task_state, syscall, args, ..Wait::default() };
        (before == after && !kernel.is_empty()).then_some(Self { wait, kernel })
    }

    fn kernel(&self) -> Vec<&str> {
        self.kernel.iter().map(String::as_str).collect()
    }
}

fn can_read_stacks() -> bool {
    let readable = fs::read_to_string("/proc/thread-self/stack").is_ok();
    if !readable {
        eprintln!("SKIPPED: /proc/PID/stack cannot be read; run as root");
    }
    readable
}

/// Looks at `task` until `expected` is seen; panics with what was seen instead.
fn wait_for(task: &str, expected: Reason) -> Observed {
    let end = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < end {
        if let Some(seen) = Observed::of(task) {
            let reason = classify(&seen.wait, &seen.kernel());
            if reason == expected {
                return seen;
            }
            last = Some((reason, seen.wait, seen.kernel));
        } else {
            thread::yield_now();
        }
    }
    panic!("no wait for {} in {PATIENCE:?}, at last: {last:?}", expected.name());
}

/// Starts a thread that runs `wait` and checks the reason for which it waits, by the kernel's
/// functions, and by its system call alone if that can tell.
fn check(
    expected: Reason,
    by_syscall: Option<Reason>,
    wait: impl FnOnce() + Send + 'static,
) -> Observed {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // PID/task/TID
        sender.send(fs::read_link("/proc/thread-self").unwrap()).unwrap();
        wait();
    });
    let task = format!("/proc/{}", receiver.recv().unwrap().display());
    let seen = wait_for(&task, expected);
    if let Some(by_syscall) = by_syscall {
        assert_eq!(classify(&seen.wait, &[]), by_syscall, "{:?}", seen.wait);
    }
    seen
}

const FOREVER: Duration = Duration::from_secs(3600);

#[test]
fn sleeps_locks_and_children() {
    if !can_read_stacks() {
        return;
    }
    check(Reason::Sleep, Some(Reason::Sleep), || thread::sleep(FOREVER));

    let mutex = Arc::new(Mutex::new(()));
    let held = mutex.lock().unwrap();
    let other = mutex.clone();
    let seen = check(Reason::Lock, Some(Reason::Lock), move || drop(other.lock()));
    assert!(!is_idle(&seen.wait, Reason::Lock, &seen.kernel(), &["lock_contended"]));
    assert!(is_idle(&seen.wait, Reason::Lock, &seen.kernel(), &["pthread_cond_wait"]));
    drop(held);

    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let input = child.stdin.take().unwrap();
    wait_for(&format!("/proc/{}", child.id()), Reason::Other);
    check(Reason::Child, Some(Reason::Child), move || drop(child.wait()));
    drop(input);
}

#[test]
fn files_that_are_locked() {
    if !can_read_stacks() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().lock().unwrap();
    let again = file.reopen().unwrap();
    let seen = check(Reason::Lock, Some(Reason::Lock), move || drop(again.lock()));
    assert!(super::is_lock_contention(&seen.wait, Reason::Lock, &[]));
    file.as_file().unlock().unwrap();
}

#[test]
fn pipes_and_sockets() {
    if !can_read_stacks() {
        return;
    }
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let seen = check(Reason::Other, Some(Reason::Other), move || drop(reader.read(&mut [0])));
    assert!(!is_idle(&seen.wait, Reason::Other, &seen.kernel(), &["read"]));
    writer.write_all(&[1]).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = check(Reason::Network, Some(Reason::Network), move || {
        let _connection = listener.accept().unwrap();
        thread::sleep(FOREVER);
    });
    assert!(is_idle(&seen.wait, Reason::Network, &seen.kernel(), &["accept"]));
    assert!(is_idle(&seen.wait, Reason::Network, &[], &["accept"]));

    let mut client = TcpStream::connect(address).unwrap();
    let seen = check(Reason::Network, Some(Reason::Network), move || drop(client.read(&mut [0])));
    assert!(!is_idle(&seen.wait, Reason::Network, &seen.kernel(), &["recv"]));

    let (mut unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    check(Reason::Network, Some(Reason::Network), move || drop(unix.read(&mut [0])));
}

#[test]
fn epoll_is_an_idle_wait_for_the_network_and_poll_is_a_poll() {
    use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
    if !can_read_stacks() {
        return;
    }
    let seen = check(Reason::Network, Some(Reason::Network), || {
        let instance = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut events = Vec::<epoll::Event>::with_capacity(1);
        epoll::wait(&instance, rustix::buffer::spare_capacity(&mut events), None).unwrap();
    });
    assert!(is_idle(&seen.wait, Reason::Network, &seen.kernel(), &[]));

    let (reader, _writer) = std::io::pipe().unwrap();
    let seen = check(Reason::Poll, Some(Reason::Poll), move || {
        poll(&mut [PollFd::new(&reader, PollFlags::IN)], None).unwrap();
    });
    assert!(!is_idle(&seen.wait, Reason::Poll, &seen.kernel(), &["poll", "main"]));

    check(Reason::Sleep, Some(Reason::Sleep), || {
        poll(&mut [], Some(&Timespec { tv_sec: 3600, tv_nsec: 0 })).unwrap();
    });
}

/// A file of some MiB in the build directory, which unlike /tmp is rarely in memory.
fn file_on_disk() -> tempfile::NamedTempFile {
    let directory = std::env::current_exe().unwrap();
    let mut file = tempfile::NamedTempFile::new_in(directory.parent().unwrap()).unwrap();
    file.write_all(&vec![7; 8 << 20]).unwrap();
    file.as_file().sync_all().unwrap();
    file
}

fn forget_pages(file: &fs::File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Whether reads of the file have to wait for a device at all.
fn is_in_memory(file: &fs::File) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    let in_memory = rustix::fs::fstatfs(file).unwrap().f_type as i64 == TMPFS;
    if in_memory {
        eprintln!("SKIPPED: the build directory is in memory, there is no disk to wait for");
    }
    in_memory
}

/// Repeats a wait that is too short to be seen each time, until it was seen.
fn check_repeated(expected: Reason, wait: impl Fn() + Send + 'static) {
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    check(expected, None, move || {
        while !stop.load(Ordering::Relaxed) {
            wait();
        }
    });
    done.store(true, Ordering::Relaxed);
}

#[test]
fn reads_and_flushes_of_files_are_the_disk() {
    let file = file_on_disk();
    if !can_read_stacks() || is_in_memory(file.as_file()) {
        return;
    }
    let reader = file.reopen().unwrap();
    check_repeated(Reason::Disk, move || {
        forget_pages(&reader);
        reader.read_exact_at(&mut [0; 4096], fastrand::u64(..2000) * 4096).unwrap();
    });
    let writer = file.reopen().unwrap();
    check_repeated(Reason::Disk, move || {
        writer.write_all_at(&[1; 4096], fastrand::u64(..2000) * 4096).unwrap();
        writer.sync_all().unwrap();
    });
}

#[test]
fn a_mapped_file_is_a_page_fault_even_where_it_waits_for_the_disk() {
    let file = file_on_disk();
    if !can_read_stacks() || is_in_memory(file.as_file()) {
        return;
    }
    let mapped = file.reopen().unwrap();
    check_repeated(Reason::PageFault, move || {
        forget_pages(&mapped);
        // SAFETY: the file is the test's own, and nobody shortens it.
        let map = unsafe { memmap2::Mmap::map(&mapped) }.unwrap();
        std::hint::black_box(map[fastrand::usize(..map.len())]);
    });
}
