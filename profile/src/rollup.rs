//! What a profile says of functions, without its stacks: what comparisons need of thousands of profiles.
//!
//! Values are of the kind's default sample type. What nobody waits for is left out: waits of event loops for
//! something to do (label `idle`) are as long as there is nothing to do.

use std::collections::HashMap;

use everflame_proto::pprof::{Profile, Sample};

use crate::frames::Frames;
use crate::kind::Kind;
use crate::select::{label, number, sample_type_index, string};
use crate::{block, tcp};

/// The label of waits that are for something to do.
const IDLE: &str = "idle";

/// The sums of one profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RollUp {
    /// Of all samples, in the unit of the kind's default sample type.
    pub total_value: i64,
    /// How often the kernel was looked at for that, at least: of kind `cpu` as many as there are samples, of
    /// others, where a sample is scaled to what it stands for, as many as there are different ones.
    pub samples: u64,
    /// What each function costs, by name.
    pub functions: Vec<FunctionSums>,
    /// Which function calls which.
    pub calls: Vec<CallSums>,
    /// How long things took, shortest first; only kinds `block` and `tcp` say.
    pub latencies: Vec<LatencyBucket>,
}

/// What one function costs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionSums {
    /// As [`crate::top`] has it; functions of the same name in different files are one.
    pub name: String,
    /// Of samples in which it was at the leaf.
    pub self_value: i64,
    /// Of samples in which it was anywhere in the stack; recursion counts once.
    pub total_value: i64,
    /// How many samples those at the leaf are, as [`RollUp::samples`] counts them.
    pub self_samples: u64,
    /// How many those in the stack are.
    pub total_samples: u64,
}

/// What a function costs below one of its callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallSums {
    /// The caller, as an index into [`RollUp::functions`].
    pub caller: u32,
    /// What it calls.
    pub callee: u32,
    /// Of samples in which the one called the other anywhere in the stack; once for each sample.
    pub value: i64,
}

/// How many took at least as long as this, and less than the next bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyBucket {
    /// In nanoseconds.
    pub from_ns: i64,
    /// How many.
    pub count: i64,
}

/// Sums a profile by function. One that is not of this kind gives nothing.
pub fn roll_up(profile: &Profile, kind: Kind) -> RollUp {
    let index = |name: &str| sample_type_index(profile, Some(name)).ok();
    let Some(value) = index(kind.default_sample_type()) else { return RollUp::default() };
    let count = kind.sample_types().first().and_then(|(name, _)| index(name)).unwrap_or(value);
    let latency_label = match kind {
        Kind::Block => Some(block::DEVICE_TIME),
        Kind::Tcp => Some(tcp::LATENCY),
        _ => None,
    };
    let has_idle = kind == Kind::OffCpu;
    let frames = Frames::new(profile);
    let mut sums = Sums::default();
    let mut latencies: HashMap<i64, i64> = HashMap::new();
    for sample in &profile.sample {
        let at = |index: usize| sample.value.get(index).copied().unwrap_or(0);
        if let Some(name) = latency_label.filter(|name| has(profile, sample, name)) {
            let bucket = latencies.entry(number(profile, sample, name)).or_default();
            *bucket = bucket.saturating_add(at(count));
        }
        if at(value) == 0 || (has_idle && label(profile, sample, IDLE) == "true") {
            continue;
        }
        let samples = if kind == Kind::Cpu { u64::try_from(at(count)).unwrap_or(0) } else { 1 };
        sums.add(frames.stack(sample), at(value), samples);
    }
    let mut latencies: Vec<LatencyBucket> =
        latencies.into_iter().map(|(from_ns, count)| LatencyBucket { from_ns, count }).collect();
    latencies.sort_by_key(|bucket| bucket.from_ns);
    RollUp { latencies, ..sums.finish(&frames) }
}

fn has(profile: &Profile, sample: &Sample, name: &str) -> bool {
    sample.label.iter().any(|label| string(profile, label.key) == name)
}

/// Sums by frame: frames of the same name in different files are still apart.
#[derive(Default)]
struct Sums {
    total_value: i64,
    samples: u64,
    functions: HashMap<u32, FunctionSums>,
    calls: HashMap<(u32, u32), i64>,
    /// Functions and calls of the present stack.
    functions_seen: Vec<u32>,
    calls_seen: Vec<(u32, u32)>,
}

impl Sums {
    /// Adds a stack, leaf first.
    fn add(&mut self, stack: impl Iterator<Item = u32>, value: i64, samples: u64) {
        self.total_value = self.total_value.saturating_add(value);
        self.samples = self.samples.saturating_add(samples);
        self.functions_seen.clear();
        self.calls_seen.clear();
        let mut callee = None;
        for frame in stack {
            self.functions_seen.push(frame);
            match callee {
                Some(callee) => self.calls_seen.push((frame, callee)),
                None => {
                    let leaf = self.functions.entry(frame).or_default();
                    leaf.self_value = leaf.self_value.saturating_add(value);
                    leaf.self_samples = leaf.self_samples.saturating_add(samples);
                }
            }
            callee = Some(frame);
        }
        // Recursion counts once.
        self.functions_seen.sort_unstable();
        self.functions_seen.dedup();
        self.calls_seen.sort_unstable();
        self.calls_seen.dedup();
        for frame in &self.functions_seen {
            let sums = self.functions.entry(*frame).or_default();
            sums.total_value = sums.total_value.saturating_add(value);
            sums.total_samples = sums.total_samples.saturating_add(samples);
        }
        for call in &self.calls_seen {
            let sum = self.calls.entry(*call).or_default();
            *sum = sum.saturating_add(value);
        }
    }

    /// Joins frames of the same name, and puts everything in order.
    fn finish(self, frames: &Frames) -> RollUp {
        let mut by_name: HashMap<&str, FunctionSums> = HashMap::new();
        for (frame, sums) in &self.functions {
            let known = by_name.entry(frames.name(*frame)).or_default();
            known.self_value = known.self_value.saturating_add(sums.self_value);
            known.total_value = known.total_value.saturating_add(sums.total_value);
            known.self_samples = known.self_samples.saturating_add(sums.self_samples);
            known.total_samples = known.total_samples.saturating_add(sums.total_samples);
        }
        let mut functions: Vec<FunctionSums> = by_name
            .into_iter()
            .map(|(name, sums)| FunctionSums { name: name.to_owned(), ..sums })
            .collect();
        functions.sort_by(|a, b| a.name.cmp(&b.name));
        let position = |frame: u32| {
            let found =
                functions.binary_search_by(|sums| sums.name.as_str().cmp(frames.name(frame)));
            found.ok().and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
        };
        let mut joined: HashMap<(u32, u32), i64> = HashMap::new();
        for ((caller, callee), value) in &self.calls {
            let sum = joined.entry((position(*caller), position(*callee))).or_default();
            *sum = sum.saturating_add(*value);
        }
        let mut calls: Vec<CallSums> = joined
            .into_iter()
            .map(|((caller, callee), value)| CallSums { caller, callee, value })
            .collect();
        calls.sort_by_key(|call| (call.caller, call.callee));
        RollUp {
            total_value: self.total_value,
            samples: self.samples,
            functions,
            calls,
            latencies: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{FunctionInfo, LabelValue, ProfileBuilder};
    use crate::tables::tests::small_profile;

    fn rows(roll_up: &RollUp) -> Vec<(&str, i64, i64)> {
        let row = |sums: &FunctionSums| (sums.self_value, sums.total_value);
        let functions = roll_up.functions.iter();
        functions.map(|sums| (sums.name.as_str(), row(sums).0, row(sums).1)).collect()
    }

    fn calls(roll_up: &RollUp) -> Vec<(&str, &str, i64)> {
        let name = |index: u32| roll_up.functions[index as usize].name.as_str();
        roll_up
            .calls
            .iter()
            .map(|call| (name(call.caller), name(call.callee), call.value))
            .collect()
    }

    /// Stack, values, labels.
    type Row<'a> = (&'a [&'a str], &'a [i64], &'a [(&'a str, LabelValue<'a>)]);

    /// A profile of a kind; stacks are names from the leaf to the root.
    fn profile(kind: Kind, samples: &[Row<'_>]) -> Profile {
        let mut builder = ProfileBuilder::new(kind.sample_types(), kind.default_sample_type());
        for (stack, values, labels) in samples {
            let mut locations = Vec::new();
            for name in *stack {
                let function = builder.function(FunctionInfo { name, ..FunctionInfo::default() });
                locations.push(builder.location(None, 0, &[(function, 0)]));
            }
            builder.sample(&locations, values, labels);
        }
        builder.finish()
    }

    #[test]
    fn sums_are_those_of_the_top_table() {
        let profile = small_profile();
        let roll_up = roll_up(&profile, Kind::Cpu);
        let top = crate::top(&profile, 1);
        assert_eq!(roll_up.total_value, top.total_value);
        let mut expected: Vec<(&str, i64, i64)> =
            top.functions.iter().map(|f| (f.name.as_str(), f.self_value, f.total_value)).collect();
        expected.sort_unstable();
        assert_eq!(rows(&roll_up), expected);
        let counts: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
        assert_eq!(roll_up.samples, u64::try_from(counts).unwrap());
    }

    #[test]
    fn recursion_counts_once_and_calls_are_known() {
        let stack: &[&str] = &["visit", "visit", "visit", "main"];
        let roll_up = roll_up(&profile(Kind::Cpu, &[(stack, &[2, 20], &[])]), Kind::Cpu);
        assert_eq!(rows(&roll_up), [("main", 0, 20), ("visit", 20, 20)]);
        assert_eq!(calls(&roll_up), [("main", "visit", 20), ("visit", "visit", 20)]);
        assert_eq!(roll_up.functions[1].total_samples, 2);
    }

    #[test]
    fn idle_waits_are_left_out() {
        let idle: &[_] = &[("idle", LabelValue::Str("true"))];
        let samples: &[(&[&str], &[i64], &[_])] =
            &[(&["epoll_wait", "main"], &[9, 900], idle), (&["read", "main"], &[7, 70], &[])];
        let roll_up = roll_up(&profile(Kind::OffCpu, samples), Kind::OffCpu);
        assert_eq!(rows(&roll_up), [("main", 0, 70), ("read", 70, 70)]);
        assert_eq!(roll_up.samples, 1, "one that stands for seven");
    }

    #[test]
    fn latencies_are_counted_in_their_buckets() {
        let took = |ns| [("latency", LabelValue::Num(ns, "nanoseconds"))];
        let (short, long) = (took(1024), took(8192));
        let samples: &[(&[&str], &[i64], &[_])] = &[
            (&["connect"], &[1, 9000], &long),
            (&["connect"], &[5, 6000], &short),
            (&["send"], &[2, 2500], &short),
            (&["reset"], &[3, 0], &[]),
        ];
        let roll_up = roll_up(&profile(Kind::Tcp, samples), Kind::Tcp);
        let buckets: Vec<_> = roll_up.latencies.iter().map(|b| (b.from_ns, b.count)).collect();
        assert_eq!(buckets, [(1024, 7), (8192, 1)]);
        assert_eq!(roll_up.total_value, 17_500);
    }

    #[test]
    fn profiles_of_another_kind_give_nothing() {
        assert_eq!(roll_up(&small_profile(), Kind::Tcp), RollUp::default());
    }
}
