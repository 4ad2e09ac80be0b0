//! Reads a side's profiles into sums by host, instance and function.

use std::{collections::HashMap, ops::ControlFlow, sync::Arc};

use everflame_compare::{ComparedSide, Functions, Instance, Side, Summer};
use everflame_profile::{Kind, decode};

use super::{Wanted, WantedSide};
use crate::{
    ingest::labels::HOST,
    query::{
        engine::{Run, STORED_LIMITS, summed},
        error::QueryError,
        selector::Selector,
    },
    store::{Filter, SeriesKey, StoredProfile, TimeRange},
};

/// Ways to see allocations, which see the same memory: the first that both sides have is compared.
const ALLOC_MODES: [&str; 3] = ["faults", "live", "window"];

/// Kinds whose windows say that an instance ran: where it did nothing of a kind there is no profile of it.
const KINDS_THAT_SAY_WHEN: [Kind; 2] = [Kind::Cpu, Kind::OffCpu];

/// Labels that profiles of other kinds do not have.
const LABELS_OF_ONE_KIND: [&str; 5] = ["side", "mode", "event", "oom", "device"];

/// The conditions of a comparison, with those that its kind brings: what is counted once, and is a cost.
pub(super) fn selector_of_kind(run: &Run, wanted: &Wanted) -> Result<Selector, QueryError> {
    let selector = wanted.selector.clone().and("service", &wanted.service);
    match wanted.kind {
        // Who holds a lock is who can do something about it.
        Kind::Lock if !selector.is_on("side") => Ok(selector.and("side", "holder")),
        Kind::Alloc if !selector.is_on("mode") => {
            for mode in ALLOC_MODES {
                let of_mode = selector.clone().and("mode", mode);
                let has = |side| has_profiles(run, wanted.kind, &of_mode, side);
                if has(&wanted.base)? && has(&wanted.compare)? {
                    return Ok(of_mode);
                }
            }
            Ok(selector.and("mode", ALLOC_MODES[0]))
        }
        _ => Ok(selector),
    }
}

fn has_profiles(
    run: &Run,
    kind: Kind,
    selector: &Selector,
    side: &WantedSide,
) -> Result<bool, QueryError> {
    let mut found = false;
    let filter = Filter { kind, selector: of_version(selector, side), range: side.range };
    run.store.visit_series(&filter, &mut |_| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found)
}

fn of_version(selector: &Selector, side: &WantedSide) -> Selector {
    let selector = selector.clone();
    match &side.version {
        Some(version) => selector.and("version", version),
        None => selector,
    }
}

/// Reads one side.
pub(super) struct SideSummer<'a> {
    run: &'a Run,
    filter: Filter,
    warm_up_ns: u64,
    /// When instances that have started within the range were warm.
    warm_from: HashMap<(String, String), u64>,
    side: Side,
    used: ComparedSide,
}

impl<'a> SideSummer<'a> {
    pub(super) fn new(
        run: &'a Run,
        wanted: &Wanted,
        selector: &Selector,
        side: &WantedSide,
    ) -> Self {
        let filter =
            Filter { kind: wanted.kind, selector: of_version(selector, side), range: side.range };
        Self {
            run,
            filter: summed(filter),
            warm_up_ns: u64::try_from(wanted.warm_up.as_nanos()).unwrap_or(u64::MAX),
            warm_from: HashMap::new(),
            side: Side::default(),
            used: ComparedSide::default(),
        }
    }

    pub(super) fn sum(
        mut self,
        functions: &mut Functions,
    ) -> Result<(Side, ComparedSide), QueryError> {
        self.find_starts()?;
        self.see_windows()?;
        self.read(functions)?;
        Ok((self.side, self.used))
    }

    /// Kinds and conditions under which windows say when instances ran.
    fn filters_of_windows(&self) -> Vec<Filter> {
        let mut filters = vec![self.filter.clone()];
        // Windows on allocators are short: nothing else says how long they were.
        let is_window = self.filter.selector.required_values().any(|it| it == ("mode", "window"));
        if !is_window {
            for kind in KINDS_THAT_SAY_WHEN.into_iter().filter(|kind| *kind != self.filter.kind) {
                let mut selector = self.filter.selector.clone();
                for name in LABELS_OF_ONE_KIND {
                    selector = selector.without(name);
                }
                filters.push(Filter { kind, selector, range: self.filter.range });
            }
        }
        filters
    }

    /// Finds out which instances have started within the range, or just before.
    fn find_starts(&mut self) -> Result<(), QueryError> {
        if self.warm_up_ns == 0 {
            return Ok(());
        }
        let TimeRange { start_unix_ns, end_unix_ns } = self.filter.range;
        let from = start_unix_ns.saturating_sub(self.warm_up_ns);
        let mut first: HashMap<(String, String), (u64, u64)> = HashMap::new();
        for mut filter in self.filters_of_windows() {
            filter.range = TimeRange { start_unix_ns: from, end_unix_ns };
            self.run.store.visit_windows(&filter, &mut |series, start_unix_ns, duration_ns| {
                let window = (start_unix_ns, duration_ns);
                let known = first.entry(instance(series)).or_insert(window);
                *known = window.min(*known);
            })?;
        }
        for (instance, (first_unix_ns, duration_ns)) in first {
            // One that is there from the beginning ran before.
            if first_unix_ns > from.saturating_add(duration_ns) {
                self.warm_from.insert(instance, first_unix_ns.saturating_add(self.warm_up_ns));
            }
        }
        Ok(())
    }

    /// Takes notice of when instances ran, whether they did something of this kind or not.
    fn see_windows(&mut self) -> Result<(), QueryError> {
        for filter in self.filters_of_windows().into_iter().skip(1) {
            let (warm_from, side) = (&self.warm_from, &mut self.side);
            self.run.store.visit_windows(&filter, &mut |series, start_unix_ns, duration_ns| {
                let (host, name) = instance(series);
                if is_warm(warm_from, &host, &name, start_unix_ns) {
                    side.ran(&host, &name, start_unix_ns, duration_ns);
                }
            })?;
        }
        Ok(())
    }

    fn read(&mut self, functions: &mut Functions) -> Result<(), QueryError> {
        let store = Arc::clone(&self.run.store);
        let mut reader = Reader { summer: Summer::default(), of: None };
        let mut stopped = None;
        let filter = self.filter.clone();
        store.visit_profiles(&filter, &mut |profile| match self.add(
            &mut reader,
            &profile,
            functions,
        ) {
            Ok(()) => ControlFlow::Continue(()),
            Err(err) => {
                stopped = Some(err);
                ControlFlow::Break(())
            }
        })?;
        reader.hand_over(&mut self.side);
        stopped.map_or(Ok(()), Err)
    }

    fn add(
        &mut self,
        reader: &mut Reader,
        stored: &StoredProfile<'_>,
        functions: &mut Functions,
    ) -> Result<(), QueryError> {
        self.run.check_profiles(self.used.profiles + 1)?;
        let (host, name) = instance(stored.series);
        if !is_warm(&self.warm_from, &host, &name, stored.start_unix_ns) {
            self.used.warm_up_windows += 1;
            return Ok(());
        }
        self.used.profiles += 1;
        if reader.of.as_ref().is_none_or(|(of_host, of_name)| (of_host, of_name) != (&host, &name))
        {
            reader.hand_over(&mut self.side);
            self.run.check_bytes(self.side.bytes() + functions.bytes())?;
            reader.of = Some((host, name));
        }
        let profile = decode(stored.pprof_gz, &STORED_LIMITS)
            .map_err(|source| QueryError::Damaged { source })?;
        reader.summer.add(
            &profile,
            self.filter.kind,
            (stored.start_unix_ns, stored.duration_ns),
            functions,
        );
        Ok(())
    }
}

/// Sums of the instance whose profiles come at the moment: they come one series after the other.
struct Reader {
    summer: Summer,
    of: Option<(String, String)>,
}

impl Reader {
    fn hand_over(&mut self, side: &mut Side) {
        if let Some((host, name)) = self.of.take() {
            self.summer.finish(side, Instance { host: &host, name: &name });
        }
    }
}

/// The host, and what tells an instance of a service from others there: its container, or its process.
fn instance(series: &SeriesKey) -> (String, String) {
    let name = match series.label("container_id") {
        "" => series.label("pid"),
        container => container,
    };
    (series.label(HOST).to_owned(), name.to_owned())
}

fn is_warm(
    warm_from: &HashMap<(String, String), u64>,
    host: &str,
    name: &str,
    start_unix_ns: u64,
) -> bool {
    // Most sides have nobody who has just started.
    warm_from.is_empty()
        || warm_from
            .get(&(host.to_owned(), name.to_owned()))
            .is_none_or(|warm_from| start_unix_ns >= *warm_from)
}
