//! The report on locks: which of them cost the most waiting, who waits, and who held them.
//!
//! It is made of a profile of kind `lock`, whose samples say on which `side` they are: of those
//! with `side=waiter` come locks and waiters, of those with `side=holder` the holders. Samples
//! of a lock have its address in `lock`, its name, where it has one, in `lock_symbol`, and the
//! process in `pid` and `comm`.
//!
//! Some locks put each waiting thread to sleep on a word of its own (parking_lot, Java's
//! monitors): addresses tell nothing there, so such waits are one lock for each place in the
//! program that wants it. Others have two words side by side, for readers and for writers, which
//! are one lock.

use std::collections::{BTreeSet, HashMap};

use everflame_proto::pprof::{Profile, Sample};
use serde::Serialize;

use crate::frames::Frames;
use crate::lengths::Lengths;
use crate::lock_site::{parks, wanting};
use crate::select::{label, number, sample_type_index};

/// All locks that were waited for, the one with the longest waits first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LockReport {
    /// The locks.
    pub locks: Vec<LockTotals>,
}

/// One lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LockTotals {
    /// Where it lies in its process; none if that is not one place, or not known.
    pub address: Option<String>,
    /// Its name, where it is a variable of the program (`table_lock`, `table+0x10`); of one
    /// without an address the function that wants it.
    pub symbol: Option<String>,
    /// `futex`, or of the kernel's own `mutex`, `rwsem`, `spinlock` ..., and `kernel` where that
    /// is not known.
    pub kind: String,
    /// The process, if the profile says so.
    pub pid: Option<String>,
    /// Its name.
    pub comm: Option<String>,
    /// What all threads waited, in nanoseconds.
    pub wait_ns: i64,
    /// How often.
    pub waits: i64,
    /// Half of the waits were not longer, in nanoseconds.
    pub p50_ns: i64,
    /// 99 in 100 of the waits were not longer.
    pub p99_ns: i64,
    /// About as long as the longest.
    pub max_ns: i64,
    /// Stacks that waited, longest first.
    pub waiters: Vec<WaiterTotals>,
    /// Stacks that released it, by the waiting that each ended.
    pub holders: Vec<HolderTotals>,
}

/// Threads that waited with the same stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WaiterTotals {
    /// Functions, leaf first.
    pub stack: Vec<String>,
    /// Names of threads.
    pub threads: BTreeSet<String>,
    /// What they waited, in nanoseconds.
    pub wait_ns: i64,
    /// How often.
    pub waits: i64,
}

/// Threads that released a lock with the same stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HolderTotals {
    /// Functions, leaf first.
    pub stack: Vec<String>,
    /// Names of threads.
    pub threads: BTreeSet<String>,
    /// Waiting of others that their releases ended, in nanoseconds.
    pub hold_ns: i64,
    /// How often.
    pub releases: i64,
}

impl WaiterTotals {
    /// Adds those of other threads with the same stack.
    fn add(&mut self, other: Self) {
        self.threads.extend(other.threads);
        self.wait_ns = self.wait_ns.saturating_add(other.wait_ns);
        self.waits = self.waits.saturating_add(other.waits);
    }
}

impl HolderTotals {
    /// Adds those of other threads with the same stack.
    fn add(&mut self, other: Self) {
        self.threads.extend(other.threads);
        self.hold_ns = self.hold_ns.saturating_add(other.hold_ns);
        self.releases = self.releases.saturating_add(other.releases);
    }
}

/// The kind of locks of programs; all others are the kernel's own.
const FUTEX: &str = "futex";

/// What makes two waits waits for the same lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Identity {
    Address(String),
    /// The function that wants it.
    Site(String),
}

type Key = (String, Identity);

/// A lock while samples are added.
#[derive(Default)]
struct Building {
    kind: String,
    comm: String,
    symbol: String,
    waiters: HashMap<Vec<String>, WaiterTotals>,
    holders: HashMap<Vec<String>, HolderTotals>,
    lengths: Lengths,
}

/// Makes the report of a profile of kind `lock`; empty of any other.
pub fn locks(profile: &Profile) -> LockReport {
    let index = |name| sample_type_index(profile, Some(name)).ok();
    let (Some(count), Some(delay)) = (index("contentions"), index("delay")) else {
        return LockReport::default();
    };
    let frames = Frames::new(profile);
    let view = |sample| View::of(profile, &frames, sample);
    let value = |sample: &Sample, index: usize| sample.value.get(index).copied().unwrap_or(0);
    let on_side = |side: &'static str| {
        profile.sample.iter().filter(move |sample| label(profile, sample, "side") == side)
    };
    let mut locks: HashMap<Key, Building> = HashMap::new();
    // Which lock the words are that threads wait on.
    let mut words: HashMap<(String, String), Key> = HashMap::new();
    for sample in on_side("waiter") {
        let view = view(sample);
        let (waits, wait_ns) = (value(sample, count), value(sample, delay));
        let key = view.key();
        words.insert(view.word(), key.clone());
        let lock = locks.entry(key).or_default();
        lock.kind.clone_from(&view.kind);
        if view.kind == FUTEX {
            lock.comm.clone_from(&view.comm);
        }
        lock.name(view.symbol);
        lock.lengths.add(number(profile, sample, "wait"), wait_ns, waits);
        let (stack, threads) = (Vec::new(), BTreeSet::from([view.thread]));
        let waiter = WaiterTotals { stack, threads, wait_ns, waits };
        lock.waiters.entry(view.stack).or_default().add(waiter);
    }
    for sample in on_side("holder") {
        let view = view(sample);
        let Some(lock) = words.get(&view.word()).and_then(|key| locks.get_mut(key)) else {
            continue;
        };
        lock.name(view.symbol);
        let (stack, threads) = (Vec::new(), BTreeSet::from([view.thread]));
        let (hold_ns, releases) = (value(sample, delay), value(sample, count));
        let holder = HolderTotals { stack, threads, hold_ns, releases };
        lock.holders.entry(view.stack).or_default().add(holder);
    }
    merge_neighbours(&mut locks);
    let mut locks: Vec<LockTotals> =
        locks.into_iter().map(|(key, building)| building.finish(key)).collect();
    locks.sort_by(|a, b| {
        (b.wait_ns, &a.address, &a.symbol).cmp(&(a.wait_ns, &b.address, &b.symbol))
    });
    LockReport { locks }
}

/// Locks of programs with readers have two words side by side, one for readers and one for writers.
fn merge_neighbours(locks: &mut HashMap<Key, Building>) {
    const WORD_BYTES: u64 = 4;
    let text = |address: u64| Identity::Address(format!("{address:#x}"));
    let mut words: Vec<(String, u64)> = locks
        .keys()
        .filter_map(|(pid, identity)| match identity {
            Identity::Address(address) if !pid.is_empty() => {
                let digits = address.strip_prefix("0x")?;
                Some((pid.clone(), u64::from_str_radix(digits, 16).ok()?))
            }
            _ => None,
        })
        .collect();
    words.sort_unstable();
    // From the end, so that what is merged into a word moves on with it.
    for (pid, address) in words.into_iter().rev() {
        let below = (pid.clone(), text(address.saturating_sub(WORD_BYTES)));
        if locks.contains_key(&below)
            && let Some(merged) = locks.remove(&(pid, text(address)))
            && let Some(lock) = locks.get_mut(&below)
        {
            lock.add(merged);
        }
    }
}

impl Building {
    /// Some windows may not know the name.
    fn name(&mut self, symbol: String) {
        if self.symbol.is_empty() {
            self.symbol = symbol;
        }
    }

    /// Adds a lock's other word, which gives it neither address nor name.
    fn add(&mut self, other: Self) {
        for (stack, totals) in other.waiters {
            self.waiters.entry(stack).or_default().add(totals);
        }
        for (stack, totals) in other.holders {
            self.holders.entry(stack).or_default().add(totals);
        }
        self.lengths.merge(other.lengths);
    }

    fn finish(self, (pid, identity): Key) -> LockTotals {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let (address, symbol) = match identity {
            Identity::Address(address) => (Some(address), some(self.symbol)),
            Identity::Site(site) => (None, Some(site)),
        };
        let mut waiters: Vec<WaiterTotals> = self
            .waiters
            .into_iter()
            .map(|(stack, totals)| WaiterTotals { stack, ..totals })
            .collect();
        waiters.sort_by(|a, b| (b.wait_ns, &a.stack).cmp(&(a.wait_ns, &b.stack)));
        let mut holders: Vec<HolderTotals> = self
            .holders
            .into_iter()
            .map(|(stack, totals)| HolderTotals { stack, ..totals })
            .collect();
        holders.sort_by(|a, b| (b.hold_ns, &a.stack).cmp(&(a.hold_ns, &b.stack)));
        let sum =
            |part: fn(&WaiterTotals) -> i64| waiters.iter().map(part).fold(0, i64::saturating_add);
        LockTotals {
            address,
            symbol,
            kind: self.kind,
            pid: some(pid),
            comm: some(self.comm),
            wait_ns: sum(|waiter| waiter.wait_ns),
            waits: sum(|waiter| waiter.waits),
            p50_ns: self.lengths.quantile(50),
            p99_ns: self.lengths.quantile(99),
            max_ns: self.lengths.quantile(100),
            waiters,
            holders,
        }
    }
}

/// What a sample says.
struct View {
    pid: String,
    comm: String,
    thread: String,
    address: String,
    symbol: String,
    kind: String,
    stack: Vec<String>,
}

impl View {
    fn of(profile: &Profile, frames: &Frames, sample: &Sample) -> Self {
        let text = |key| label(profile, sample, key).to_owned();
        Self {
            pid: text("pid"),
            comm: text("comm"),
            thread: text("thread"),
            address: text("lock"),
            symbol: text("lock_symbol"),
            kind: text("lock_kind"),
            stack: frames.stack(sample).map(|frame| frames.name(frame).to_owned()).collect(),
        }
    }

    /// The process whose lock it is; the kernel's are nobody's.
    fn process(&self) -> &str {
        if self.kind == FUTEX { &self.pid } else { "" }
    }

    /// What its waiters sleep on.
    fn word(&self) -> (String, String) {
        (self.process().to_owned(), self.address.clone())
    }

    fn key(&self) -> Key {
        (self.process().to_owned(), self.identity())
    }

    fn identity(&self) -> Identity {
        if self.address.is_empty() || self.kind == FUTEX && parks(&self.stack) {
            return Identity::Site(wanting(&self.stack).to_owned());
        }
        Identity::Address(self.address.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use crate::{FunctionInfo, LabelValue, LocationId, ProfileBuilder};

    struct Recorded(ProfileBuilder);

    impl Recorded {
        fn new() -> Self {
            Self(ProfileBuilder::new(Kind::Lock.sample_types(), "delay"))
        }

        fn stack(&mut self, names: &[&str]) -> Vec<LocationId> {
            let location = |name: &&str| {
                let info = FunctionInfo { name, system_name: name, filename: "", start_line: 0 };
                let function = self.0.function(info);
                self.0.location(None, 0, &[(function, 0)])
            };
            names.iter().map(location).collect()
        }

        /// `lock` is `ADDRESS` or `ADDRESS SYMBOL`.
        fn add(&mut self, side: &str, lock: &str, thread: &str, names: &[&str], values: [i64; 2]) {
            let (lock, symbol) = lock.split_once(' ').unwrap_or((lock, ""));
            // Where the kernel's are.
            let kind = if lock.starts_with("0xffff") { "spinlock" } else { "futex" };
            let stack = self.stack(names);
            let length = values[1] / values[0].max(1);
            let bucket = 1 << length.ilog2();
            self.0.sample(
                &stack,
                &values,
                &[
                    ("side", LabelValue::Str(side)),
                    ("lock", LabelValue::Str(lock)),
                    ("lock_symbol", LabelValue::Str(symbol)),
                    ("lock_kind", LabelValue::Str(kind)),
                    ("pid", LabelValue::Str("7")),
                    ("thread", LabelValue::Str(thread)),
                    ("wait", LabelValue::Num(bucket, "nanoseconds")),
                ],
            );
        }

        fn report(self) -> LockReport {
            locks(&self.0.finish())
        }
    }

    #[test]
    fn locks_are_ranked_by_waiting_and_name_both_sides() {
        let mut recorded = Recorded::new();
        recorded.add("waiter", "0x10", "a", &["__lll_lock_wait", "request"], [98, 9_800]);
        recorded.add("waiter", "0x10", "b", &["__lll_lock_wait", "request"], [1, 5_000]);
        recorded.add("waiter", "0x10", "b", &["__lll_lock_wait", "other"], [1, 70_000]);
        recorded.add("waiter", "0x20", "a", &["__lll_lock_wait", "request"], [1, 100]);
        recorded.add("holder", "0x10", "h", &["unlock", "slow"], [50, 80_000]);
        recorded.add("holder", "0x30", "h", &["unlock", "nobody_waits"], [1, 1]);
        recorded.add("joined", "0x10", "a", &["unlock", "x", "request"], [100, 84_800]);
        let report = recorded.report();
        let addresses: Vec<_> =
            report.locks.iter().filter_map(|lock| lock.address.as_deref()).collect();
        assert_eq!(addresses, ["0x10", "0x20"]);
        let first = &report.locks[0];
        assert_eq!((first.wait_ns, first.waits), (84_800, 100));
        assert_eq!((first.p50_ns, first.p99_ns, first.max_ns), (100, 5_000, 70_000));
        assert_eq!(first.waiters[0].stack, ["__lll_lock_wait", "other"]);
        assert_eq!(first.waiters[1].threads, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        assert_eq!(first.holders.len(), 1);
        assert_eq!((first.holders[0].hold_ns, first.holders[0].releases), (80_000, 50));
    }

    #[test]
    fn words_of_threads_that_park_are_one_lock_by_the_place_that_wants_it() {
        let mut recorded = Recorded::new();
        let stack =
            ["syscall", "parking_lot_core::parking_lot::park", "lock_api::Mutex::lock", "request"];
        recorded.add("waiter", "0x10", "a", &stack, [1, 100]);
        recorded.add("waiter", "0x20", "b", &stack, [1, 200]);
        recorded.add("holder", "0x20", "h", &["syscall", "slow"], [1, 250]);
        let report = recorded.report();
        assert_eq!(report.locks.len(), 1);
        let lock = &report.locks[0];
        assert_eq!((lock.symbol.as_deref(), &lock.address), (Some("request"), &None));
        assert_eq!((lock.wait_ns, lock.holders[0].hold_ns), (300, 250));
    }

    #[test]
    fn words_side_by_side_are_one_lock() {
        let mut recorded = Recorded::new();
        recorded.add("waiter", "0x1c", "r", &["rdlock", "read"], [1, 100]);
        recorded.add("waiter", "0x18", "w", &["wrlock", "write"], [1, 200]);
        recorded.add("waiter", "0x24", "a", &["lock", "another"], [1, 50]);
        recorded.add("holder", "0x1c", "h", &["unlock", "slow"], [1, 90]);
        let report = recorded.report();
        let sums: Vec<_> =
            report.locks.iter().map(|lock| (lock.address.as_deref(), lock.wait_ns)).collect();
        assert_eq!(sums, [(Some("0x18"), 300), (Some("0x24"), 50)]);
        assert_eq!((report.locks[0].holders[0].hold_ns, report.locks[0].p99_ns), (90, 200));
    }

    #[test]
    fn locks_have_the_names_of_their_variables() {
        let mut recorded = Recorded::new();
        let parking = ["syscall", "parking_lot_core::parking_lot::park", "request"];
        recorded.add("waiter", "0x10", "a", &["lock", "request"], [1, 600]);
        recorded.add("waiter", "0x10 table_lock", "b", &["lock", "request"], [1, 300]);
        recorded.add("waiter", "0x1c table+0xc", "r", &["rdlock", "read"], [1, 400]);
        recorded.add("waiter", "0x18 table+0x8", "w", &["wrlock", "write"], [1, 400]);
        recorded.add("waiter", "0x30", "a", &["lock", "request"], [1, 500]);
        recorded.add("holder", "0x30 held", "h", &["unlock", "slow"], [1, 500]);
        recorded.add("waiter", "0x40", "a", &["lock", "request"], [1, 200]);
        recorded.add("waiter", "0x50 parked", "a", &parking, [1, 100]);
        let report = recorded.report();
        let names = report.locks.iter().map(|lock| (lock.symbol.as_deref(), lock.wait_ns));
        let expected = [
            (Some("table_lock"), 900),
            (Some("table+0x8"), 800),
            (Some("held"), 500),
            (None, 200),
            (Some("request"), 100),
        ];
        assert_eq!(names.collect::<Vec<_>>(), expected);
        assert_eq!(report.locks[1].address.as_deref(), Some("0x18"));
    }

    #[test]
    fn locks_of_the_kernel_are_no_processes_and_nothing_else() {
        let mut recorded = Recorded::new();
        let parking = ["lock_slowpath", "syscall", "parking_lot_core::parking_lot::park"];
        recorded.add("waiter", "0xffff10", "a", &["lock_slowpath", "request"], [1, 200]);
        recorded.add("waiter", "0xffff14", "a", &parking, [1, 100]);
        recorded.add("holder", "0xffff14", "h", &["unlock", "slow"], [1, 90]);
        let locks = recorded.report().locks;
        let addresses: Vec<_> = locks.iter().filter_map(|lock| lock.address.as_deref()).collect();
        assert_eq!(addresses, ["0xffff10", "0xffff14"]);
        assert!(locks.iter().all(|lock| lock.pid.is_none() && lock.comm.is_none()));
        assert_eq!((locks[0].holders.len(), locks[1].holders.len()), (0, 1));
    }

    #[test]
    fn other_profiles_have_no_locks() {
        let profile = ProfileBuilder::new(Kind::Cpu.sample_types(), "cpu").finish();
        assert_eq!(locks(&profile), LockReport::default());
    }
}
