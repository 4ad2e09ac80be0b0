//! Which processes' layouts make room for others'.
//!
//! Programs do not say which layouts they look into. But a process that used no CPU time was
//! not sampled: when room gets scarce, /proc is asked who runs, some processes at a time. The
//! layouts of those that have been idle for the longest time leave first. A process without
//! a layout is *dormant*: its stacks are copied and finished in user space, and it is told
//! again once it has been seen to run.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::processes::{Processes, Published, release};
use super::tables::Tables;

/// A layout makes room if no process that shares it has run for this long.
const IDLE: Duration = Duration::from_secs(10);

/// Processes that are looked at each time, of the dormant and of all: reading /proc/PID/stat
/// takes some 10 us.
const LOOKS: usize = 256;

/// Layouts that make room at a time: finding them takes a look at all processes.
pub(super) const EVICT_AT_ONCE: usize = 64;

/// When a process was last seen to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Activity {
    /// Its CPU time then, in ticks of the kernel.
    cpu_ticks: u64,
    since: Instant,
}

/// Processes that share a layout.
struct Sharers {
    pids: Vec<u32>,
    /// When the last of them was seen to run; `None` if nobody has looked yet.
    since: Option<Instant>,
}

impl Processes {
    /// Looks at some processes if room is scarce: which of them run, by `cpu_ticks` of a
    /// process. The dormant that do are to be told again.
    pub(super) fn look(
        &mut self,
        now: Instant,
        tables: &Tables,
        cpu_ticks: impl Fn(u32) -> Option<u64>,
    ) {
        self.nothing_idle = false;
        let is_scarce = tables.layout_pages * 4 > tables.max_layout_pages() * 3
            || self.by_pid.len() > self.capacity / 4 * 3;
        if self.dormant.is_empty() && !is_scarce {
            return;
        }
        let [next_dormant, next_of_all] = &mut self.next_looks;
        let mut pids = turn(next_dormant, |next| self.dormant.range(next..).copied());
        pids.extend(turn(next_of_all, |next| self.by_pid.range(next..).map(|(pid, _)| *pid)));
        for pid in pids {
            let (Some(process), Some(cpu_ticks)) = (self.by_pid.get_mut(&pid), cpu_ticks(pid))
            else {
                continue;
            };
            match &process.activity {
                Some(before) if before.cpu_ticks == cpu_ticks => {}
                Some(_) => {
                    process.activity = Some(Activity { cpu_ticks, since: now });
                    if self.dormant.contains(&pid) {
                        self.changed.insert(pid);
                    }
                }
                None => process.activity = Some(Activity { cpu_ticks, since: now }),
            }
        }
    }

    /// Takes the layouts away that have been idle for the longest time. False if none has
    /// been idle long enough.
    pub(super) fn make_room(&mut self, now: Instant, tables: &mut Tables) -> bool {
        if self.nothing_idle {
            // It takes a while to see that, and nothing has changed since.
            return false;
        }
        let mut by_layout: HashMap<*const Published, Sharers> = HashMap::new();
        for (&pid, process) in &self.by_pid {
            let Some(published) = &process.published else { continue };
            let since = process.activity.map(|activity| activity.since);
            by_layout
                .entry(std::sync::Arc::as_ptr(published))
                .and_modify(|sharers| {
                    sharers.pids.push(pid);
                    // All must have been looked at.
                    sharers.since = sharers.since.zip(since).map(|(one, other)| one.max(other));
                })
                .or_insert_with(|| Sharers { pids: vec![pid], since });
        }
        let is_idle = |since: Instant| now.saturating_duration_since(since) >= IDLE;
        let mut idle: Vec<(Instant, Vec<u32>)> = by_layout
            .into_values()
            .filter_map(|sharers| {
                Some((sharers.since.filter(|since| is_idle(*since))?, sharers.pids))
            })
            .collect();
        idle.sort();
        idle.truncate(EVICT_AT_ONCE);
        self.nothing_idle = idle.is_empty();
        for pid in idle.into_iter().flat_map(|(_, pids)| pids) {
            let Some(process) = self.by_pid.get_mut(&pid) else { continue };
            let published = process.published.take();
            // Not there if the process has become another program just now.
            let _ = self.map.remove(&pid);
            release(published, tables);
            self.dormant.insert(pid);
            tables.stats.layouts_evicted += 1;
        }
        !self.nothing_idle
    }
}

/// Some of the ids, from `next` on; moves `next` behind them.
fn turn<I: Iterator<Item = u32>>(next: &mut u32, from: impl FnOnce(u32) -> I) -> Vec<u32> {
    let pids: Vec<u32> = from(*next).take(LOOKS).collect();
    *next = match pids.last() {
        Some(last) if pids.len() == LOOKS => last.saturating_add(1),
        _ => 0,
    };
    pids
}
