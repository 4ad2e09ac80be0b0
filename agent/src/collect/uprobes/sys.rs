//! The system calls of uprobes, which aya does not make: links to many places at once, perf events
//! with reference counters, and programs that are loaded for the former.
//!
//! Structures are those of include/uapi/linux/{bpf,perf_event}.h, as far as they are used.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use aya_obj::generated::bpf_insn;

use super::Site;

const BPF_PROG_LOAD: u32 = 5;
const BPF_BTF_LOAD: u32 = 18;
const BPF_LINK_CREATE: u32 = 28;

const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_PERF_EVENT: u32 = 41;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;

/// `BPF_LINK_CREATE` for perf events.
#[repr(C)]
struct LinkEvent {
    program: RawFd,
    event: RawFd,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

/// The same for many places in a file.
#[repr(C)]
struct LinkAll {
    program: RawFd,
    target: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: i32,
    unused: u32,
}

/// `BPF_BTF_LOAD`.
#[repr(C)]
struct LoadTypes {
    types: u64,
    log: u64,
    len: u32,
    log_size: u32,
    log_level: u32,
    unused: u32,
}

/// `BPF_PROG_LOAD`.
#[repr(C)]
struct LoadProgram {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    types: RawFd,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    unused: u32,
}

/// `struct perf_event_attr` up to `config2`, its size in its second version.
#[repr(C)]
#[derive(Default)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    path: u64,
    offset: u64,
}

const _: () = assert!(size_of::<LinkEvent>() == 24 && size_of::<LinkAll>() == 64);
const _: () = assert!(size_of::<LoadTypes>() == 32 && size_of::<LoadProgram>() == 112);
const _: () = assert!(size_of::<EventAttributes>() == 72);

/// A program of type kprobe as the object has it.
pub(super) struct Code<'a> {
    pub(super) name: &'a str,
    pub(super) instructions: &'a [bpf_insn],
    pub(super) license: &'a CStr,
    pub(super) types: BorrowedFd<'a>,
    /// `struct bpf_func_info`s, of this size each.
    pub(super) functions: &'a [u8],
    pub(super) function_size: u32,
}

/// Loads a program that can be linked by [`link_all`], and by nothing else.
pub(super) fn load_program(code: &Code<'_>) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    for (to, from) in name[..15].iter_mut().zip(code.name.bytes()) {
        *to = from;
    }
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let function_size = usize::try_from(code.function_size).unwrap_or(usize::MAX).max(1);
    let attributes = LoadProgram {
        program_type: BPF_PROG_TYPE_KPROBE,
        instruction_count: count(code.instructions.len()),
        instructions: code.instructions.as_ptr() as u64,
        license: code.license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
        interface: 0,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        types: code.types.as_raw_fd(),
        function_size: code.function_size,
        functions: code.functions.as_ptr() as u64,
        function_count: count(code.functions.len() / function_size),
        line_size: 0,
        lines: 0,
        line_count: 0,
        unused: 0,
    };
    // SAFETY: the structure of this command; what it points to outlives the call.
    unsafe { bpf(BPF_PROG_LOAD, &attributes) }
}

/// Hands type information to the kernel.
pub(super) fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let len = u32::try_from(types.len()).unwrap_or(u32::MAX);
    let attributes = LoadTypes {
        types: types.as_ptr() as u64,
        log: 0,
        len,
        log_size: 0,
        log_level: 0,
        unused: 0,
    };
    // SAFETY: as in `load_program`.
    unsafe { bpf(BPF_BTF_LOAD, &attributes) }
}

/// Whether programs that are loaded by [`load_program`] can be attached to one process. First kernels
/// took a process for one of its threads; those that do not also say that -1 is not a process, where the
/// others go on and find that a directory cannot be probed.
pub(super) fn can_link_process(program: BorrowedFd<'_>) -> bool {
    let answer = link(program, c"/", &[Site::default()], -1);
    answer.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// Attaches a program to places in a file.
pub(super) fn link_all(
    program: BorrowedFd<'_>,
    path: &CStr,
    sites: &[Site],
    pid: Option<u32>,
) -> io::Result<OwnedFd> {
    link(program, path, sites, pid.map_or(0, |pid| i32::try_from(pid).unwrap_or(i32::MAX)))
}

fn link(program: BorrowedFd<'_>, path: &CStr, sites: &[Site], pid: i32) -> io::Result<OwnedFd> {
    let offsets: Vec<u64> = sites.iter().map(|site| site.offset).collect();
    let counters: Vec<u64> = sites.iter().map(|site| site.ref_ctr_offset.unwrap_or(0)).collect();
    let cookies: Vec<u64> = sites.iter().map(|site| site.cookie).collect();
    let attributes = LinkAll {
        program: program.as_raw_fd(),
        target: 0,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        flags: 0,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        ref_ctr_offsets: counters.as_ptr() as u64,
        cookies: cookies.as_ptr() as u64,
        count: u32::try_from(sites.len()).unwrap_or(u32::MAX),
        multi_flags: 0,
        pid,
        unused: 0,
    };
    // SAFETY: as in `load_program`.
    unsafe { bpf(BPF_LINK_CREATE, &attributes) }
}

/// Opens the perf event of one place. It counts from the start; without a program nobody notices.
pub(super) fn open_event(
    kind: u32,
    path: &CStr,
    site: &Site,
    pid: Option<u32>,
) -> io::Result<OwnedFd> {
    // /sys/bus/event_source/devices/uprobe/format/ref_ctr_offset: config:32-63
    let counter = u32::try_from(site.ref_ctr_offset.unwrap_or(0));
    let counter = counter.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let attributes = EventAttributes {
        kind,
        size: size_of::<EventAttributes>() as u32,
        config: u64::from(counter) << 32,
        path: path.as_ptr() as u64,
        offset: site.offset,
        ..EventAttributes::default()
    };
    // An event of all processes has to name a CPU; its program runs on all of them.
    let (pid, cpu) = match pid {
        Some(pid) => (i32::try_from(pid).unwrap_or(i32::MAX), -1),
        None => (-1, 0),
    };
    const FLAG_CLOEXEC: libc::c_ulong = 1 << 3;
    // SAFETY: the structure has the size that it says; what it points to outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, pid, cpu, -1, FLAG_CLOEXEC)
    };
    owned(fd)
}

/// Has a program run at a perf event.
pub(super) fn link_event(
    program: BorrowedFd<'_>,
    event: BorrowedFd<'_>,
    cookie: u64,
) -> io::Result<OwnedFd> {
    let attributes = LinkEvent {
        program: program.as_raw_fd(),
        event: event.as_raw_fd(),
        attach_type: BPF_PERF_EVENT,
        flags: 0,
        cookie,
    };
    // SAFETY: as in `load_program`.
    unsafe { bpf(BPF_LINK_CREATE, &attributes) }
}

/// # Safety
/// `attributes` are those of the command, and what they point to is valid.
unsafe fn bpf<T>(command: u32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller says.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made it for us.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
