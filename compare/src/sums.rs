//! What was measured of a side, by host and instance: all that the statistics look at.
//!
//! Windows come one by one, in any order, as sums by function: from profiles that are read, or from sums that were
//! kept. No stack comes here.

use std::collections::{BTreeMap, HashMap};

use crate::{estimate::Observation, latency::Latencies, names::normalised};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A function, as an index into [`Functions`].
pub type FunctionId = u32;

/// The functions of both sides, by what they are called in every build (see [`crate::names`]).
#[derive(Debug, Default)]
pub struct Functions {
    ids: Map<String, FunctionId>,
    /// As normalised names may be less telling, one of the original ones, and its file.
    infos: Vec<FunctionInfo>,
    /// Original names that are known, so that each is normalised once.
    known: Map<String, FunctionId>,
    bytes: usize,
}

/// What a function is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FunctionInfo {
    /// Its name in every build.
    pub name: String,
    /// Its source file, or the file of the mapping where there is no symbol; of one of the builds.
    pub filename: String,
}

impl Functions {
    /// The function of that name; a new one if there is none.
    pub fn intern(&mut self, name: &str, filename: &str) -> FunctionId {
        if let Some(id) = self.known.get(name) {
            return *id;
        }
        let of_builds = normalised(name);
        let next = FunctionId::try_from(self.infos.len()).unwrap_or(FunctionId::MAX);
        let id = match self.ids.get(of_builds.as_ref()) {
            Some(id) => *id,
            None => {
                let name = of_builds.into_owned();
                self.bytes += 2 * name.len() + filename.len() + 128;
                self.ids.insert(name.clone(), next);
                self.infos.push(FunctionInfo { name, filename: filename.to_owned() });
                next
            }
        };
        self.bytes += name.len() + 48;
        self.known.insert(name.to_owned(), id);
        id
    }

    /// What a function is called.
    pub fn info(&self, id: FunctionId) -> &FunctionInfo {
        const NONE: &FunctionInfo = &FunctionInfo { name: String::new(), filename: String::new() };
        usize::try_from(id).ok().and_then(|at| self.infos.get(at)).unwrap_or(NONE)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.infos.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.infos.is_empty()
    }

    /// About what they take in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A sum, and how many samples it was estimated from.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sum {
    /// Nanoseconds, bytes ...
    pub value: f64,
    /// Samples.
    pub samples: f64,
}

impl std::ops::AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.value += other.value;
        self.samples += other.samples;
    }
}

/// What a function cost in a window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FunctionSum {
    /// Of samples in which it was at the leaf.
    pub own: Sum,
    /// Of samples in which it was anywhere in the stack, once each.
    pub total: Sum,
    /// The function that called it in most of them, and by how much (value) it is ahead of all others; see
    /// [`Caller::add`].
    pub caller: Caller,
}

/// Which function, if any, called another in more than half of its cost (Boyer and Moore's majority vote, 1981).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Caller {
    /// The candidate.
    pub function: Option<FunctionId>,
    /// By how much it is ahead.
    pub lead: f64,
}

impl Caller {
    /// A vote; `None` for the root of a stack.
    pub fn add(&mut self, other: Self) {
        if self.function == other.function {
            self.lead += other.lead;
        } else if other.lead > self.lead {
            *self = Self { function: other.function, lead: other.lead - self.lead };
        } else {
            self.lead -= other.lead;
        }
    }
}

/// What was measured in a window of an instance.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    /// Of which host.
    pub host: &'a str,
    /// Of which instance of the service on it; such as a process.
    pub instance: &'a str,
    /// When it began, in nanoseconds since the Unix epoch.
    pub start_unix_ns: u64,
    /// How long it was.
    pub duration_ns: u64,
    /// The sum of everything.
    pub all: Sum,
    /// By function, each once.
    pub functions: &'a [(FunctionId, FunctionSum)],
}

/// All windows of a side.
#[derive(Debug, Default)]
pub struct Side {
    hosts: BTreeMap<String, BTreeMap<String, Replicate>>,
    callers: Map<FunctionId, Caller>,
    bytes: usize,
}

/// What there is of one instance, or of one host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Replicate {
    windows: Vec<(u64, u64)>,
    requests: Option<f64>,
    pub(crate) all: Sum,
    pub(crate) latencies: Latencies,
    functions: Map<FunctionId, (Sum, Sum)>,
}

/// About what an entry of a map takes.
const ENTRY_BYTES: usize = 56;

impl Side {
    /// Takes in what was measured in a window.
    pub fn add(&mut self, window: &Window<'_>) {
        let replicate = self.replicate(window.host, window.instance);
        let known = replicate.functions.len();
        replicate.add_window(window.start_unix_ns, window.duration_ns);
        replicate.all += window.all;
        for (id, sum) in window.functions {
            let (own, total) = replicate.functions.entry(*id).or_default();
            *own += sum.own;
            *total += sum.total;
        }
        let added = replicate.functions.len() - known;
        for (id, sum) in window.functions {
            self.callers.entry(*id).or_default().add(sum.caller);
        }
        self.bytes += added * ENTRY_BYTES + size_of::<(u64, u64)>();
    }

    /// A window in which an instance ran; what it cost, if anything, comes by [`Self::add`].
    pub fn ran(&mut self, host: &str, instance: &str, start_unix_ns: u64, duration_ns: u64) {
        self.replicate(host, instance).add_window(start_unix_ns, duration_ns);
        self.bytes += size_of::<(u64, u64)>();
    }

    /// How long things took in windows of an instance.
    pub fn took(&mut self, host: &str, instance: &str, latencies: &Latencies) {
        self.replicate(host, instance).latencies.join(latencies);
    }

    /// Requests that an instance has served: costs are per request if all instances have them.
    pub fn served(&mut self, host: &str, instance: &str, requests: f64) {
        let replicate = self.replicate(host, instance);
        *replicate.requests.get_or_insert(0.0) += requests;
    }

    /// About what it takes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether costs can be given per request.
    pub fn has_requests(&self) -> bool {
        let mut instances = self.hosts.values().flat_map(BTreeMap::values).peekable();
        instances.peek().is_some()
            && instances.all(|it| it.requests.is_some_and(|requests| requests > 0.0))
    }

    /// The votes for a function's caller.
    pub(crate) fn votes(&self, id: FunctionId) -> Caller {
        self.callers.get(&id).copied().unwrap_or_default()
    }

    /// By host.
    pub(crate) fn hosts(&self) -> BTreeMap<String, Replicate> {
        let of_host = |(host, instances): (&String, &BTreeMap<String, Replicate>)| {
            let mut sum = Replicate::default();
            for instance in instances.values() {
                sum.join(instance);
            }
            (host.clone(), sum)
        };
        self.hosts.iter().map(of_host).collect()
    }

    /// By instance.
    pub(crate) fn instances(&self) -> BTreeMap<String, Replicate> {
        let of_host = |(host, instances): (&String, &BTreeMap<String, Replicate>)| {
            let named = |(name, it): (&String, &Replicate)| (format!("{host}/{name}"), it.clone());
            instances.iter().map(named).collect::<Vec<_>>()
        };
        self.hosts.iter().flat_map(of_host).collect()
    }

    fn replicate(&mut self, host: &str, instance: &str) -> &mut Replicate {
        let is_known =
            self.hosts.get(host).is_some_and(|instances| instances.contains_key(instance));
        if !is_known {
            self.bytes += 256 + host.len() + instance.len();
        }
        let instances = self.hosts.entry(host.to_owned()).or_default();
        instances.entry(instance.to_owned()).or_default()
    }
}

impl Replicate {
    fn add_window(&mut self, start_unix_ns: u64, duration_ns: u64) {
        self.windows.push((start_unix_ns, start_unix_ns.saturating_add(duration_ns)));
    }

    fn join(&mut self, other: &Self) {
        self.windows.extend_from_slice(&other.windows);
        if let Some(requests) = other.requests {
            *self.requests.get_or_insert(0.0) += requests;
        }
        self.all += other.all;
        self.latencies.join(&other.latencies);
        for (id, (own, total)) in &other.functions {
            let sums = self.functions.entry(*id).or_default();
            sums.0 += *own;
            sums.1 += *total;
        }
    }

    /// Seconds in which it ran: windows of several kinds or processes are of the same seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let mut windows = self.windows.clone();
        windows.sort_unstable();
        let mut covered_ns = 0;
        let mut until = 0;
        for (start, end) in windows {
            covered_ns += end.saturating_sub(start.max(until));
            until = until.max(end);
        }
        covered_ns as f64 / 1e9
    }

    pub(crate) fn requests(&self) -> f64 {
        self.requests.unwrap_or(0.0)
    }

    /// What a function cost by itself.
    pub(crate) fn own(&self, id: FunctionId) -> Sum {
        self.functions.get(&id).map_or(Sum::default(), |(own, _)| *own)
    }

    /// What a function cost with all that it calls.
    pub(crate) fn total(&self, id: FunctionId) -> Sum {
        self.functions.get(&id).map_or(Sum::default(), |(_, total)| *total)
    }

    /// The functions that it has.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (FunctionId, &(Sum, Sum))> {
        self.functions.iter().map(|(id, sums)| (*id, sums))
    }
}

impl Sum {
    /// Both together.
    pub(crate) fn plus(mut self, other: Self) -> Self {
        self += other;
        self
    }

    /// As an observation of a replicate.
    pub(crate) fn per(self, exposure: f64) -> Observation {
        Observation { value: self.value, exposure, samples: self.samples }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn window<'a>(
        instance: &'a str,
        start: u64,
        functions: &'a [(FunctionId, FunctionSum)],
    ) -> Window<'a> {
        Window {
            host: "a",
            instance,
            start_unix_ns: start * SECOND,
            duration_ns: 10 * SECOND,
            all: Sum { value: 7.0, samples: 2.0 },
            functions,
        }
    }

    #[test]
    fn builds_of_a_function_are_one() {
        let mut functions = Functions::default();
        let first = functions.intern("walk.isra.0", "/src/1/walk.c");
        assert_eq!(functions.intern("walk.part.3", "/src/2/walk.c"), first);
        assert_ne!(functions.intern("run", ""), first);
        assert_eq!((functions.info(first).name.as_str(), functions.len()), ("walk", 2));
        assert_eq!(functions.info(9), &FunctionInfo::default());
    }

    #[test]
    fn seconds_of_a_host_count_once_however_many_windows_are_of_them() {
        let mut side = Side::default();
        side.add(&window("1", 0, &[]));
        side.add(&window("2", 0, &[]));
        side.ran("a", "2", 5 * SECOND, 10 * SECOND);
        side.add(&window("1", 60, &[]));
        let host = &side.hosts()["a"];
        assert!((host.seconds() - 25.0).abs() < 1e-9, "{}", host.seconds());
        assert_eq!(host.all, Sum { value: 21.0, samples: 6.0 });
        assert!((side.instances()["a/1"].seconds() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn functions_add_up_by_instance_and_by_host() {
        let sum = |value| Sum { value, samples: 1.0 };
        let of =
            |own, total| FunctionSum { own: sum(own), total: sum(total), ..FunctionSum::default() };
        let mut side = Side::default();
        side.add(&window("1", 0, &[(0, of(1.0, 2.0))]));
        side.add(&window("1", 10, &[(0, of(3.0, 4.0))]));
        side.add(&window("2", 0, &[(0, of(5.0, 6.0))]));
        assert_eq!(side.instances()["a/1"].own(0), Sum { value: 4.0, samples: 2.0 });
        assert_eq!(side.hosts()["a"].total(0), Sum { value: 12.0, samples: 3.0 });
        assert_eq!(side.hosts()["a"].total(1), Sum::default());
    }

    #[test]
    fn caller_is_who_calls_most_of_the_time() {
        let mut caller = Caller::default();
        for (function, lead) in [(1, 2.0), (2, 3.0), (1, 4.0), (3, 1.0), (1, 1.0)] {
            caller.add(Caller { function: Some(function), lead });
        }
        assert_eq!(caller.function, Some(1));
    }

    #[test]
    fn costs_are_per_request_if_all_instances_have_some() {
        let mut side = Side::default();
        assert!(!side.has_requests());
        side.served("a", "1", 10.0);
        side.served("a", "1", 5.0);
        assert!(side.has_requests());
        assert!((side.hosts()["a"].requests() - 15.0).abs() < 1e-9);
        side.ran("a", "2", 0, SECOND);
        assert!(!side.has_requests());
    }
}
