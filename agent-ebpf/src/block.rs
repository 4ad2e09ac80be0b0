//! `block`: requests to disks, with the stack of the code that made them.
//!
//! What is kept of a request, and what becomes of it, is in `everflame_agent_common::block`. That
//! a share is chosen at the beginning makes all others cheap: their issue and their end find
//! nothing.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_kernel},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use everflame_agent_common::{
    block::{
        DISK_NAME_AT, DISK_NAME_LEN, FAILED, FIRST_COMMAND, FLUSH, Flusher, Request, SYNC, Started,
    },
    event::Kind,
    stats::{Counter, Program},
    wait::Weight,
};

use crate::{
    maps::{BIOS, BLOCK_SHARE, FLUSHERS, REQUEST_MARKS, REQUESTS, SYNCS, config},
    marks,
    sample::{sample_for_io, submit_about_nobody},
    stats,
    task::field,
};

/// Runs when a request has been made, in the task that wants it (Linux 6.5). Its argument is the request.
#[btf_tracepoint(function = "block_io_start")]
fn block_start(ctx: BtfTracePointContext) -> i32 {
    let request: *const c_void = ctx.arg(0);
    stats::timed(Program::BlockStart, || {
        // SAFETY: the tracepoint's argument is a request.
        unsafe {
            let flags: u32 = field(request, config!(block.flags_offset));
            let started = begin(&ctx, request as u64, flags);
            if flags & config!(block.preflush) != 0 {
                wants_flush(disk_of(request), started);
            }
            match started {
                Some(started) => keep(Program::BlockStart, request, &started),
                // What is known of the address is of a request whose end was not seen.
                None => forget(request),
            }
        }
    });
    0
}

/// The same on older kernels, which tell of what a request is going to be made of: the argument.
#[btf_tracepoint(function = "block_getrq")]
fn block_start_of_bio(ctx: BtfTracePointContext) -> i32 {
    start_of_bio(&ctx, ctx.arg(0))
}

/// The same before Linux 5.11, where the first argument is a queue. A program of its own, as old verifiers do
/// not let one choose between arguments.
#[btf_tracepoint(function = "block_getrq")]
fn block_start_of_queued_bio(ctx: BtfTracePointContext) -> i32 {
    start_of_bio(&ctx, ctx.arg(1))
}

#[inline(always)]
fn start_of_bio(ctx: &BtfTracePointContext, bio: *const c_void) -> i32 {
    stats::timed(Program::BlockStart, || {
        // SAFETY: the tracepoint's argument, and the disk that it is for.
        unsafe {
            let flags: u32 = field(bio, config!(block.bio_flags_offset));
            let started = begin(ctx, bio as u64, flags);
            if flags & config!(block.preflush) != 0 {
                wants_flush(disk_of_bio(bio), started);
            }
            match started {
                Some(started) => {
                    if BIOS.insert(&(bio as u64), &started, 0).is_err() {
                        stats::count(Program::BlockStart, Counter::Untracked);
                    }
                }
                // Nothing more was heard of what the address was before.
                None if BIOS.get_ptr(&(bio as u64)).is_some() => {
                    let _ = BIOS.remove(&(bio as u64));
                }
                None => {}
            }
        }
    });
    0
}

/// Chooses requests, and hands the stacks over of those that are chosen.
#[inline(always)]
fn begin(ctx: &impl EbpfContext, id: u64, flags: u32) -> Option<Request> {
    if flags & 0xff >= FIRST_COMMAND {
        return None;
    }
    let target = config!(target_pid);
    if target != 0 && target != (bpf_get_current_pid_tgid() >> 32) as u32 {
        return None;
    }
    let start_ns = stats::now_ns();
    let count = if flags & config!(block.flushing) == 0 {
        let share = BLOCK_SHARE.get_ptr_mut(0)?;
        // SAFETY: this CPU's. What comes in between makes the next sample come sooner or later.
        let share = unsafe { &mut *share };
        let most = config!(block.samples);
        share.advance(start_ns, most);
        let count = share.choose(most, stats::random);
        if count == 0 {
            return None;
        }
        if share.is_partial() {
            stats::count(Program::BlockStart, Counter::Thinned);
        }
        u64::from(count)
    } else {
        // They are few, and flushes have to find them.
        1
    };
    let detail = Started { id, start_ns }.to_detail();
    sample_for_io(ctx, Program::BlockStart, Kind::BlockStart, Weight { value: 0, count }, detail);
    let made_ns = stats::now_ns();
    Some(Request { id, start_ns, made_ns, issue_ns: 0, bytes: 0, stamp: 0, count })
}

/// Notes whose the next flush of a disk is: that of a write, or nobody's that is looked at.
#[inline(always)]
fn wants_flush(disk: *const c_void, started: Option<Request>) {
    let disk = disk as u64;
    match started {
        Some(Request { id, start_ns, .. }) => {
            let _ = FLUSHERS.insert(&disk, &Flusher { id, start_ns }, 0);
        }
        None => {
            let _ = FLUSHERS.remove(&disk);
        }
    }
}

#[inline(always)]
fn keep(program: Program, request: *const c_void, started: &Request) {
    // Of a request whose end was not seen.
    forget(request);
    match REQUESTS.insert(&(request as u64), started, 0) {
        Ok(()) => marks::mark(&REQUEST_MARKS, request),
        Err(_) => stats::count(program, Counter::Untracked),
    }
}

/// What is known of a request, which mostly is nothing.
#[inline(always)]
fn find(request: *const c_void) -> Option<*mut Request> {
    if !marks::is_marked(&REQUEST_MARKS, request) {
        return None;
    }
    REQUESTS.get_ptr_mut(&(request as u64))
}

#[inline(always)]
fn forget(request: *const c_void) {
    if marks::is_marked(&REQUEST_MARKS, request) && REQUESTS.remove(&(request as u64)).is_ok() {
        marks::unmark(&REQUEST_MARKS, request);
    }
}

/// Runs when a request has become a part of another one, which was made by whoever made that. Its
/// argument is the request that is no more.
#[btf_tracepoint(function = "block_rq_merge")]
fn block_merge(ctx: BtfTracePointContext) -> i32 {
    let request: *const c_void = ctx.arg(0);
    forget(request);
    0
}

/// Runs when a request goes to its device. Its argument is the request.
#[btf_tracepoint(function = "block_rq_issue")]
fn block_issue(ctx: BtfTracePointContext) -> i32 {
    let request = ctx.arg(0);
    stats::timed(Program::BlockIssue, || {
        // SAFETY: the tracepoint's argument is a request.
        unsafe { issue(request) };
    });
    0
}

/// The same where the first argument is a queue.
#[btf_tracepoint(function = "block_rq_issue")]
fn block_issue_of_queue(ctx: BtfTracePointContext) -> i32 {
    let request = ctx.arg(1);
    stats::timed(Program::BlockIssue, || {
        // SAFETY: the tracepoint's argument is a request.
        unsafe { issue(request) };
    });
    0
}

/// # Safety
/// `request` comes from the kernel, which knows it for one.
#[inline(always)]
unsafe fn issue(request: *const c_void) {
    // SAFETY: as the caller says.
    let (flags, stamp): (u32, u64) = unsafe {
        (field(request, config!(block.flags_offset)), field(request, config!(block.stamp_offset)))
    };
    if let Some(known) = find(request) {
        // SAFETY: a map value. It goes with the request, which is here.
        let known = unsafe { &mut *known };
        if known.issue_ns == 0 || known.stamp == stamp {
            known.issue_ns = stats::now_ns();
            known.stamp = stamp;
            // SAFETY: as the caller says.
            return unsafe { precedes_flush(request, flags, known) };
        }
        // Of a request whose end was not seen.
        forget(request);
    }
    let begun = if flags & 0xff == FLUSH {
        // SAFETY: as the caller says.
        let disk = unsafe { disk_of(request) } as u64;
        FLUSHERS.get_ptr(&disk).map(|flusher| {
            // SAFETY: a map value.
            let Flusher { id, start_ns } = unsafe { *flusher };
            Request { id, start_ns, made_ns: start_ns, issue_ns: 0, bytes: 0, stamp, count: 1 }
        })
    } else if config!(block.has_io_start) == 0 {
        // SAFETY: as the caller says.
        let bio: u64 = unsafe { field(request, config!(block.bio_offset)) };
        let begun = BIOS.get_ptr(&bio).map(|bio| {
            // SAFETY: a map value.
            Request { stamp, ..unsafe { *bio } }
        });
        // Memory for a request is there before what it is made of is told of: otherwise that is of another
        // request, which was merged.
        let begun = begun.filter(|begun| stamp == 0 || begun.start_ns >= stamp);
        if begun.is_some() {
            let _ = BIOS.remove(&bio);
        }
        begun
    } else {
        None
    };
    if let Some(mut begun) = begun {
        begun.issue_ns = stats::now_ns();
        // SAFETY: as the caller says.
        unsafe { precedes_flush(request, flags, &begun) };
        keep(Program::BlockIssue, request, &begun);
    }
}

/// Notes a write that is going to be followed by a flush. Whether it is, depends on the disk, and is known when
/// it is issued.
///
/// # Safety
/// As of [`issue`].
#[inline(always)]
unsafe fn precedes_flush(request: *const c_void, flags: u32, known: &Request) {
    if flags & config!(block.flushing) == 0 || flags & 0xff == FLUSH {
        return;
    }
    // SAFETY: as the caller says.
    unsafe {
        let state: u32 = field(request, config!(block.state_offset));
        if state & config!(block.flush_sequence) != 0 {
            wants_flush(disk_of(request), Some(*known));
        }
    }
}

/// Runs when a request is completed, or a part of it. Its arguments are (request, error, bytes).
#[btf_tracepoint(function = "block_rq_complete")]
fn block_done(ctx: BtfTracePointContext) -> i32 {
    let request: *const c_void = ctx.arg(0);
    let (error, bytes) = (ctx.arg::<u64>(1) as u32, ctx.arg::<u64>(2) as u32);
    stats::timed(Program::BlockDone, || {
        // SAFETY: the tracepoint's argument is a request.
        unsafe { complete(request, error, bytes) };
    });
    0
}

/// # Safety
/// As of [`issue`].
#[inline(always)]
unsafe fn complete(request: *const c_void, error: u32, bytes: u32) {
    let Some(known) = find(request) else { return };
    // SAFETY: a map value. A request is completed by one CPU at a time.
    let known = unsafe { &mut *known };
    // SAFETY: as the caller says.
    let (flags, state, left, stamp): (u32, u32, u32, u64) = unsafe {
        (
            field(request, config!(block.flags_offset)),
            field(request, config!(block.state_offset)),
            field(request, config!(block.bytes_offset)),
            field(request, config!(block.stamp_offset)),
        )
    };
    if known.issue_ns != 0 && known.stamp != stamp {
        forget(request);
        return;
    }
    known.bytes += u64::from(bytes);
    // A write with a flush has an end when its data is written and another one after the flush.
    let is_sequence = state & config!(block.flush_sequence) != 0 && flags & 0xff != FLUSH;
    if bytes < left || is_sequence {
        return;
    }
    let done = *known;
    forget(request);
    let mut operation = u64::from(flags);
    if error != 0 {
        operation |= FAILED;
    }
    if flags & config!(block.sync) != 0 {
        operation |= SYNC;
    }
    // SAFETY: as the caller says.
    let name = unsafe { name_of(disk_of(request)) };
    let mut detail = [done.id, done.start_ns, done.made_ns, done.issue_ns, operation, 0, 0, 0, 0];
    detail[DISK_NAME_AT..].copy_from_slice(&name);
    let weight = Weight { value: done.bytes, count: done.count };
    submit_about_nobody(Program::BlockDone, Kind::BlockDone, weight, detail);
}

/// The disk that a request is for.
///
/// # Safety
/// As of [`issue`].
#[inline(always)]
unsafe fn disk_of(request: *const c_void) -> *const c_void {
    // SAFETY: as the caller says; the kernel reads zeros where there is nothing.
    unsafe {
        if config!(block.disk_offset) != 0 {
            return field(request, config!(block.disk_offset));
        }
        let queue: *const c_void = field(request, config!(block.queue_offset));
        field(queue, config!(block.queue_disk_offset))
    }
}

/// The disk that a request is going to be for.
///
/// # Safety
/// `bio` comes from the kernel, which knows it for one.
#[inline(always)]
unsafe fn disk_of_bio(bio: *const c_void) -> *const c_void {
    // SAFETY: as of `disk_of`.
    unsafe {
        if config!(block.bio_disk_offset) != 0 {
            return field(bio, config!(block.bio_disk_offset));
        }
        let part: *const c_void = field(bio, config!(block.bio_part_offset));
        field(part, config!(block.part_disk_offset))
    }
}

/// # Safety
/// `disk` comes from the kernel, which knows it for one.
#[inline(always)]
unsafe fn name_of(disk: *const c_void) -> [u64; DISK_NAME_LEN / 8] {
    let mut name = [0u64; DISK_NAME_LEN / 8];
    // SAFETY: the helper checks the address, and writes zeros where it cannot read.
    unsafe {
        let from = disk.byte_add(config!(block.name_offset) as usize);
        bpf_probe_read_kernel(name.as_mut_ptr().cast(), DISK_NAME_LEN as u32, from);
    }
    name
}

/// Runs when a task begins to make a file durable. What its arguments are depends on the file system.
#[raw_tracepoint(tracepoint = "ext4_sync_file_enter")]
fn sync_enter(_ctx: RawTracePointContext) -> i32 {
    let task = bpf_get_current_pid_tgid();
    let target = config!(target_pid);
    if target == 0 || target == (task >> 32) as u32 {
        let now_ns = stats::now_ns();
        if SYNCS.insert(&task, &now_ns, 0).is_err() {
            stats::count(Program::Sync, Counter::Untracked);
        }
    }
    0
}

/// Runs when it is done. The first argument is the file's inode.
#[raw_tracepoint(tracepoint = "ext4_sync_file_exit")]
fn sync_exit(ctx: RawTracePointContext) -> i32 {
    stats::timed(Program::Sync, || synced(&ctx));
    0
}

#[inline(always)]
fn synced(ctx: &RawTracePointContext) {
    let task = bpf_get_current_pid_tgid();
    let Some(start_ns) = SYNCS.get_ptr(&task) else { return };
    // SAFETY: a map value.
    let start_ns = unsafe { *start_ns };
    let _ = SYNCS.remove(&task);
    let value = stats::now_ns().saturating_sub(start_ns);
    // SAFETY: the context is the tracepoint's arguments.
    let inode = unsafe { *ctx.as_ptr().cast::<u64>() };
    let device = device_of_inode(inode);
    let detail = [device, 0, 0, 0, 0, 0, 0, 0, 0];
    sample_for_io(ctx, Program::Sync, Kind::Sync, Weight { value, count: 1 }, detail);
}

/// The device of a file's file system, its major number in the upper half; 0 if it cannot be read.
#[inline(always)]
fn device_of_inode(inode: u64) -> u64 {
    let mut superblock = 0u64;
    let mut device = 0u32;
    // SAFETY: the helper checks the addresses.
    unsafe {
        let at = inode.wrapping_add(u64::from(config!(inode_superblock_offset)));
        bpf_probe_read_kernel(ptr::from_mut(&mut superblock).cast(), 8, at as *const c_void);
        let at = superblock.wrapping_add(u64::from(config!(superblock_device_offset)));
        bpf_probe_read_kernel(ptr::from_mut(&mut device).cast(), 4, at as *const c_void);
    }
    // The kernel's own form: 12 bits and 20 (include/linux/kdev_t.h).
    u64::from(device >> 20) << 32 | u64::from(device & 0xf_ffff)
}
