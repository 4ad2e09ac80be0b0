//! Keeps batches below the size that a collector accepts.

use everflame_proto::v1::{Batch, ProfileRecord};
use prost::Message;

use super::BatchId;

/// What became of a batch that had to fit a limit.
#[derive(Debug, Default)]
pub struct Split {
    /// Batches of at most the limit, profiles in their original order.
    pub batches: Vec<Batch>,
    /// Profiles that exceed the limit by themselves; they cannot be sent.
    pub too_large: Vec<ProfileRecord>,
}

/// Splits a batch so that no part encodes to more than `max_bytes`. A batch that fits
/// is returned as it is, with an id if it had none; the parts of one that does not get
/// new ids, since each is acknowledged by itself.
pub fn split(mut batch: Batch, max_bytes: usize) -> Split {
    // The id counts too.
    if BatchId::from_slice(&batch.batch_id).is_err() {
        batch.batch_id = new_batch_id();
    }
    if batch.encoded_len() <= max_bytes {
        return Split { batches: vec![batch], too_large: Vec::new() };
    }
    let profiles = std::mem::take(&mut batch.profiles);
    batch.batch_id = new_batch_id();
    let empty_len = batch.encoded_len();

    let mut split = Split::default();
    let mut part = Part { batch: batch.clone(), len: empty_len };
    for profile in profiles {
        let len = field_len(&profile);
        if empty_len + len > max_bytes {
            split.too_large.push(profile);
            continue;
        }
        if part.len + len > max_bytes {
            let next = Part { batch: batch.clone(), len: empty_len };
            split.batches.push(std::mem::replace(&mut part, next).finish());
        }
        part.len += len;
        part.batch.profiles.push(profile);
    }
    if !part.batch.profiles.is_empty() {
        split.batches.push(part.finish());
    }
    split
}

struct Part {
    batch: Batch,
    len: usize,
}

impl Part {
    fn finish(mut self) -> Batch {
        self.batch.batch_id = new_batch_id();
        self.batch
    }
}

/// The bytes that a profile takes inside a batch: tag (one byte), length, content.
fn field_len(profile: &ProfileRecord) -> usize {
    let len = profile.encoded_len();
    1 + prost::length_delimiter_len(len) + len
}

fn new_batch_id() -> Vec<u8> {
    BatchId::now_v7().as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sizes: &[usize]) -> Batch {
        let profiles = sizes.iter().map(|&size| ProfileRecord {
            kind: "cpu".into(),
            pprof_gz: vec![1; size].into(),
            ..ProfileRecord::default()
        });
        Batch {
            batch_id: new_batch_id(),
            host: "host-a".into(),
            start_unix_ns: 1,
            duration_ns: 2,
            profiles: profiles.collect(),
            ..Batch::default()
        }
    }

    fn sizes(batch: &Batch) -> Vec<usize> {
        batch.profiles.iter().map(|profile| profile.pprof_gz.len()).collect()
    }

    #[test]
    fn a_batch_that_fits_is_untouched() {
        let whole = batch(&[100, 200]);
        let split = split(whole.clone(), whole.encoded_len());
        assert_eq!(split.batches, [whole]);
        assert!(split.too_large.is_empty());
    }

    #[test]
    fn parts_fit_the_limit_and_keep_profiles_in_order() {
        let whole = batch(&[300, 300, 300, 300, 10]);
        let split = split(whole.clone(), 700);
        assert_eq!(
            split.batches.iter().map(sizes).collect::<Vec<_>>(),
            [vec![300, 300], vec![300, 300, 10]]
        );
        for part in &split.batches {
            assert!(part.encoded_len() <= 700);
            assert_eq!(
                (part.host.as_str(), part.start_unix_ns, part.duration_ns),
                ("host-a", 1, 2)
            );
            assert_ne!(part.batch_id, whole.batch_id);
        }
        assert_ne!(split.batches[0].batch_id, split.batches[1].batch_id);
    }

    #[test]
    fn the_limit_is_used_to_the_byte() {
        let limit = batch(&[300, 300]).encoded_len();
        let split = split(batch(&[300, 300, 300]), limit);
        assert_eq!(split.batches[0].encoded_len(), limit);
        assert_eq!(split.batches.len(), 2);
    }

    #[test]
    fn the_id_that_a_batch_gets_counts() {
        let whole = batch(&[300, 300]);
        let anonymous = Batch { batch_id: Vec::new(), ..whole.clone() };
        let limit = whole.encoded_len() - 1;
        assert!(anonymous.encoded_len() <= limit);
        let split = split(anonymous, limit);
        assert_eq!(split.batches.len(), 2);
        assert!(split.batches.iter().all(|part| part.encoded_len() <= limit));
    }

    #[test]
    fn a_profile_that_can_never_fit_is_set_aside() {
        let split = split(batch(&[100, 5000, 100]), 1000);
        assert_eq!(split.batches.iter().map(sizes).collect::<Vec<_>>(), [vec![100, 100]]);
        assert_eq!(split.too_large.len(), 1);
    }

    #[test]
    fn nothing_is_sent_when_nothing_fits() {
        assert!(split(batch(&[5000]), 1000).batches.is_empty());
    }
}
