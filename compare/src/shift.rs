//! Costs that only moved: functions that were renamed, split or inlined.
//!
//! What one function has more, another one that has the same caller has less: their caller costs what it did.
//! FBDetect (SOSP 2024) found a third of all changes of functions to be of that sort.

use std::collections::BTreeMap;

use crate::sums::FunctionId;

/// What moved may differ by so much of it: pieces that are too small to be seen, and noise.
pub(crate) const TOLERANCE: f64 = 0.25;

/// A function that has this many times what it had is taken for new; so much less, for gone.
const NEW: f64 = 10.0;

/// Shares tell nothing of functions that are this part of everything.
const MOST: f64 = 0.5;

/// A function that may have got cost from another one, or given it away.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Moving {
    /// Which one.
    pub(crate) function: FunctionId,
    /// Whether what moved is its own, or what it has with all that it calls.
    pub(crate) part: Part,
    /// Who called it most of the time.
    pub(crate) caller: Option<FunctionId>,
    /// Its share in the base, and on the other side.
    pub(crate) base: f64,
    pub(crate) compare: f64,
    /// What it costs, as part of what everything did in the base.
    pub(crate) base_cost: f64,
    pub(crate) compare_cost: f64,
    /// Whether its change is one by itself.
    pub(crate) changed: bool,
}

/// A part of a function's cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Own,
    Total,
}

/// A shift: what moved, and within which function.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shift {
    pub(crate) within: Option<FunctionId>,
    pub(crate) among: Vec<(FunctionId, Part)>,
}

impl Moving {
    fn delta(&self) -> f64 {
        self.compare - self.base
    }

    fn is_new_or_gone(&self) -> bool {
        self.compare > NEW * self.base || self.base > NEW * self.compare
    }

    /// The function within which it may have moved: for what is its own, itself.
    fn within(&self) -> Option<FunctionId> {
        match self.part {
            Part::Own => Some(self.function),
            Part::Total => self.caller,
        }
    }
}

/// Finds what only moved. A function's own cost moves within itself: to or from what it calls.
pub(crate) fn shifts(moving: &[Moving]) -> Vec<Shift> {
    let mut groups: BTreeMap<Option<FunctionId>, Vec<Moving>> = BTreeMap::new();
    for candidate in moving.iter().filter(|it| it.changed || it.is_new_or_gone()) {
        groups.entry(candidate.within()).or_default().push(*candidate);
    }
    let mut shifts = Vec::new();
    for (within, mut group) in groups {
        let mut take = |group: &mut Vec<Moving>, is_of: &dyn Fn(&Moving) -> bool| {
            let some: Vec<Moving> = group.iter().copied().filter(is_of).collect();
            if is_balanced(&some) {
                group.retain(|it| !is_of(it));
                let among = some.iter().map(|it| (it.function, it.part)).collect();
                shifts.push(Shift { within, among });
            }
        };
        take(&mut group, &|_| true);
        take(&mut group, &Moving::is_new_or_gone);
        // What is left are single renames beside changes that are real.
        while let Some((one, other)) = best_pair(&group) {
            take(&mut group, &|it| *it == one || *it == other);
        }
    }
    shifts
}

fn is_balanced(group: &[Moving]) -> bool {
    // Shares of what is most of everything are balanced anyhow, as all of them add up to one.
    let is_most = group.iter().map(|it| it.base.max(it.compare)).sum::<f64>() >= MOST;
    let delta = |it: &Moving| if is_most { it.compare_cost - it.base_cost } else { it.delta() };
    let gained: f64 = group.iter().map(|it| delta(it).max(0.0)).sum();
    let lost: f64 = group.iter().map(|it| (-delta(it)).max(0.0)).sum();
    gained > 0.0 && lost > 0.0 && (gained - lost).abs() <= TOLERANCE * gained.max(lost)
}

/// The two that cancel each other out best.
fn best_pair(group: &[Moving]) -> Option<(Moving, Moving)> {
    let gaining = group.iter().filter(|it| it.delta() > 0.0);
    let pairs = gaining.flat_map(|one| {
        let losing = group.iter().filter(|it| it.delta() < 0.0);
        losing.map(move |other| (*one, *other))
    });
    let imbalance = |(one, other): &(Moving, Moving)| {
        (one.delta() + other.delta()).abs() / one.delta().max(-other.delta())
    };
    let best = pairs.min_by(|a, b| imbalance(a).total_cmp(&imbalance(b)));
    best.filter(|(one, other)| is_balanced(&[*one, *other]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moving(
        function: FunctionId,
        part: Part,
        caller: Option<FunctionId>,
        (base, compare): (f64, f64),
        (base_cost, compare_cost): (f64, f64),
    ) -> Moving {
        Moving { function, part, caller, base, compare, base_cost, compare_cost, changed: true }
    }

    fn total(function: FunctionId, caller: FunctionId, base: f64, compare: f64) -> Moving {
        moving(function, Part::Total, Some(caller), (base, compare), (base, compare))
    }

    /// The functions of each shift.
    fn check(moving: &[Moving], expected: &[&[FunctionId]]) {
        let found = shifts(moving);
        let among: Vec<Vec<_>> = found
            .iter()
            .map(|shift| shift.among.iter().map(|(function, _)| *function).collect())
            .collect();
        assert_eq!(among, expected, "{moving:?}");
    }

    #[test]
    fn function_that_was_renamed_moved() {
        check(&[total(1, 0, 3.0, 0.0), total(2, 0, 0.0, 3.2)], &[&[1, 2]]);
    }

    #[test]
    fn function_that_was_split_moved() {
        check(
            &[total(1, 0, 3.0, 0.0), total(2, 0, 0.0, 1.0), total(3, 0, 0.0, 2.0)],
            &[&[1, 2, 3]],
        );
    }

    #[test]
    fn pieces_that_are_no_change_by_themselves_count() {
        let piece = |function| Moving { changed: false, ..total(function, 0, 0.0, 1.0) };
        check(&[total(1, 0, 2.0, 0.0), piece(2), piece(3)], &[&[1, 2, 3]]);
    }

    #[test]
    fn noise_of_others_does_not_count() {
        let noise = Moving { changed: false, ..total(3, 0, 10.0, 8.0) };
        check(&[total(1, 0, 3.0, 0.0), total(2, 0, 0.0, 3.0), noise], &[&[1, 2]]);
    }

    #[test]
    fn more_than_was_lost_is_no_shift() {
        check(&[total(1, 0, 3.0, 0.0), total(2, 0, 0.0, 5.0)], &[]);
        check(&[total(1, 0, 3.0, 5.0)], &[]);
    }

    #[test]
    fn functions_of_other_callers_do_not_make_up_for_it() {
        check(&[total(1, 0, 3.0, 0.0), total(2, 9, 0.0, 3.0)], &[]);
    }

    #[test]
    fn rename_beside_a_regression_is_found() {
        check(&[total(1, 0, 3.0, 0.0), total(2, 0, 0.0, 3.0), total(3, 0, 5.0, 9.0)], &[&[1, 2]]);
        check(&[total(1, 0, 3.0, 0.5), total(2, 0, 1.0, 3.5), total(3, 0, 5.0, 9.0)], &[&[1, 2]]);
    }

    #[test]
    fn function_that_was_inlined_moved_into_its_caller() {
        let own = moving(0, Part::Own, Some(9), (1.0, 4.0), (1.0, 4.0));
        let found = shifts(&[own, total(1, 0, 3.0, 0.0)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].within, Some(0));
        assert_eq!(found[0].among, [(0, Part::Own), (1, Part::Total)]);
    }

    #[test]
    fn one_of_two_that_are_everything_does_not_move_because_the_other_grows() {
        let grows = moving(1, Part::Total, Some(0), (0.5, 0.65), (0.5, 0.70));
        let shrinks = moving(2, Part::Total, Some(0), (0.5, 0.35), (0.5, 0.38));
        assert_eq!(shifts(&[grows, shrinks]), []);
        let gone = moving(1, Part::Total, Some(0), (0.9, 0.0), (0.9, 0.0));
        let new = moving(2, Part::Total, Some(0), (0.0, 0.9), (0.0, 0.95));
        assert_eq!(shifts(&[gone, new]).len(), 1);
    }
}
