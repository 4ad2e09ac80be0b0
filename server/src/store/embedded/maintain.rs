//! Retention, the disk budget, and getting the engine going again.
//!
//! Deleting is per partition, oldest first. The newest partition is never deleted
//! for the budget: it holds at most an eighth of it.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use fjall::PersistMode;

use super::{EmbeddedStore, Open, partition::Partition};
use crate::store::{Maintained, StoreError};

/// Partitions that were not written to for so long are written to table files, so
/// that neither memory nor the journal has to keep them, and their series are
/// forgotten: there is a partition for every hour of the retention.
const IDLE: Duration = Duration::from_secs(600);
/// Reopening writes to table files what was in memory; with less room than this it
/// would only fail again.
const REOPEN_BYTES: u64 = 32 << 20;

pub(super) fn maintain(store: &EmbeddedStore, now_unix_ns: u64) -> Result<Maintained, StoreError> {
    let _no_commits = store.commits.lock().unwrap_or_else(PoisonError::into_inner);
    let reopened = reopen_if_suspended(store)?;
    store.with_open(|open| {
        let failed = |err| store.engine_error("delete old profiles", err);
        let maintained = delete_old(store, open, now_unix_ns).map_err(failed)?;
        {
            let mut batch_ids = open.batch_ids.lock().unwrap_or_else(PoisonError::into_inner);
            batch_ids
                .prune(&open.database, store.options.retention, now_unix_ns)
                .map_err(failed)?;
        }
        flush_idle(open).map_err(|err| store.engine_error("flush", err))?;
        Ok(Maintained { reopened: u64::from(reopened), ..maintained })
    })
}

/// After a failed write the engine refuses all further ones, rightly: it no longer
/// knows what is on disk. Opening it again replays the journal, so that it does.
fn reopen_if_suspended(store: &EmbeddedStore) -> Result<bool, StoreError> {
    let healthy = store.with_open(|open| {
        open.database
            .persist(PersistMode::Buffer)
            .map_err(|err| store.engine_error("check the journal", err))
    });
    if healthy.is_ok() {
        return Ok(false);
    }
    store.check_room_for(REOPEN_BYTES)?;
    // Waits for queries to finish; they hold references that keep the engine open.
    let mut open = store.open.write().unwrap_or_else(PoisonError::into_inner);
    drop(open.take());
    *open = Some(store.open_engine()?);
    tracing::warn!(path = %store.data_dir.display(), "reopened the store after a failed write");
    Ok(true)
}

fn delete_old(
    store: &EmbeddedStore,
    open: &Open,
    now_unix_ns: u64,
) -> Result<Maintained, fjall::Error> {
    let retention_ns = u64::try_from(store.options.retention.as_nanos()).unwrap_or(u64::MAX);
    let keep_from_unix_ns = now_unix_ns.saturating_sub(retention_ns);
    let mut maintained = Maintained::default();
    let partitions = open.partitions();
    let mut data_bytes: u64 = partitions.iter().map(|partition| partition.bytes()).sum();
    let newest = partitions.last().map(|partition| partition.id);
    for partition in partitions {
        let expired = partition.id.end_unix_ns() <= keep_from_unix_ns;
        let over_budget = data_bytes > store.options.max_disk_bytes && Some(partition.id) != newest;
        if !expired && !over_budget {
            break;
        }
        let bytes = partition.bytes();
        delete(open, partition)?;
        data_bytes = data_bytes.saturating_sub(bytes);
        maintained.deleted_bytes += bytes;
        if expired {
            maintained.expired_partitions += 1;
        } else {
            maintained.evicted_partitions += 1;
        }
    }
    Ok(maintained)
}

/// The files go when the last query that reads them has ended.
fn delete(open: &Open, partition: Arc<Partition>) -> Result<(), fjall::Error> {
    let keyspace = partition.keyspace.clone();
    open.database.delete_keyspace(keyspace)?;
    let mut partitions = open.partitions.write().unwrap_or_else(PoisonError::into_inner);
    partitions.remove(&partition.id);
    tracing::info!(partition = %partition.id, bytes = partition.bytes(), "deleted old profiles");
    Ok(())
}

fn flush_idle(open: &Open) -> Result<(), fjall::Error> {
    for partition in open.partitions() {
        if !partition.is_idle(IDLE) {
            continue;
        }
        partition.forget_series();
        if partition.can_be_flushed() {
            partition.keyspace.rotate_memtable()?;
        }
    }
    Ok(())
}
