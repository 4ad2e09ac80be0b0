//! Walks a user stack into a sample: the entry that every hook uses.
//!
//! The step itself and the formats of the tables are `everflame_agent_common::unwind`; this
//! file supplies the loop, the memory and the way from an address to its rule. All state of a
//! walk is in map values, which the verifier does not track: what it has seen of one
//! iteration holds for all.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use everflame_agent_common::{
    limits::{
        CACHED_RULES, CHUNK_PAGES, FRAME_SLOTS, MAX_USER_FRAMES, SMALL_STACK_WINDOW, STACK_WINDOW,
    },
    stats::Program,
    unwind::{
        Architecture as _, Kind, Memory, Registers, Rule, Sign, Stop,
        page::{
            Layout, Page, Shard, Stretch, USED_SHIFT, find_row_page, find_rule, find_stretch, shard,
        },
        step,
    },
};

use crate::{
    kernel,
    last_walk::{Basis, LastWalk},
    maps::{
        CHUNKS, CPU_RULES, CPU_SCRATCH, CPU_WALK, IO_RULES, IO_SCRATCH, IO_WALK, PROCESSES, SHARDS,
    },
    sample::Scratch,
};

#[cfg(bpf_target_arch = "x86_64")]
pub type Native = everflame_agent_common::unwind::X86_64;
#[cfg(bpf_target_arch = "aarch64")]
pub type Native = everflame_agent_common::unwind::Aarch64;

/// Ordinary steps in a turn of the loop, which costs about as much as a fifth of one.
const FRAMES_PER_TURN: usize = 2;

/// Each turn gets on by one frame at least.
const TURNS: usize = MAX_USER_FRAMES;

/// The state of one walk, in a map value.
#[repr(C)]
pub struct Walk {
    /// Of the frame that the walk has got to.
    pub registers: Registers,
    /// Of the process.
    pub layout: Layout,
    /// The time, in the unit of `Shard::used`.
    now: u64,
    /// What rules of this walk have as [`CachedRule::stamp`].
    stamp: u64,
    /// Slot of the first address.
    first: u64,
    /// Addresses so far.
    walked: u64,
    /// A [`Stop`].
    stop: u64,
    /// Whether a frame pointer was followed where no rule said that it is one.
    guessed: u64,
    /// Where the last rule was looked up: callers are often in the same file.
    seen: Stretch,
    last: LastWalk,
    window: Window,
    /// When copies of stacks were last counted from 0, in the unit of `now`.
    copies_since: u64,
    /// Copies of stacks since then.
    copies: u64,
}

impl Walk {
    /// Whether addresses may be wrong, so that one in no known memory is no sign of memory
    /// that is not known yet.
    #[inline(always)]
    pub fn is_guessed(&self) -> bool {
        self.guessed != 0
    }

    /// Counts a copy of the stack, or refuses it because there have been too many.
    #[inline(always)]
    pub fn may_not_copy(&mut self, per_second: u32) -> bool {
        if self.copies_since != self.now {
            self.copies_since = self.now;
            self.copies = 0;
        }
        self.copies += 1;
        self.copies > u64::from(per_second)
    }
}

/// Rules by the addresses that they were looked up for: pairs of addresses with the same hash,
/// the younger one first.
#[repr(C)]
pub struct RuleCache([[CachedRule; 2]; CACHED_RULES / 2]);

#[repr(C)]
#[derive(Clone, Copy)]
struct CachedRule {
    address: u64,
    /// Generation of the layout under which it was found, and when.
    stamp: u64,
    rule: u64,
}

/// What the loop's body works on. Raw pointers, as [`walk_cpu_frames`] finds the same memory
/// by way of the maps.
pub struct Parts {
    /// The state of the walk.
    pub walk: *mut Walk,
    /// The cache of rules.
    pub rules: *mut RuleCache,
    /// Where addresses go.
    pub frames: *mut [u64; FRAME_SLOTS],
}

/// Walks the current task's stack from `walk.registers` on. Writes addresses, leaf first,
/// into `frames` from `first` on. Returns how many, and why the walk ended. On kernels without `bpf_loop` the
/// parts must be those of the program.
///
/// # Safety
/// The pointers are to values of this CPU's maps that nothing else uses meanwhile.
#[inline(always)]
pub unsafe fn user_stack(
    program: Program,
    mut parts: Parts,
    first: usize,
    pid: u32,
    now_ns: u64,
) -> (usize, Stop) {
    let walk = parts.walk;
    // SAFETY: see above; also for the accesses to `walk` below.
    unsafe {
        (*walk).now = now_ns >> USED_SHIFT;
        (*walk).first = first as u64;
        (*walk).walked = 0;
        (*walk).stop = Stop::DepthLimit as u64;
        (*walk).guessed = 0;
        (*walk).window.len = 0;
        (*walk).seen.end = 0;
        // Without a layout nothing is found, so the walk stops at the leaf.
        (*walk).layout = PROCESSES.get(pid).copied().unwrap_or_default();
        if (*walk).layout.sealed != (*walk).layout.seal(pid) {
            // Caught between one process's and another's.
            (*walk).layout = Layout::default();
        }
        // Good for some seconds, so that what is in use is looked up, and seen to be in use.
        (*walk).stamp = (*walk).layout.generation ^ ((*walk).now >> 2) << 44;
        (*walk).last.begin((*walk).stamp);
    }
    if kernel::HAS_LOOP {
        // SAFETY: the callback lives as long as the program, its context as long as the call.
        unsafe {
            bpf_loop(TURNS as u32, each_turn as *mut c_void, (&raw mut parts).cast::<c_void>(), 0)
        };
    } else {
        let mut turn = 0;
        while turn < TURNS {
            let ended = match program {
                Program::Cpu => walk_cpu_frames(),
                _ => walk_io_frames(),
            };
            if ended != 0 {
                break;
            }
            turn += 1;
        }
    }
    // SAFETY: as above.
    unsafe { ((*walk).walked as usize, Stop::from_u8((*walk).stop as u8)) }
}

/// The body of the loop; 1 ends it. It does its work in two functions that do not call each other: what
/// one of them keeps on the BPF stack is not there while the other runs, and all together have 512 bytes.
#[inline(never)]
extern "C" fn each_turn(_index: u32, parts: *mut c_void) -> i64 {
    // SAFETY: `user_stack` passes its own, whose pointers are to map values.
    let parts = unsafe { &mut *parts.cast::<Parts>() };
    // SAFETY: as above; they do not overlap.
    let (walk, rules, frames) =
        unsafe { (&mut *parts.walk, &mut *parts.rules, &mut *parts.frames) };
    if follow(walk, frames) != 0 { 0 } else { walk_on(walk, rules, frames) }
}

/// Walks some frames; 1 where that ends.
#[inline(never)]
fn walk_on(walk: &mut Walk, rules: &mut RuleCache, frames: &mut [u64; FRAME_SLOTS]) -> i64 {
    for _ in 0..FRAMES_PER_TURN {
        if let Err(stop) = walk_frame(walk, rules, frames) {
            walk.stop = stop as u64;
            return 1;
        }
        if walk.last.knows_frame() {
            break;
        }
    }
    0
}

/// One turn of the loop on kernels without `bpf_loop`, for the CPU sampler; not 0 ends it. As a function that is
/// visible from outside ("global" in BTF) it is verified once, by itself, and not again for
/// each turn: so it takes nothing, and finds the state of the walk in the maps.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_cpu_frames() -> u64 {
    walk_some_frames(CPU_SCRATCH.get_ptr_mut(0), CPU_WALK.get_ptr_mut(0), CPU_RULES.get_ptr_mut(0))
}

/// The same for those that follow requests to disks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_io_frames() -> u64 {
    walk_some_frames(IO_SCRATCH.get_ptr_mut(0), IO_WALK.get_ptr_mut(0), IO_RULES.get_ptr_mut(0))
}

#[inline(always)]
fn walk_some_frames(
    scratch: Option<*mut Scratch>,
    walk: Option<*mut Walk>,
    rules: Option<*mut RuleCache>,
) -> u64 {
    let (Some(scratch), Some(walk), Some(rules)) = (scratch, walk, rules) else {
        return 1;
    };
    // SAFETY: within the map value.
    let frames = unsafe { &raw mut (*scratch).frames };
    let mut parts = Parts { walk, rules, frames };
    each_turn(0, (&raw mut parts).cast::<c_void>()) as u64
}

/// Goes over frames that are the same as in the walk before, and says how many. A function of its own, as it has
/// many ends, behind which the verifier would follow a whole step each.
#[inline(never)]
fn follow(walk: &mut Walk, frames: &mut [u64; FRAME_SLOTS]) -> u64 {
    let Walk { registers, first, walked, last, window, .. } = walk;
    let begin = *walked;
    *walked = last.follow(begin, *first, registers, window, frames);
    *walked - begin
}

/// `number > bound`, in a way that the compiler does not see through: it would leave out masks that it knows to
/// be of no use then, by which the verifier knows indices to be within bounds.
#[inline(always)]
pub fn is_above(number: u64, bound: u64) -> bool {
    OpaqueSign::of(bound.wrapping_sub(number) as i64) != 0
}

/// Writes one frame down and goes on to its caller.
#[inline(always)]
fn walk_frame(
    walk: &mut Walk,
    rules: &mut RuleCache,
    frames: &mut [u64; FRAME_SLOTS],
) -> Result<(), Stop> {
    if is_above(walk.walked, MAX_USER_FRAMES as u64 - 1) {
        return Err(Stop::DepthLimit);
    }
    let slot = ((walk.first + walk.walked) & (FRAME_SLOTS as u64 - 1)) as usize;
    // Addresses of all but the leaf are one more than an address in the instruction.
    let is_caller = u64::from(walk.walked != 0);
    frames[slot] = walk.registers.ip + (walk.registers.interrupted & is_caller);
    let index = walk.walked;
    walk.walked += 1;

    let address = walk.registers.lookup_address();
    let stamp = walk.stamp;
    let hash = address ^ address >> 10 ^ stamp << 5;
    let [young, old] = &mut rules.0[(hash & (CACHED_RULES as u64 / 2 - 1)) as usize];
    let rule = if young.address == address && young.stamp == stamp {
        Rule::from_bits(young.rule)
    } else if old.address == address && old.stamp == stamp {
        Rule::from_bits(old.rule)
    } else {
        let rule = look_up(walk, address)?;
        *old = *young;
        *young = CachedRule { address, stamp, rule: rule.bits() };
        rule
    };
    if rule.kind() == Kind::FramePointer {
        walk.guessed = 1;
    }
    if rule.kind() == Kind::SignalFrame {
        frames[slot] = walk.registers.ip + 1;
    }
    let interrupted = walk.registers.interrupted;
    walk.last.leave(index, &walk.registers);
    walk.window.pair_at = [0; 2];
    step::<Native, OpaqueSign>(rule, &mut walk.registers, &mut walk.window)?;
    let is_plain = interrupted == 0 && walk.window.pair_at[1] != 0;
    let basis = if is_plain && rule.base() == Native::SP && !rule.frame_pointer_is_at_itself() {
        Basis::StackPointer
    } else if is_plain && (rule.base() == Native::SP || rule.base() == Native::FP) {
        Basis::FramePointer
    } else {
        Basis::Other
    };
    let Walk { last, registers, window, .. } = walk;
    last.arrive(index, basis, registers, window);
    Ok(())
}

/// The rule of an address in the current task.
#[inline(always)]
fn look_up(walk: &mut Walk, address: u64) -> Result<Rule, Stop> {
    if address < walk.seen.start || address >= walk.seen.end {
        let mut stretch = find(walk.layout.root, address)?;
        if walk.layout.depth != 0 {
            stretch = find(stretch.what as u32, address)?;
        }
        walk.seen = stretch;
    }
    let Stretch { start, what, .. } = walk.seen;
    let slot = what as u32;
    match slot {
        shard::UNMAPPED => return Err(Stop::Unmapped),
        shard::FRAME_POINTER => return Ok(Rule::FRAME_POINTER),
        shard::PENDING => return Err(Stop::NoTable),
        shard::NO_INFO => return Err(Stop::NoInfo),
        _ => {}
    }
    let Some(shard) = SHARDS.get_ptr_mut(slot) else { return Err(Stop::NoTable) };
    // SAFETY: integers. The agent changes the root alone, to or from 0; the pages stay as they
    // are until no program can look at them any more.
    let shard: &mut Shard = unsafe { &mut *shard };
    if shard.used != walk.now {
        shard.used = walk.now;
    }
    let offset = (what >> 32 << 12).wrapping_add(address.wrapping_sub(start));
    if offset < u64::from(shard.start_offset) || offset >= u64::from(shard.end_offset) {
        return Err(Stop::NoInfo);
    }
    let (first, rows) = if shard.depth == 0 {
        (u64::from(shard.start_offset), shard.root)
    } else {
        find_row_page::<OpaqueSign>(page(shard.root)?, offset)
    };
    Ok(find_rule::<OpaqueSign>(page(rows)?, offset.wrapping_sub(first)))
}

#[inline(always)]
fn find(root: u32, address: u64) -> Result<Stretch, Stop> {
    Ok(find_stretch::<OpaqueSign>(page(root)?, address))
}

/// Page 0 is never given out: it stands for what is not loaded.
#[inline(always)]
fn page(id: u32) -> Result<&'static Page, Stop> {
    if id == 0 {
        return Err(Stop::NoTable);
    }
    let (chunk, place) = (id / CHUNK_PAGES, id % CHUNK_PAGES);
    CHUNKS.get_value(chunk, &place).ok_or(Stop::NoTable)
}

/// Signs in a way that the compiler does not see through.
pub struct OpaqueSign;

impl Sign for OpaqueSign {
    #[inline(always)]
    fn of(mut difference: i64) -> u64 {
        // Written down, as the compiler would make a branch of it.
        // SAFETY: shifts a register.
        unsafe { core::arch::asm!("{0} >>= 63", inout(reg) difference) };
        difference as u64
    }
}

/// The part of the stack that was read last. The helper's own cost is that of copying some
/// hundred bytes, so much is read at once.
#[repr(C)]
pub struct Window {
    /// Where the two words lay that were last read together.
    pub pair_at: [u64; 2],
    /// Its address, in words.
    start: u64,
    /// Words that are there.
    len: u64,
    words: [u64; STACK_WINDOW],
    /// The word that [`read`] has found.
    found: u64,
}

impl Window {
    /// How many words after the first one that was read a word lies; one that was not read, at [`Self::len`] or
    /// above.
    #[inline(always)]
    pub fn place(&self, address: u64) -> u64 {
        (address >> 3).wrapping_sub(self.start)
    }

    /// The words at two places, if both have been read.
    #[inline(always)]
    pub fn words_at(&self, first: u64, second: u64) -> Option<(u64, u64)> {
        const MASK: u64 = STACK_WINDOW as u64 - 1;
        (first < self.len && second < self.len)
            .then(|| [first, second].map(|place| self.words[(place & MASK) as usize]).into())
    }

    /// Reads anew, from an address on, a multiple of 8.
    #[inline(always)]
    pub fn move_to(&mut self, address: u64) {
        self.len = 0;
        read(self, address);
    }
}

impl Memory for Window {
    #[inline(always)]
    fn read(&mut self, address: u64) -> Option<u64> {
        (read(self, address) != 0).then_some(self.found)
    }

    #[inline(always)]
    fn read_two(&mut self, first: u64, second: u64) -> Option<(u64, u64)> {
        let words = match self.words_at(self.place(first), self.place(second)) {
            Some(words) => words,
            None => (self.read(first)?, self.read(second)?),
        };
        self.pair_at = [first, second];
        Some(words)
    }
}

/// Finds the word at `address`. 0 if it cannot be read. A function of its own, as it is used
/// in many places.
#[inline(never)]
fn read(window: &mut Window, address: u64) -> u64 {
    let at = window.place(address);
    if at < window.len {
        window.found = window.words[(at & (STACK_WINDOW as u64 - 1)) as usize];
        return 1;
    }
    // Nearer and nearer to the stack's end.
    // SAFETY: `words` has room for each.
    let len = unsafe {
        if read_user(&mut window.words, STACK_WINDOW, address) {
            STACK_WINDOW
        } else if read_user(&mut window.words, SMALL_STACK_WINDOW, address) {
            SMALL_STACK_WINDOW
        } else if read_user(&mut window.words, 1, address) {
            1
        } else {
            0
        }
    };
    window.start = address >> 3;
    window.len = len as u64;
    window.found = window.words[0];
    u64::from(len != 0)
}

/// Fills the first of `words` from the memory of the current task.
///
/// # Safety
/// `len` words must have room. None is needed of the address: the kernel checks it.
#[inline(always)]
unsafe fn read_user(words: &mut [u64; STACK_WINDOW], len: usize, address: u64) -> bool {
    use aya_ebpf::helpers::generated::bpf_probe_read_user;
    let size = (len * 8) as u32;
    // SAFETY: as above.
    unsafe { bpf_probe_read_user(words.as_mut_ptr().cast(), size, address as *const c_void) == 0 }
}
