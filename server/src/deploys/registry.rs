//! Who was seen when, of all services; in memory, and in the store as of the last [`Registry::save`].
//!
//! What was seen since is found again in the profiles themselves when the collector starts, so a crash loses
//! nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use everflame_profile::Kind;

use super::{
    record::{Announced, Record},
    spells::{Extent, Seen, Spell, Spells},
};
use crate::{
    query::{comparison::sides::alike, selector::Selector},
    store::{Document, Filter, SeriesKey, Store, StoreError, TimeRange, ValidBatch},
};

/// Where records are kept in the store.
const COLLECTION: &str = "deploys";
/// Until when windows have been taken notice of.
const SEEN_UNTIL: &str = "deploys-seen";

/// Services that are remembered; programs can be given any name.
pub(crate) const MAX_SERVICES: usize = 20_000;

/// How long deploys are remembered. Profiles are deleted before.
const RETENTION: Duration = Duration::from_secs(180 * 24 * 3600);

/// Windows that agents kept may be that old when they come.
const LATE_NS: u64 = 6 * 3_600 * 1_000_000_000;

/// The deploys of all services.
pub struct Registry {
    store: Arc<dyn Store>,
    services: Mutex<Services>,
}

#[derive(Default)]
struct Services {
    records: BTreeMap<String, Known>,
    /// The end of the newest window.
    seen_until_unix_ns: u64,
    refused: u64,
}

#[derive(Default)]
struct Known {
    record: Record,
    /// How often it has changed, and how often it had when it was saved.
    changes: u64,
    saved: u64,
}

/// A deploy, with what is known of it.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// Of which service.
    pub service: String,
    /// Which version, when and where.
    pub spell: Spell,
    /// The version before; `None` when none is known.
    pub previous: Option<Spell>,
    /// Whether the version had run before, and another one since.
    pub returned: bool,
    /// What was announced of it.
    pub announced: Option<Announced>,
}

/// What a batch says of versions.
#[derive(Debug, Default)]
pub struct Sighting(HashMap<SightingKey, Extent>);

/// Service, version, host and build id.
type SightingKey = (String, String, String, String);

impl Sighting {
    /// Of a batch that is about to be stored.
    pub fn of(batch: &ValidBatch) -> Self {
        let mut sighting = Self::default();
        for profile in &batch.profiles {
            let last_unix_ns = profile.start_unix_ns.saturating_add(profile.duration_ns);
            sighting.add(
                &profile.series,
                Extent { first_unix_ns: profile.start_unix_ns, last_unix_ns },
            );
        }
        sighting
    }

    fn add(&mut self, series: &SeriesKey, window: Extent) {
        let label = |name| series.label(name).to_owned();
        if series.label("service").is_empty() {
            return;
        }
        let key = (label("service"), label("version"), label("host"), label("build_id"));
        let extent = self.0.entry(key).or_insert(window);
        extent.first_unix_ns = extent.first_unix_ns.min(window.first_unix_ns);
        extent.last_unix_ns = extent.last_unix_ns.max(window.last_unix_ns);
    }
}

impl Registry {
    /// Reads what was saved, and what profiles say of the time since.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut services = Services::default();
        for (service, content) in store.documents(COLLECTION)? {
            match serde_json::from_slice(&content) {
                Ok(record) => {
                    services.records.insert(service, Known { record, ..Known::default() });
                }
                Err(error) => {
                    tracing::warn!(service, %error, "what was known of its deploys cannot be read")
                }
            }
        }
        let seen = store.documents(SEEN_UNTIL)?;
        let seen = seen.first().and_then(|(_, content)| serde_json::from_slice(content).ok());
        services.seen_until_unix_ns = seen.unwrap_or(0);
        let registry = Self { store, services: Mutex::new(services) };
        registry.catch_up()?;
        Ok(registry)
    }

    /// Takes notice of what a batch that is durable has said.
    pub fn see(&self, sighting: &Sighting) {
        let mut services = self.services();
        for ((service, version, host, build_id), window) in &sighting.0 {
            services.see(service, &Seen { version, host, build_id, window: *window });
        }
    }

    /// Notes what CI says of a version. Whether it has been seen; `None` when it is not noted, as there are too
    /// many services.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn announce(
        &self,
        service: &str,
        version: &str,
        announced: Announced,
    ) -> Result<Option<bool>, StoreError> {
        let is_seen = {
            let mut services = self.services();
            let Some(known) = services.known(service) else { return Ok(None) };
            known.record.announce(version, announced);
            known.changes += 1;
            known.record.spells.all().iter().any(|spell| spell.version == version)
        };
        self.save()?;
        Ok(Some(is_seen))
    }

    /// Deploys that began in a range, newest first, at most `limit`; of one service, or of all.
    pub fn list(&self, service: Option<&str>, range: TimeRange, limit: usize) -> Vec<Deploy> {
        let services = self.services();
        let mut deploys = Vec::new();
        for (name, known) in &services.records {
            if service.is_some_and(|service| service != name) {
                continue;
            }
            for (at, spell) in known.record.spells.all().iter().enumerate() {
                let first = spell.extent.first_unix_ns;
                if (range.start_unix_ns..range.end_unix_ns).contains(&first) {
                    deploys.push(known.deploy(name, at));
                }
            }
        }
        deploys.sort_by(|a: &Deploy, b: &Deploy| {
            let key = |deploy: &Deploy| std::cmp::Reverse(deploy.spell.extent.first_unix_ns);
            (key(a), &a.service).cmp(&(key(b), &b.service))
        });
        deploys.truncate(limit);
        deploys
    }

    /// When versions of a service ran; `Err` has names of services that are like it.
    ///
    /// # Errors
    /// When nothing was ever seen of it.
    pub fn spells(&self, service: &str) -> Result<Spells, Vec<String>> {
        let services = self.services();
        match services.records.get(service) {
            Some(known) if !known.record.spells.all().is_empty() => Ok(known.record.spells.clone()),
            _ => Err(alike(service, services.records.keys().map(String::as_str))),
        }
    }

    /// Writes what has changed.
    ///
    /// # Errors
    /// When the store does not take it; to be tried again.
    pub fn save(&self) -> Result<(), StoreError> {
        let mut documents = Vec::new();
        let mut written = Vec::new();
        {
            let services = self.services();
            for (service, known) in &services.records {
                if known.changes != known.saved {
                    documents.push(Document::json(COLLECTION, service, &known.record));
                    written.push((service.clone(), known.changes));
                }
            }
            documents.push(Document::json(SEEN_UNTIL, "", &services.seen_until_unix_ns));
        }
        if written.is_empty() {
            return Ok(());
        }
        // Not while the lock is held: ingest waits for it.
        self.store.put_documents(&documents)?;
        let mut services = self.services();
        for (service, changes) in written {
            if let Some(known) = services.records.get_mut(&service) {
                known.saved = changes;
            }
        }
        Ok(())
    }

    /// Forgets deploys of long ago.
    ///
    /// # Errors
    /// As of [`Self::save`].
    pub fn forget_old(&self, now_unix_ns: u64) -> Result<(), StoreError> {
        let retention_ns = u64::try_from(RETENTION.as_nanos()).unwrap_or(u64::MAX);
        let before = now_unix_ns.saturating_sub(retention_ns);
        let mut gone = Vec::new();
        self.services().records.retain(|service, known| {
            let is_empty = known.record.forget_before(before);
            if is_empty {
                gone.push(Document { collection: COLLECTION, key: service.clone(), content: None });
            }
            !is_empty
        });
        if gone.is_empty() { Ok(()) } else { self.store.put_documents(&gone) }
    }

    /// Windows and announcements of services that are not remembered, as there are too many.
    pub fn refused(&self) -> u64 {
        self.services().refused
    }

    /// Looks through the times of profiles that came since the last save.
    fn catch_up(&self) -> Result<(), StoreError> {
        let start_unix_ns = self.services().seen_until_unix_ns.saturating_sub(LATE_NS);
        let range = TimeRange { start_unix_ns, end_unix_ns: u64::MAX };
        // Of each window, all its processes and kinds are one sighting.
        let mut windows: BTreeMap<(u64, u64), Sighting> = BTreeMap::new();
        for kind in Kind::ALL {
            let filter = Filter { kind, selector: Selector::default(), range };
            self.store.visit_windows(&filter, &mut |series, start_unix_ns, duration_ns| {
                let last_unix_ns = start_unix_ns.saturating_add(duration_ns);
                let window = Extent { first_unix_ns: start_unix_ns, last_unix_ns };
                windows.entry((start_unix_ns, duration_ns)).or_default().add(series, window);
            })?;
        }
        windows.values().for_each(|sighting| self.see(sighting));
        Ok(())
    }

    fn services(&self) -> MutexGuard<'_, Services> {
        // Consistent between any two statements that change it.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Services {
    fn see(&mut self, service: &str, seen: &Seen<'_>) {
        self.seen_until_unix_ns = self.seen_until_unix_ns.max(seen.window.last_unix_ns);
        let Some(known) = self.known(service) else { return };
        known.changes += 1;
        if known.record.spells.see(seen) {
            tracing::debug!(
                service,
                version = seen.version,
                host = seen.host,
                "a version is seen first"
            );
        }
    }

    /// The record of a service, made if there is room for it.
    fn known(&mut self, service: &str) -> Option<&mut Known> {
        if self.records.len() >= MAX_SERVICES && !self.records.contains_key(service) {
            self.refused += 1;
            return None;
        }
        Some(self.records.entry(service.to_owned()).or_default())
    }
}

impl Known {
    fn deploy(&self, service: &str, at: usize) -> Deploy {
        let spells = &self.record.spells;
        let spell = spells.all()[at].clone();
        Deploy {
            service: service.to_owned(),
            previous: spells.before(at).cloned(),
            returned: spells.is_return(at),
            announced: self.record.announced.get(&spell.version).cloned(),
            spell,
        }
    }
}
