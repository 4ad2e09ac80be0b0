//! How records are laid out in the key-value store.
//!
//! A partition is one keyspace with four kinds of record, told apart by the first byte:
//!
//! ```text
//! 's' series id                           -> the series (prost)
//! 'k' the series (prost)                  -> series id
//! 'i' kind 0 name 0 value 0 series id     -> nothing; name and value empty: all series of the kind
//! 'p' series id, start, duration, number  -> gzip'd pprof, as received
//! ```
//!
//! Integers are big endian, so that keys sort as the numbers do and a query for
//! some series and a time range reads one contiguous run of keys per series.
//! Strings have no NUL (ingest refuses them), so that 0 ends them.

use everflame_profile::Kind;
use everflame_proto::v1;
use prost::Message as _;

use crate::store::SeriesKey;

/// Identifies a series within one partition.
pub(super) type SeriesId = u32;

const SERIES: u8 = b's';
const SERIES_ID: u8 = b'k';
const INDEX: u8 = b'i';
const PROFILE: u8 = b'p';
const END_OF_STRING: u8 = 0;

/// The position of a profile within its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProfileKey {
    pub(super) series: SeriesId,
    pub(super) start_unix_ns: u64,
    pub(super) duration_ns: u64,
    /// Unique in the store: two senders may report the same window.
    pub(super) number: u64,
}

const PROFILE_KEY_BYTES: usize = 1 + 4 + 8 + 8 + 8;

impl ProfileKey {
    pub(super) fn encode(&self) -> [u8; PROFILE_KEY_BYTES] {
        let mut key = [0; PROFILE_KEY_BYTES];
        let (tag, rest) = key.split_at_mut(1);
        let (series, rest) = rest.split_at_mut(4);
        let (start, rest) = rest.split_at_mut(8);
        let (duration, number) = rest.split_at_mut(8);
        tag.copy_from_slice(&[PROFILE]);
        series.copy_from_slice(&self.series.to_be_bytes());
        start.copy_from_slice(&self.start_unix_ns.to_be_bytes());
        duration.copy_from_slice(&self.duration_ns.to_be_bytes());
        number.copy_from_slice(&self.number.to_be_bytes());
        key
    }

    pub(super) fn decode(key: &[u8]) -> Option<Self> {
        let (tag, rest) = key.split_first()?;
        let (series, rest) = rest.split_first_chunk()?;
        let (start, rest) = rest.split_first_chunk()?;
        let (duration, rest) = rest.split_first_chunk()?;
        let number = rest.try_into().ok()?;
        (*tag == PROFILE).then(|| Self {
            series: SeriesId::from_be_bytes(*series),
            start_unix_ns: u64::from_be_bytes(*start),
            duration_ns: u64::from_be_bytes(*duration),
            number: u64::from_be_bytes(number),
        })
    }
}

/// The profiles of a series whose windows start at `start_unix_ns` or later sort from here.
pub(super) fn profiles_from(series: SeriesId, start_unix_ns: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(PROFILE_KEY_BYTES);
    key.push(PROFILE);
    key.extend(series.to_be_bytes());
    key.extend(start_unix_ns.to_be_bytes());
    key
}

pub(super) fn series(id: SeriesId) -> [u8; 5] {
    let [a, b, c, d] = id.to_be_bytes();
    [SERIES, a, b, c, d]
}

/// Sorts before every series record.
pub(super) const SERIES_PREFIX: [u8; 1] = [SERIES];

/// The id at the end of a series or index key, or in the value of a series id record.
pub(super) fn trailing_series_id(key: &[u8]) -> Option<SeriesId> {
    key.last_chunk().map(|id| SeriesId::from_be_bytes(*id))
}

/// The index records of one label value start with this, and no others do.
pub(super) fn index_of_label(kind: Kind, name: &str, value: &str) -> Vec<u8> {
    let mut key = vec![INDEX];
    for part in [kind.name(), name, value] {
        key.extend(part.as_bytes());
        key.push(END_OF_STRING);
    }
    key
}

/// The index records of all series of a kind start with this.
pub(super) fn index_of_all(kind: Kind) -> Vec<u8> {
    index_of_label(kind, "", "")
}

pub(super) fn encode_series(series: &SeriesKey) -> Vec<u8> {
    let labels = series.labels.iter();
    let labels = labels.map(|(name, value)| v1::Label { name: name.clone(), value: value.clone() });
    v1::Series {
        kind: series.kind.name().to_owned(),
        labels: labels.collect(),
        ..Default::default()
    }
    .encode_to_vec()
}

pub(super) fn decode_series(bytes: &[u8]) -> Option<SeriesKey> {
    let series = v1::Series::decode(bytes).ok()?;
    let labels = series.labels.into_iter().map(|label| (label.name, label.value));
    Some(SeriesKey { kind: series.kind.parse().ok()?, labels: labels.collect() })
}

/// Looks up the id of a series that is encoded already.
pub(super) fn series_id(encoded_series: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + encoded_series.len());
    key.push(SERIES_ID);
    key.extend(encoded_series);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(series: SeriesId, start_unix_ns: u64) -> ProfileKey {
        ProfileKey { series, start_unix_ns, duration_ns: 10, number: 7 }
    }

    #[test]
    fn profile_keys_survive_a_round_trip() {
        let original = key(3, 1_763_000_000_000_000_000);
        assert_eq!(ProfileKey::decode(&original.encode()), Some(original));
        assert_eq!(ProfileKey::decode(b"p123"), None);
        assert_eq!(ProfileKey::decode(&series(3)), None);
    }

    #[test]
    fn profile_keys_sort_by_series_then_time() {
        assert!(key(1, u64::MAX).encode() < key(2, 0).encode());
        assert!(key(2, 255).encode() < key(2, 256).encode());
        assert!(profiles_from(2, 256).as_slice() > key(2, 255).encode().as_slice());
        assert!(profiles_from(2, 256).as_slice() <= key(2, 256).encode().as_slice());
    }

    #[test]
    fn series_survive_a_round_trip() {
        let labels = vec![("host".to_owned(), "a".to_owned()), ("pid".to_owned(), "1".to_owned())];
        let series = SeriesKey { kind: Kind::Cpu, labels };
        assert_eq!(decode_series(&encode_series(&series)), Some(series));
    }

    #[test]
    fn index_keys_end_with_the_series() {
        let mut key = index_of_label(Kind::Cpu, "service", "api");
        assert!(!key.starts_with(&index_of_label(Kind::Cpu, "service", "ap")));
        key.extend(5u32.to_be_bytes());
        assert_eq!(trailing_series_id(&key), Some(5));
    }
}
