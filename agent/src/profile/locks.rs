//! Profiles of kind `lock`: the same waits from three sides.
//!
//! - `waiter`: the stacks that waited, which says who suffers;
//! - `holder`: the stacks that released the lock, which says who causes it;
//! - `joined`: both in one stack, so that an ordinary flame graph shows them: the waiter's
//!   frames, a marker, and the frames of the thread that ended the wait, innermost first.
//!
//! Each is a profile of its own, with its `side` as a label: together they would count all
//! waiting three times.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use everflame_agent_common::event::Kind;
use everflame_agent_common::lock::LockFlags;
use everflame_profile::kind::Kind as ProfileKind;
use everflame_profile::{FunctionInfo, LabelValue, LocationId};

use super::{Assembly, Map, ProcessProfile, Symbols, WindowTime, labels};
use crate::aggregate::{ProcessWindow, StackKey, Totals, WaitKey, Window};
use crate::wait::{is_condition_release, is_contention};

/// Which threads the stacks of a profile of locks are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Those that waited.
    Waiter,
    /// Those that released the lock.
    Holder,
    /// Both, in one stack.
    Joined,
}

impl Side {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Waiter, Self::Holder, Self::Joined];

    /// As the label `side` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiter => "waiter",
            Self::Holder => "holder",
            Self::Joined => "joined",
        }
    }
}

/// Stands between the frames of the waiter and those of the thread that ended the wait.
pub const RELEASED_BY: &str = "[released by]";

/// The same where that thread has not been seen, or the wait goes on.
pub const NOT_RELEASED: &str = "[not seen released]";

/// The profiles of one process, as far as there is something in them.
pub(super) fn profiles<'a>(
    process: &'a ProcessWindow,
    window: &'a Window,
    symbols: &'a Symbols,
    time: WindowTime,
) -> impl Iterator<Item = ProcessProfile> + 'a {
    let locks = Locks::find(process, window, symbols, time);
    Side::ALL.into_iter().filter_map(move |side| {
        let mut assembly = Assembly::new(ProfileKind::Lock, &window.ranges, symbols, time);
        assembly.main_executable(process);
        let samples = match side {
            Side::Waiter => locks.waiters(process, &mut assembly),
            Side::Holder => locks.holders(process, &mut assembly),
            Side::Joined => locks.joined(process, &mut assembly),
        };
        let mut labels = labels(process);
        labels.push(("side".to_owned(), side.name().to_owned()));
        labels.sort();
        let profile = || assembly.builder.finish();
        (samples > 0).then(|| ProcessProfile {
            kind: ProfileKind::Lock,
            labels,
            profile: profile(),
        })
    })
}

/// Which waits are for locks, and which words are locks.
struct Locks {
    /// Waits for locks, by where their stacks are kept.
    waits: HashSet<usize>,
    /// Words that threads of the process waited on, and whether one of them wanted a lock.
    words: Map<u64, bool>,
}

impl Locks {
    fn find(process: &ProcessWindow, window: &Window, symbols: &Symbols, time: WindowTime) -> Self {
        let names = Assembly::new(ProfileKind::Lock, &window.ranges, symbols, time);
        let is_kernel_thread = process.identity.is_kernel_thread;
        let mut found = Self { waits: HashSet::new(), words: HashMap::default() };
        for key in process.stacks.keys() {
            let Some(wait) = key.wait.filter(|_| key.kind != Kind::Release) else { continue };
            let (kernel, user) = (names.kernel_names(key), names.user_names(key));
            let skipped = crate::wait::scheduler_frames(kernel.iter().copied());
            let is_lock = is_contention(&wait, is_kernel_thread, &kernel[skipped..], &user);
            if is_lock {
                found.waits.insert(place(key));
            }
            if wait.lock() == wait.futex && wait.futex != 0 && !wait.is_run_queue {
                *found.words.entry(wait.futex).or_default() |= is_lock;
            }
        }
        found
    }

    fn waiters(&self, process: &ProcessWindow, assembly: &mut Assembly<'_>) -> usize {
        let waits = process.stacks.iter().filter(|(key, _)| self.waits.contains(&place(key)));
        let mut samples = 0;
        for (key, totals) in waits {
            let stack = assembly.stack(key);
            assembly.lock_sample(&stack, key, *totals, (Side::Waiter, process));
            samples += 1;
        }
        samples
    }

    fn holders(&self, process: &ProcessWindow, assembly: &mut Assembly<'_>) -> usize {
        let mut samples = 0;
        for (key, totals) in &process.stacks {
            let Some(wait) = key.wait.filter(|_| key.kind == Kind::Release) else { continue };
            // A wake-up of a thread that waits for work is not the release of a lock.
            let is_lock = match self.words.get(&wait.futex) {
                _ if wait.kernel_lock != 0 => true,
                Some(is_lock) => *is_lock,
                None => !is_condition_release(&assembly.user_names(key)),
            };
            if is_lock && totals.value > 0 {
                let stack = assembly.stack(key);
                assembly.lock_sample(&stack, key, *totals, (Side::Holder, process));
                samples += 1;
            }
        }
        samples
    }

    fn joined(&self, process: &ProcessWindow, assembly: &mut Assembly<'_>) -> usize {
        let parts = process
            .contention
            .iter()
            .filter(|((waiter, _), _)| self.waits.contains(&place(waiter)));
        // Who has released it is not known of a lock that a CPU spins for, nor where the kernel
        // does not say which lock it is.
        let nobodys = process.stacks.iter().filter(|(key, _)| {
            let is_divided = key.wait.is_some_and(|wait| wait.lock() != 0);
            (key.kind == Kind::Spinning || !is_divided) && self.waits.contains(&place(key))
        });
        let parts = parts
            .map(|((waiter, releaser), totals)| (waiter, releaser.as_ref(), totals))
            .chain(nobodys.map(|(key, totals)| (key, None, totals)));
        let mut samples = 0;
        for (waiter, releaser, totals) in parts {
            let mut stack = Vec::new();
            if let Some(releaser) = releaser {
                stack.extend(assembly.stack(releaser).into_iter().rev());
            }
            let marker = if releaser.is_some() { RELEASED_BY } else { NOT_RELEASED };
            stack.push(assembly.marker(marker));
            stack.extend(assembly.stack(waiter));
            assembly.lock_sample(&stack, waiter, *totals, (Side::Joined, process));
            samples += 1;
        }
        samples
    }
}

impl Assembly<'_> {
    /// Adds a sample about the thread of `key`. Sums of many profiles keep only what is said
    /// here, so the side and the process are, too.
    fn lock_sample(
        &mut self,
        stack: &[LocationId],
        key: &StackKey,
        totals: Totals,
        (side, process): (Side, &ProcessWindow),
    ) {
        let thread = key.thread_name.to_string_lossy();
        let wait = key.wait.unwrap_or_default();
        let address = format!("{:#x}", wait.lock());
        let pid = process.pid.to_string();
        let mut labels = vec![
            ("side", LabelValue::Str(side.name())),
            ("pid", LabelValue::Str(&pid)),
            ("comm", LabelValue::Str(&process.name)),
            ("tid", LabelValue::Num(i64::from(key.tid), "")),
            ("thread", LabelValue::Str(&thread)),
            ("lock_kind", LabelValue::Str(lock_kind(&wait))),
        ];
        if wait.lock() != 0 {
            labels.push(("lock", LabelValue::Str(&address)));
        }
        let place = process.futexes.get(&wait.lock()).and_then(Option::as_ref);
        let symbols = self.symbols;
        if let Some(name) = place.and_then(|place| symbols.data_name(place)) {
            labels.push(("lock_symbol", LabelValue::Str(name)));
        }
        if wait.length != 0 {
            let length = i64::try_from(wait.length).unwrap_or(i64::MAX);
            labels.push(("wait", LabelValue::Num(length, "nanoseconds")));
        }
        let values =
            [totals.count, totals.value].map(|value| i64::try_from(value).unwrap_or(i64::MAX));
        self.builder.sample(stack, &values, &labels);
    }

    /// A frame that is no code.
    fn marker(&mut self, name: &str) -> LocationId {
        let function = self.builder.function(FunctionInfo {
            name,
            system_name: name,
            filename: "",
            start_line: 0,
        });
        self.builder.location(None, 0, &[(function, 0)])
    }
}

/// What kind of lock it is; the kernel's own names for its locks, `kernel` where it gives none.
fn lock_kind(wait: &WaitKey) -> &'static str {
    match (wait.kernel_lock, wait.futex) {
        (1.., _) => LockFlags(wait.kernel_lock_flags).kind(),
        (0, 1..) => "futex",
        (0, 0) => "kernel",
    }
}

/// Stacks are kept once in a window.
fn place(key: &Arc<StackKey>) -> usize {
    Arc::as_ptr(key).addr()
}
