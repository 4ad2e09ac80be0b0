//! How much memory a message would take, counted on the wire before it is decoded.
//!
//! A profile of a few megabytes can be written so that it decodes into gigabytes: an
//! empty sample is two bytes on the wire and 72 in memory. This walk over the encoding
//! (<https://protobuf.dev/programming-guides/encoding/>) allocates nothing.

use std::mem::size_of;

use everflame_proto::pprof::{Function, Label, Line, Location, Mapping, Sample, ValueType};

/// The smallest allocation that a Vec makes, in elements.
const MIN_VEC_LEN: usize = 4;

/// An estimate of what `Profile::decode(plain)` allocates. Counting ends where the
/// message stops making sense, which is where the decoder ends with an error too.
pub(crate) fn decoded_bytes(plain: &[u8]) -> usize {
    let mut bytes = 0_usize;
    for field in Fields(plain) {
        let (number, payload) = field;
        let message = match number {
            1 => size_of::<ValueType>(),
            2 => size_of::<Sample>() + sample_bytes(payload),
            3 => size_of::<Mapping>(),
            4 => size_of::<Location>() + list_bytes::<Line>(count(payload, 4)),
            5 => size_of::<Function>(),
            6 => size_of::<String>() + payload.len(),
            13 => varints(payload) * size_of::<i64>(),
            _ => 0,
        };
        bytes = bytes.saturating_add(message);
    }
    bytes
}

fn sample_bytes(sample: &[u8]) -> usize {
    let (mut ids, mut values, mut labels) = (0, 0, 0);
    for (number, payload) in Fields(sample) {
        match number {
            1 => ids += varints(payload),
            2 => values += varints(payload),
            3 => labels += 1,
            _ => {}
        }
    }
    list_bytes::<u64>(ids) + list_bytes::<i64>(values) + list_bytes::<Label>(labels)
}

fn count(message: &[u8], wanted: u64) -> usize {
    Fields(message).filter(|(number, _)| *number == wanted).count()
}

fn list_bytes<T>(len: usize) -> usize {
    if len == 0 { 0 } else { len.max(MIN_VEC_LEN) * size_of::<T>() }
}

/// The number of varints in packed data: each ends with a byte below 0x80.
fn varints(packed: &[u8]) -> usize {
    packed.iter().filter(|byte| **byte < 0x80).count()
}

/// The fields of a message, as number and payload: the content of strings and messages,
/// the encoded number of anything else.
/// Ends where the message stops making sense.
#[derive(Clone, Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The fields of an encoded message.
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (tag, tag_len) = varint(self.0)?;
        let rest = self.0.get(tag_len..)?;
        let (header_len, len) = match tag & 7 {
            0 => (0, varint(rest)?.1),
            1 => (0, 8),
            2 => {
                let (len, len_len) = varint(rest)?;
                (len_len, usize::try_from(len).ok()?)
            }
            // Groups: the decoder skips them with what they hold; here that is counted.
            3 | 4 => (0, 0),
            5 => (0, 4),
            _ => return None,
        };
        let (payload, after) = rest.get(header_len..)?.split_at_checked(len)?;
        self.0 = after;
        Some((tag >> 3, payload))
    }
}

/// A varint and its length on the wire.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            return Some((value, index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use everflame_proto::pprof::Profile;
    use prost::Message;

    use super::*;
    use crate::tables::tests::small_profile;

    #[test]
    fn estimate_covers_what_the_decoded_lists_hold() {
        let profile = small_profile();
        let held = profile.sample.iter().map(|s| {
            size_of::<Sample>()
                + 8 * (s.location_id.len() + s.value.len())
                + s.label.len() * size_of::<Label>()
        });
        let held: usize = held.sum::<usize>()
            + profile.string_table.iter().map(|s| size_of::<String>() + s.len()).sum::<usize>();
        let estimate = decoded_bytes(&profile.encode_to_vec());
        assert!(estimate >= held && estimate < 8 * held, "{estimate} for {held}");
    }

    #[test]
    fn samples_hidden_behind_a_group_are_counted() {
        let sample = Profile { sample: vec![Sample::default()], ..Profile::default() };
        let group = [(20 << 3 | 3) as u8 | 0x80, 1, (20 << 3 | 4) as u8 | 0x80, 1];
        let bytes = [&group[..], &sample.encode_to_vec()].concat();
        assert!(Profile::decode(&bytes[..]).is_ok());
        assert_eq!(decoded_bytes(&bytes), size_of::<Sample>());
    }

    #[test]
    fn garbage_ends_the_walk() {
        for bytes in [&[0xff; 32][..], &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f], &[0x0f], &[0x12]] {
            assert_eq!(decoded_bytes(bytes), 0, "{bytes:?}");
        }
    }
}
