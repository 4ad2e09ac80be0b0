//! What is kept of a service: documents of the store, as JSON. Fields may be added, with defaults.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::spells::Spells;

/// Announcements that are remembered of a service; the oldest are forgotten.
const MAX_ANNOUNCED: usize = 1_000;

/// What CI said of a version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// The commit it was built from; may be empty.
    pub commit: String,
    /// Where to read more, such as a pipeline; may be empty.
    pub url: String,
    /// When it was said, in nanoseconds since the Unix epoch.
    pub announced_unix_ns: u64,
}

/// What is kept of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When its versions ran.
    pub spells: Spells,
    /// What was announced, by version.
    pub announced: BTreeMap<String, Announced>,
}

impl Record {
    /// Notes an announcement; the newest counts.
    pub(crate) fn announce(&mut self, version: &str, announced: Announced) {
        self.announced.insert(version.to_owned(), announced);
        if self.announced.len() > MAX_ANNOUNCED {
            let oldest =
                self.announced.iter().min_by_key(|(_, announced)| announced.announced_unix_ns);
            if let Some(oldest) = oldest.map(|(version, _)| version.clone()) {
                self.announced.remove(&oldest);
            }
        }
    }

    /// Forgets what ended before an instant. Whether nothing is left.
    pub(crate) fn forget_before(&mut self, unix_ns: u64) -> bool {
        self.spells.forget_before(unix_ns);
        let spells = &self.spells;
        self.announced.retain(|version, announced| {
            let is_there = spells.all().iter().any(|spell| spell.version == *version);
            is_there || announced.announced_unix_ns >= unix_ns
        });
        self.spells.all().is_empty() && self.announced.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::spells::{Extent, Seen};
    use super::*;

    #[test]
    fn what_ended_is_forgotten_with_what_was_announced_of_it() {
        let mut record = Record::default();
        let window = Extent { first_unix_ns: 10, last_unix_ns: 20 };
        record.spells.see(&Seen { version: "v1", host: "a", build_id: "", window });
        let announced = |at| Announced { announced_unix_ns: at, ..Announced::default() };
        record.announce("v1", announced(5));
        record.announce("v2", announced(30));
        assert!(!record.forget_before(15));
        assert_eq!(record.announced.len(), 2, "v1 runs");
        assert!(!record.forget_before(25), "v2 may still come");
        assert_eq!(record.announced.keys().collect::<Vec<_>>(), ["v2"]);
        assert!(record.forget_before(40));
    }

    #[test]
    fn announcements_are_bounded() {
        let mut record = Record::default();
        for at in 0..MAX_ANNOUNCED as u64 + 5 {
            let announced = Announced { announced_unix_ns: at, ..Announced::default() };
            record.announce(&format!("v{at}"), announced);
        }
        assert_eq!(record.announced.len(), MAX_ANNOUNCED);
        assert!(!record.announced.contains_key("v0"), "the oldest went");
    }
}
