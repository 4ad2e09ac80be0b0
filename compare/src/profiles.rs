//! Sums by function, of profiles.
//!
//! What nobody waits for is left out: waits of event loops for something to do (label `idle` of kind `offcpu`) are
//! as long as there is nothing to do.

use everflame_profile::{Kind, Stacks, block, pprof::Profile, sample_type_index, select, tcp};

use crate::{
    latency::Latencies,
    sums::{Caller, FunctionId, FunctionSum, Functions, Side, Sum, Window},
};

/// Sums up the profiles of one instance of a service, window by window, until they are handed over; then those of
/// the next one. Kept between instances, as its tables are as long as there are functions.
#[derive(Debug, Default)]
pub struct Summer {
    all: Sum,
    sums: Vec<FunctionSum>,
    /// The functions that have a sum.
    touched: Vec<FunctionId>,
    /// The sample in which a function was seen last: tells recursion from the first time.
    seen_in: Vec<u64>,
    sample: u64,
    windows: Vec<(u64, u64)>,
    latencies: Latencies,
}

/// Which instance of a service, on which host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance<'a> {
    /// The host.
    pub host: &'a str,
    /// Unique on it.
    pub name: &'a str,
}

impl Summer {
    /// Adds a profile of a window, which began at `start_unix_ns`. One without the values of the kind adds just
    /// its window.
    pub fn add(
        &mut self,
        profile: &Profile,
        kind: Kind,
        (start_unix_ns, duration_ns): (u64, u64),
        functions: &mut Functions,
    ) {
        self.windows.push((start_unix_ns, duration_ns));
        let index = |name: &str| sample_type_index(profile, Some(name));
        let value_index =
            index(kind.default_sample_type()).or_else(|_| sample_type_index(profile, None));
        let Ok(value_index) = value_index else { return };
        // What was counted: samples of a CPU, waits, objects.
        let counts = kind.sample_types().first().and_then(|(name, _)| index(name).ok());
        let latency_label = match kind {
            Kind::Block => Some(block::DEVICE_TIME),
            Kind::Tcp => Some(tcp::LATENCY),
            _ => None,
        };
        let stacks = Stacks::new(profile, &mut |name, filename| functions.intern(name, filename));
        self.sums.resize(functions.len(), FunctionSum::default());
        self.seen_in.resize(functions.len(), 0);
        for sample in &profile.sample {
            let at = |index: usize| sample.value.get(index).copied().unwrap_or(0);
            let value = at(value_index);
            if let Some(took) =
                latency_label.and_then(|name| select::number_of(profile, sample, name))
            {
                let count = counts.map_or(1.0, |index| at(index) as f64);
                self.latencies.add(u64::try_from(took).unwrap_or(0), count);
            }
            let is_idle = kind == Kind::OffCpu && select::label(profile, sample, "idle") == "true";
            if value == 0 || is_idle {
                continue;
            }
            let samples = counts.map_or(1.0, |index| at(index) as f64);
            self.add_stack(stacks.of(sample), Sum { value: value as f64, samples });
        }
    }

    /// Hands over what was added since the last time.
    pub fn finish(&mut self, side: &mut Side, instance: Instance<'_>) {
        let functions: Vec<(FunctionId, FunctionSum)> = self
            .touched
            .drain(..)
            .filter_map(|id| self.sums.get_mut(index(id)).map(|sum| (id, std::mem::take(sum))))
            .collect();
        let Instance { host, name: instance } = instance;
        let mut windows = self.windows.drain(..);
        if let Some((start_unix_ns, duration_ns)) = windows.next() {
            let all = std::mem::take(&mut self.all);
            side.add(&Window {
                host,
                instance,
                start_unix_ns,
                duration_ns,
                all,
                functions: &functions,
            });
        }
        if !self.latencies.is_empty() {
            side.took(host, instance, &self.latencies.take());
        }
        for (start_unix_ns, duration_ns) in windows {
            side.ran(host, instance, start_unix_ns, duration_ns);
        }
    }

    /// Adds a stack, leaf first.
    fn add_stack(&mut self, stack: impl Iterator<Item = FunctionId>, sum: Sum) {
        self.all += sum;
        self.sample += 1;
        let mut is_leaf = true;
        let mut stack = stack.peekable();
        while let Some(id) = stack.next() {
            let caller = Caller { function: stack.peek().copied(), lead: sum.value };
            let at = index(id);
            let (Some(function), Some(seen_in)) = (self.sums.get_mut(at), self.seen_in.get_mut(at))
            else {
                continue;
            };
            if is_leaf {
                function.own += sum;
                is_leaf = false;
            }
            if *seen_in != self.sample {
                *seen_in = self.sample;
                if function.total == Sum::default() {
                    self.touched.push(id);
                }
                function.total += sum;
            }
            // A recursive function is not its own caller.
            if caller.function != Some(id) {
                function.caller.add(caller);
            }
        }
    }
}

fn index(id: FunctionId) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use everflame_profile::{FunctionInfo, LabelValue, ProfileBuilder};

    use super::*;

    const WINDOW: (u64, u64) = (0, 10_000_000_000);

    /// Stack from the leaf to the root, values, labels.
    type Row<'a> = (&'a [&'a str], &'a [i64], &'a [(&'a str, LabelValue<'a>)]);

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

    /// The (own, total) values and samples of functions, and the caller's name.
    fn check(kind: Kind, profiles: &[Profile], expected: &[(&str, [f64; 4], &str)]) {
        let (mut functions, mut side, mut summer) =
            (Functions::default(), Side::default(), Summer::default());
        for profile in profiles {
            summer.add(profile, kind, WINDOW, &mut functions);
        }
        summer.finish(&mut side, Instance { host: "a", name: "1" });
        let host = &side.hosts()["a"];
        for (name, sums, caller) in expected {
            let id = functions.intern(name, "");
            let (own, total) = (host.own(id), host.total(id));
            assert_eq!([own.value, own.samples, total.value, total.samples], *sums, "{name}");
            let found = side.votes(id).function.map_or("", |id| functions.info(id).name.as_str());
            assert_eq!(found, *caller, "{name}");
        }
        assert_eq!(functions.len(), expected.len());
    }

    #[test]
    fn self_is_the_leaf_and_total_is_the_stack() {
        let first = profile(
            Kind::Cpu,
            &[(&["parse", "serve", "main"], &[2, 20], &[]), (&["serve", "main"], &[1, 10], &[])],
        );
        let second = profile(Kind::Cpu, &[(&["parse.part.0", "main"], &[1, 10], &[])]);
        check(
            Kind::Cpu,
            &[first, second],
            &[
                ("parse", [30.0, 3.0, 30.0, 3.0], "serve"),
                ("serve", [10.0, 1.0, 30.0, 3.0], "main"),
                ("main", [0.0, 0.0, 40.0, 4.0], ""),
            ],
        );
    }

    #[test]
    fn recursion_counts_once_and_is_no_caller() {
        let recursive =
            profile(Kind::Cpu, &[(&["visit", "visit", "visit", "main"], &[4, 40], &[])]);
        check(
            Kind::Cpu,
            &[recursive],
            &[("visit", [40.0, 4.0, 40.0, 4.0], "main"), ("main", [0.0, 0.0, 40.0, 4.0], "")],
        );
    }

    #[test]
    fn waits_for_something_to_do_are_left_out() {
        let idle = [("idle", LabelValue::Str("true"))];
        let waits = profile(
            Kind::OffCpu,
            &[(&["epoll_wait"], &[9, 900], &idle), (&["fsync"], &[5, 50], &[])],
        );
        check(
            Kind::OffCpu,
            &[waits],
            &[("fsync", [50.0, 5.0, 50.0, 5.0], ""), ("epoll_wait", [0.0; 4], "")],
        );
    }

    #[test]
    fn instances_are_kept_apart() {
        let (mut functions, mut side, mut summer) =
            (Functions::default(), Side::default(), Summer::default());
        for (name, value) in [("1", 10), ("2", 20)] {
            summer.add(
                &profile(Kind::Cpu, &[(&["f"], &[1, value], &[])]),
                Kind::Cpu,
                WINDOW,
                &mut functions,
            );
            summer.finish(&mut side, Instance { host: "a", name });
        }
        let of = |name: &str| side.instances()[name].own(0).value;
        assert_eq!((of("a/1"), of("a/2")), (10.0, 20.0));
    }
}
