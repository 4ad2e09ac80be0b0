//! Making batches durable.
//!
//! Invariant: a batch's id, its profiles and the series they need are written in
//! one atomic write, and what is remembered about them in memory changes only
//! after that write is durable.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, PoisonError},
    thread,
    time::Duration,
};

use fjall::{AbstractTree as _, OwnedWriteBatch, PersistMode};

use super::{
    EmbeddedStore, NEXT_PROFILE_KEY, Open,
    keys::{self, ProfileKey, SeriesId},
    partition::{Partition, PartitionId},
};
use crate::{
    query::time,
    store::{BatchId, Committed, SeriesKey, StoreError, ValidBatch, ValidProfile},
};

/// A partition may take this share of the disk budget, so that deleting the
/// oldest one never deletes most of what there is.
const PARTITIONS_PER_BUDGET: u64 = 8;
/// fjall stops a writer, without a way out, while a keyspace has four memtables to
/// flush; wait earlier, where a failed flush is noticed.
const MAX_SEALED_MEMTABLES: usize = 2;
const FLUSH_POLL: Duration = Duration::from_millis(5);

pub(super) fn commit(
    store: &EmbeddedStore,
    batches: &[ValidBatch],
) -> Result<Vec<Committed>, StoreError> {
    let _one_writer = store.commits.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = batches.iter().flat_map(|batch| &batch.profiles);
    store.check_room_for(bytes.map(|profile| profile.pprof_gz.len() as u64).sum())?;
    store.with_open(|open| {
        let failed = |err| store.engine_error("store batches", err);
        let outcomes = outcomes(open, batches).map_err(failed)?;
        let fresh = batches.iter().zip(&outcomes);
        let fresh = fresh.filter(|(_, outcome)| **outcome == Committed::Stored);
        let max_partition_bytes = store.options.max_disk_bytes / PARTITIONS_PER_BUDGET;
        let mut staged = Staged::new(open, max_partition_bytes);
        for (batch, _) in fresh {
            staged.add(batch).map_err(failed)?;
        }
        if staged.is_empty() {
            return Ok(outcomes);
        }
        staged.wait_for_flushes().map_err(failed)?;
        staged.write().map_err(failed)?;
        Ok(outcomes)
    })
}

/// Which of the batches are new; of several with the same id the first is.
fn outcomes(open: &Open, batches: &[ValidBatch]) -> Result<Vec<Committed>, fjall::Error> {
    let batch_ids = open.batch_ids.lock().unwrap_or_else(PoisonError::into_inner);
    let mut seen: HashSet<&BatchId> = HashSet::new();
    let known = |batch| batch_ids.contains(batch);
    batches
        .iter()
        .map(|batch| {
            let duplicate = !seen.insert(&batch.id) || known(&batch.id)?;
            Ok(if duplicate { Committed::Duplicate } else { Committed::Stored })
        })
        .collect()
}

/// A write in the making.
struct Staged<'a> {
    open: &'a Open,
    max_partition_bytes: u64,
    write: OwnedWriteBatch,
    partitions: BTreeMap<PartitionId, StagedPartition>,
    /// The partition that each hour's profiles go to.
    hours: HashMap<u64, PartitionId>,
    batch_ids: Vec<BatchId>,
    next_profile: u64,
}

struct StagedPartition {
    partition: Arc<Partition>,
    next_series: SeriesId,
    new_series: HashMap<Vec<u8>, SeriesId>,
    bytes: u64,
}

impl<'a> Staged<'a> {
    fn new(open: &'a Open, max_partition_bytes: u64) -> Self {
        Self {
            open,
            max_partition_bytes,
            write: open.database.batch().durability(Some(PersistMode::SyncAll)),
            partitions: BTreeMap::new(),
            hours: HashMap::new(),
            batch_ids: Vec::new(),
            next_profile: *open.next_profile.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn is_empty(&self) -> bool {
        self.batch_ids.is_empty()
    }

    fn add(&mut self, batch: &ValidBatch) -> Result<(), fjall::Error> {
        for profile in &batch.profiles {
            self.add_profile(profile)?;
        }
        self.batch_ids.push(batch.id);
        Ok(())
    }

    fn add_profile(&mut self, profile: &ValidProfile) -> Result<(), fjall::Error> {
        let number = self.next_profile;
        self.next_profile = number.saturating_add(1);
        let hour = PartitionId::hour_of(profile.start_unix_ns);
        let id = self.partition_of(hour)?;
        let Some(staged) = self.partitions.get_mut(&id) else { return Ok(()) };
        let series = staged.intern(&mut self.write, &profile.series)?;
        let key = ProfileKey {
            series,
            start_unix_ns: profile.start_unix_ns,
            duration_ns: profile.duration_ns,
            number,
        };
        let key = key.encode();
        staged.bytes += (key.len() + profile.pprof_gz.len()) as u64;
        let keyspace = &staged.partition.keyspace;
        self.write.insert(keyspace, key.as_slice(), profile.pprof_gz.as_ref());
        Ok(())
    }

    /// The partition for new profiles of an hour: its newest, unless that is full.
    fn partition_of(&mut self, hour: u64) -> Result<PartitionId, fjall::Error> {
        if let Some(id) = self.hours.get(&hour) {
            return Ok(*id);
        }
        let hour_range =
            PartitionId { hour, generation: 0 }..=PartitionId { hour, generation: u32::MAX };
        let newest = {
            let partitions = self.open.partitions.read().unwrap_or_else(PoisonError::into_inner);
            partitions.range(hour_range).next_back().map(|(_, partition)| Arc::clone(partition))
        };
        let partition = match newest {
            Some(partition) if partition.bytes() < self.max_partition_bytes => partition,
            full => {
                let generation = full.map_or(0, |full| full.id.generation.saturating_add(1));
                self.create_partition(PartitionId { hour, generation })?
            }
        };
        let id = partition.id;
        self.hours.insert(hour, id);
        self.partitions.entry(id).or_insert_with(|| StagedPartition {
            next_series: partition.next_series(),
            partition,
            new_series: HashMap::new(),
            bytes: 0,
        });
        Ok(id)
    }

    fn create_partition(&self, id: PartitionId) -> Result<Arc<Partition>, fjall::Error> {
        let partition = Arc::new(Partition::open(&self.open.database, id)?);
        let mut partitions = self.open.partitions.write().unwrap_or_else(PoisonError::into_inner);
        partitions.insert(id, Arc::clone(&partition));
        Ok(partition)
    }

    /// Waits until the engine has flushed what it has put aside.
    fn wait_for_flushes(&self) -> Result<(), fjall::Error> {
        for staged in self.partitions.values() {
            while staged.partition.keyspace.tree.sealed_memtable_count() > MAX_SEALED_MEMTABLES {
                // Fails when a flush has failed.
                self.open.database.persist(PersistMode::Buffer)?;
                thread::sleep(FLUSH_POLL);
            }
        }
        Ok(())
    }

    fn write(mut self) -> Result<(), fjall::Error> {
        let received = time::now_unix_ns();
        let ids = {
            let mut batch_ids = self.open.batch_ids.lock().unwrap_or_else(PoisonError::into_inner);
            batch_ids.day(&self.open.database, received)?
        };
        for id in &self.batch_ids {
            self.write.insert(&ids, id.as_slice(), []);
        }
        let next_profile = self.next_profile.to_be_bytes();
        self.write.insert(&self.open.meta, NEXT_PROFILE_KEY, next_profile.as_slice());
        self.write.commit()?;
        *self.open.next_profile.lock().unwrap_or_else(PoisonError::into_inner) = self.next_profile;
        for staged in self.partitions.into_values() {
            staged.partition.committed(staged.new_series, staged.bytes);
        }
        Ok(())
    }
}

impl StagedPartition {
    /// The id of a series, staging its records when it is new to the partition.
    fn intern(
        &mut self,
        write: &mut OwnedWriteBatch,
        series: &SeriesKey,
    ) -> Result<SeriesId, fjall::Error> {
        let encoded = keys::encode_series(series);
        if let Some(id) = self.new_series.get(&encoded) {
            return Ok(*id);
        }
        if let Some(id) = self.partition.find_series(&encoded)? {
            return Ok(id);
        }
        let id = self.next_series;
        self.next_series = id.saturating_add(1);
        let keyspace = &self.partition.keyspace;
        write.insert(keyspace, keys::series(id).as_slice(), encoded.as_slice());
        write.insert(keyspace, keys::series_id(&encoded), id.to_be_bytes().as_slice());
        let labels = series.labels.iter();
        let index = labels.map(|(name, value)| keys::index_of_label(series.kind, name, value));
        for mut key in index.chain([keys::index_of_all(series.kind)]) {
            key.extend(id.to_be_bytes());
            self.bytes += key.len() as u64;
            write.insert(keyspace, key, []);
        }
        self.bytes += 2 * encoded.len() as u64;
        self.new_series.insert(encoded, id);
        Ok(id)
    }
}
