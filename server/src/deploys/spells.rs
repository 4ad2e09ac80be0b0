//! When which version of a service ran, from the windows of its profiles. Pure: no clock, no I/O.
//!
//! A deploy is a spell: a version that is seen, until another one has been seen and it has not been for
//! [`GAP_NS`]. So a rolling deploy is two spells that overlap, a restart or an outage of everything none, and a
//! version that comes back after a rollback has two. Windows come in any order, as agents keep them while the
//! collector is away.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A version that was not seen for this long, while another one was, has gone.
pub(crate) const GAP_NS: u64 = 15 * 60 * 1_000_000_000;

/// Hosts, and build ids, that are remembered of a spell.
const MAX_HOSTS: usize = 10_000;
const MAX_BUILD_IDS: usize = 64;

/// Spells that are remembered of a service; the oldest are forgotten.
const MAX_SPELLS: usize = 1_000;

/// A time, in nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The start of the first window.
    pub first_unix_ns: u64,
    /// The end of the last one.
    pub last_unix_ns: u64,
}

impl Extent {
    fn include(&mut self, other: Self) {
        self.first_unix_ns = self.first_unix_ns.min(other.first_unix_ns);
        self.last_unix_ns = self.last_unix_ns.max(other.last_unix_ns);
    }

    /// How far a window is from this; 0 where they meet.
    fn distance_ns(self, other: Self) -> u64 {
        let after = other.first_unix_ns.saturating_sub(self.last_unix_ns);
        after.max(self.first_unix_ns.saturating_sub(other.last_unix_ns))
    }
}

/// A window of a process of some version.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The label `version`; may be empty.
    pub version: &'a str,
    /// The label `host`.
    pub host: &'a str,
    /// The label `build_id`; may be empty.
    pub build_id: &'a str,
    /// When.
    pub window: Extent,
}

/// A time in which a version ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spell {
    /// Which version.
    pub version: String,
    /// From its first to its last window.
    pub extent: Extent,
    /// On which hosts, and when on each.
    pub hosts: BTreeMap<String, Extent>,
    /// Of its executables, in the order in which they were seen.
    pub build_ids: Vec<String>,
}

/// What is known of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spells {
    /// In the order in which they began.
    spells: Vec<Spell>,
}

impl Spells {
    /// All spells, in the order in which they began.
    pub fn all(&self) -> &[Spell] {
        &self.spells
    }

    /// Takes notice of a window. Whether a spell has begun with it.
    pub fn see(&mut self, seen: &Seen<'_>) -> bool {
        let of_version =
            self.spells.iter().enumerate().filter(|(_, spell)| spell.version == seen.version);
        let near = of_version
            .map(|(at, spell)| (spell.extent.distance_ns(seen.window), at))
            .filter(|(distance_ns, at)| {
                *distance_ns <= GAP_NS || !self.is_another_between(*at, seen.window)
            })
            .min();
        match near {
            Some((_, at)) => {
                self.spells[at].include(seen);
                self.join_from(at);
                false
            }
            None => {
                let at = self.spells.partition_point(|spell| {
                    spell.extent.first_unix_ns <= seen.window.first_unix_ns
                });
                self.spells.insert(at, Spell::new(seen));
                if self.spells.len() > MAX_SPELLS {
                    self.spells.remove(0);
                }
                true
            }
        }
    }

    /// The version that most hosts ran just before a spell began; of as many hosts, the one that was seen last.
    pub fn before(&self, at: usize) -> Option<&Spell> {
        let spell = self.spells.get(at)?;
        let begin = spell.extent.first_unix_ns;
        let earlier = self.spells[..at].iter().filter(|other| other.version != spell.version);
        earlier.max_by_key(|other| {
            let is_recent = other.extent.last_unix_ns.saturating_add(GAP_NS) >= begin;
            let running = other.hosts.values().filter(|host| {
                host.first_unix_ns < begin && host.last_unix_ns.saturating_add(GAP_NS) >= begin
            });
            (is_recent, running.count(), other.extent.last_unix_ns)
        })
    }

    /// Whether a version had run before this spell.
    pub fn is_return(&self, at: usize) -> bool {
        let version = self.spells.get(at).map(|spell| spell.version.as_str());
        self.spells[..at].iter().any(|other| Some(other.version.as_str()) == version)
    }

    /// Forgets what ended before an instant.
    pub(crate) fn forget_before(&mut self, unix_ns: u64) {
        self.spells.retain(|spell| spell.extent.last_unix_ns >= unix_ns);
    }

    /// Whether another version began, or went on, between a spell and a window of its version.
    fn is_another_between(&self, at: usize, window: Extent) -> bool {
        let spell = &self.spells[at];
        let between = if window.first_unix_ns >= spell.extent.last_unix_ns {
            (spell.extent.last_unix_ns, window.first_unix_ns)
        } else {
            (window.last_unix_ns, spell.extent.first_unix_ns)
        };
        self.spells.iter().any(|other| {
            other.version != spell.version
                && other.extent.first_unix_ns < between.1
                && other.extent.last_unix_ns > between.0
        })
    }

    /// A spell that has grown may meet another of its version: what lay between came late.
    fn join_from(&mut self, mut at: usize) {
        while let Some(other) = self.meets(at) {
            let gone = self.spells.remove(at.max(other));
            at = at.min(other);
            self.spells[at].absorb(gone);
        }
        self.spells.sort_by_key(|spell| spell.extent.first_unix_ns);
    }

    /// Another spell of the same version that is no further away than it may be within one.
    fn meets(&self, at: usize) -> Option<usize> {
        let spell = &self.spells[at];
        let is_near = |(other, candidate): &(usize, &Spell)| {
            *other != at
                && candidate.version == spell.version
                && candidate.extent.distance_ns(spell.extent) <= GAP_NS
        };
        self.spells.iter().enumerate().find(is_near).map(|(other, _)| other)
    }
}

impl Spell {
    fn new(seen: &Seen<'_>) -> Self {
        let mut spell = Self {
            version: seen.version.to_owned(),
            extent: seen.window,
            hosts: BTreeMap::new(),
            build_ids: Vec::new(),
        };
        spell.include(seen);
        spell
    }

    fn include(&mut self, seen: &Seen<'_>) {
        self.extent.include(seen.window);
        if let Some(extent) = self.hosts.get_mut(seen.host) {
            extent.include(seen.window);
        } else if self.hosts.len() < MAX_HOSTS {
            self.hosts.insert(seen.host.to_owned(), seen.window);
        }
        self.add_build_id(seen.build_id);
    }

    fn add_build_id(&mut self, build_id: &str) {
        let is_known = self.build_ids.iter().any(|known| known == build_id);
        if !build_id.is_empty() && !is_known && self.build_ids.len() < MAX_BUILD_IDS {
            self.build_ids.push(build_id.to_owned());
        }
    }

    fn absorb(&mut self, other: Self) {
        self.extent.include(other.extent);
        for (host, extent) in other.hosts {
            self.hosts.entry(host).and_modify(|known| known.include(extent)).or_insert(extent);
        }
        let other: BTreeSet<String> = other.build_ids.into_iter().collect();
        for build_id in &other {
            self.add_build_id(build_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    fn seen<'a>(version: &'a str, host: &'a str, minute: u64) -> Seen<'a> {
        let window = Extent { first_unix_ns: minute * MINUTE, last_unix_ns: (minute + 1) * MINUTE };
        Seen { version, host, build_id: version, window }
    }

    /// What (version, host, minute) make of versions and their minutes.
    fn check(windows: &[(&str, &str, u64)], expected: &[(&str, u64, u64)]) -> Spells {
        let mut spells = Spells::default();
        for (version, host, minute) in windows {
            spells.see(&seen(version, host, *minute));
        }
        let found: Vec<_> = spells
            .all()
            .iter()
            .map(|spell| {
                let Extent { first_unix_ns, last_unix_ns } = spell.extent;
                (spell.version.as_str(), first_unix_ns / MINUTE, last_unix_ns / MINUTE)
            })
            .collect();
        assert_eq!(found, expected, "{windows:?}");
        spells
    }

    #[test]
    fn version_begins_where_it_is_seen_first() {
        let spells =
            check(&[("v1", "a", 1), ("v1", "a", 2), ("v2", "a", 3)], &[("v1", 1, 3), ("v2", 3, 4)]);
        assert_eq!(spells.before(1).map(|spell| spell.version.as_str()), Some("v1"));
        assert_eq!(spells.before(0), None);
        assert_eq!(spells.all()[1].build_ids, ["v2"]);
    }

    #[test]
    fn rolling_deploy_is_two_spells_that_overlap() {
        let windows = [
            ("v1", "a", 1),
            ("v1", "b", 1),
            ("v2", "a", 2),
            ("v1", "b", 2),
            ("v2", "a", 3),
            ("v2", "b", 3),
        ];
        let spells = check(&windows, &[("v1", 1, 3), ("v2", 2, 4)]);
        assert_eq!(spells.all()[1].hosts.len(), 2);
        assert_eq!(spells.all()[1].hosts["b"].first_unix_ns, 3 * MINUTE);
    }

    #[test]
    fn version_that_comes_back_after_another_is_a_deploy_of_its_own() {
        let windows = [("v1", "a", 1), ("v2", "a", 2), ("v2", "a", 20), ("v1", "a", 21)];
        let spells = check(&windows, &[("v1", 1, 2), ("v2", 2, 21), ("v1", 21, 22)]);
        assert!(spells.is_return(2) && !spells.is_return(1));
        assert_eq!(spells.before(2).map(|spell| spell.version.as_str()), Some("v2"));
    }

    #[test]
    fn quick_change_back_is_no_deploy() {
        // A host that was late with the old version.
        check(&[("v1", "a", 1), ("v2", "a", 2), ("v1", "b", 5)], &[("v1", 1, 6), ("v2", 2, 3)]);
    }

    #[test]
    fn silence_of_everything_is_none() {
        check(&[("v1", "a", 1), ("v1", "a", 600)], &[("v1", 1, 601)]);
    }

    #[test]
    fn windows_that_come_late_join_what_they_lie_between() {
        let windows =
            [("v1", "a", 0), ("v2", "b", 1), ("v1", "a", 40), ("v1", "a", 14), ("v1", "a", 27)];
        let spells = check(&windows, &[("v1", 0, 41), ("v2", 1, 2)]);
        assert_eq!(spells.all()[0].hosts.len(), 1);
    }

    #[test]
    fn old_windows_of_a_new_version_move_its_begin() {
        check(&[("v1", "a", 1), ("v2", "a", 9), ("v2", "b", 7)], &[("v1", 1, 2), ("v2", 7, 10)]);
    }

    #[test]
    fn of_several_versions_before_the_one_that_most_hosts_ran_counts() {
        let mut windows = vec![("canary", "c", 9)];
        windows.extend(["a", "b"].map(|host| ("v1", host, 9)));
        windows.push(("v2", "a", 10));
        let mut spells = Spells::default();
        for (version, host, minute) in &windows {
            spells.see(&seen(version, host, *minute));
        }
        let at = spells.all().iter().position(|spell| spell.version == "v2").unwrap();
        assert_eq!(spells.before(at).map(|spell| spell.version.as_str()), Some("v1"));
    }
}
