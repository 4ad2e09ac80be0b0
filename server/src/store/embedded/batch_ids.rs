//! Which batches have been stored: the memory that makes resending harmless.
//!
//! Ids are kept in one keyspace per day of receipt, so that forgetting them is
//! dropping a keyspace. Every id is known for at least [`MIN_KEPT_DAYS`] days after
//! its batch was acknowledged, and for longer than profiles are kept: a sender may
//! come back with a batch after any time, but then the batch is refused as too old.

use std::{collections::BTreeMap, time::Duration};

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use crate::store::BatchId;

const NAME_PREFIX: &str = "batches-";
const DAY_NS: u64 = 24 * 3_600 * 1_000_000_000;
/// Full days that an id is kept, when profiles are kept for less.
const MIN_KEPT_DAYS: u64 = 8;
const MAX_MEMTABLE_BYTES: u64 = 4 << 20;

/// The ids of stored batches, by day since the epoch.
pub(super) struct BatchIds {
    days: BTreeMap<u64, Keyspace>,
}

impl BatchIds {
    /// Opens what exists.
    pub(super) fn open(database: &Database) -> Result<Self, fjall::Error> {
        let mut days = BTreeMap::new();
        for name in database.list_keyspace_names() {
            let day = name.strip_prefix(NAME_PREFIX).and_then(|day| day.parse().ok());
            if let Some(day) = day {
                days.insert(day, database.keyspace(&name, options)?);
            }
        }
        Ok(Self { days })
    }

    /// Whether a batch with this id is durable.
    pub(super) fn contains(&self, id: &BatchId) -> Result<bool, fjall::Error> {
        // A resent batch is most likely a recent one.
        for ids in self.days.values().rev() {
            if ids.contains_key(id)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where to note batches that are received at `now_unix_ns`.
    pub(super) fn day(
        &mut self,
        database: &Database,
        now_unix_ns: u64,
    ) -> Result<Keyspace, fjall::Error> {
        // A clock that went back must not shorten how long an id is kept.
        let latest = self.days.last_key_value().map_or(0, |(day, _)| *day);
        let day = (now_unix_ns / DAY_NS).max(latest);
        if let Some(ids) = self.days.get(&day) {
            return Ok(ids.clone());
        }
        let ids = database.keyspace(&format!("{NAME_PREFIX}{day}"), options)?;
        self.days.insert(day, ids.clone());
        Ok(ids)
    }

    /// Drops the days that need not be kept any more.
    pub(super) fn prune(
        &mut self,
        database: &Database,
        retention: Duration,
        now_unix_ns: u64,
    ) -> Result<(), fjall::Error> {
        let retention_ns = u64::try_from(retention.as_nanos()).unwrap_or(u64::MAX);
        let kept_days = retention_ns.div_ceil(DAY_NS).saturating_add(1).max(MIN_KEPT_DAYS);
        let keep_from = (now_unix_ns / DAY_NS).saturating_sub(kept_days);
        while let Some(entry) = self.days.first_entry() {
            if *entry.key() >= keep_from {
                break;
            }
            database.delete_keyspace(entry.get().clone())?;
            entry.remove();
        }
        Ok(())
    }
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MAX_MEMTABLE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);

    fn check(retention: Duration, known_on: &[(u64, bool)]) {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::builder(dir.path()).open().unwrap();
        let mut ids = BatchIds::open(&database).unwrap();
        let first_day = 20_000 * DAY_NS;
        ids.day(&database, first_day).unwrap().insert([7; 16], []).unwrap();
        for (days_later, known) in known_on {
            ids.prune(&database, retention, first_day + days_later * DAY_NS).unwrap();
            assert_eq!(ids.contains(&[7; 16]).unwrap(), *known, "{days_later} days later");
        }
    }

    #[test]
    fn ids_are_kept_a_week_and_then_forgotten() {
        let known_on = [(0, true), (7, true), (8, true), (9, false)];
        check(WEEK, &known_on);
        check(Duration::ZERO, &known_on);
    }

    #[test]
    fn ids_are_kept_longer_than_profiles() {
        check(4 * WEEK, &[(9, true), (29, true), (30, false)]);
    }

    #[test]
    fn clock_that_goes_back_does_not_shorten_the_memory() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::builder(dir.path()).open().unwrap();
        let mut ids = BatchIds::open(&database).unwrap();
        ids.day(&database, 20_000 * DAY_NS).unwrap();
        ids.day(&database, 10_000 * DAY_NS).unwrap().insert([7; 16], []).unwrap();
        ids.prune(&database, WEEK, 20_000 * DAY_NS).unwrap();
        assert!(ids.contains(&[7; 16]).unwrap());
    }
}
