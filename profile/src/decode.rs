//! Bytes from somewhere else as a profile, or a reason why not.
//!
//! The bytes may be hostile, so three things are bounded before anything is allocated:
//! the compressed size, the size after decompression (which stops at the limit rather
//! than finding out afterwards), and the memory that the decoded messages would take
//! (an empty message is two bytes on the wire and tens of bytes in memory).

use std::io::Read;

use everflame_proto::pprof::Profile;
use flate2::bufread::MultiGzDecoder;
use prost::Message;

use crate::validate::{ValidateError, validate};
use crate::wire;

/// Decoded messages may take this many times the limit on decompressed bytes. Real
/// profiles take 2 to 8 times their own size.
const MEMORY_FACTOR: usize = 8;

/// How large a profile may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Of the bytes as given.
    pub max_compressed_bytes: usize,
    /// Of the protobuf message within.
    pub max_decompressed_bytes: usize,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_compressed_bytes: 16 << 20, max_decompressed_bytes: 128 << 20 }
    }
}

/// Why bytes are not a profile.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the profile is empty")]
    Empty,
    /// Larger than allowed before decompression.
    #[error("the profile has {bytes} bytes; the limit is {limit_bytes}")]
    CompressedTooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit_bytes: usize,
    },
    /// Larger than allowed after decompression.
    #[error("the decompressed profile has more than the {limit_bytes} bytes that are allowed")]
    DecompressedTooLarge {
        /// What is allowed.
        limit_bytes: usize,
    },
    /// Larger than allowed once decoded, although it is small on the wire.
    #[error("the decoded profile would take more than {limit_bytes} bytes of memory")]
    DecodedTooLarge {
        /// What is allowed.
        limit_bytes: usize,
    },
    /// Begins as gzip but is not, or ends too early.
    #[error("the profile's gzip data is damaged or cut off")]
    Gzip {
        /// What the decompressor says.
        #[source]
        source: std::io::Error,
    },
    /// Not protobuf, or not this message.
    #[error("not a pprof profile")]
    Protobuf {
        /// What the decoder says.
        #[source]
        source: prost::DecodeError,
    },
    /// Decoded, but contradicts itself.
    #[error("not a valid pprof profile")]
    Invalid {
        /// Where.
        #[from]
        source: ValidateError,
    },
}

/// Decodes a profile, gzip'd or plain, and validates it.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Profile, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() > limits.max_compressed_bytes {
        return Err(DecodeError::CompressedTooLarge {
            bytes: bytes.len(),
            limit_bytes: limits.max_compressed_bytes,
        });
    }
    let profile = if bytes.starts_with(&[0x1f, 0x8b]) {
        decode_plain(&inflate(bytes, limits.max_decompressed_bytes)?, limits)?
    } else {
        decode_plain(bytes, limits)?
    };
    validate(&profile)?;
    Ok(profile)
}

fn inflate(bytes: &[u8], limit_bytes: usize) -> Result<Vec<u8>, DecodeError> {
    // One byte more than allowed tells "too large" from "just fits".
    let readable = u64::try_from(limit_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let mut plain = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(readable)
        .read_to_end(&mut plain)
        .map_err(|source| DecodeError::Gzip { source })?;
    if plain.len() > limit_bytes {
        return Err(DecodeError::DecompressedTooLarge { limit_bytes });
    }
    Ok(plain)
}

fn decode_plain(plain: &[u8], limits: &DecodeLimits) -> Result<Profile, DecodeError> {
    if plain.len() > limits.max_decompressed_bytes {
        return Err(DecodeError::DecompressedTooLarge {
            limit_bytes: limits.max_decompressed_bytes,
        });
    }
    let limit_bytes = limits.max_decompressed_bytes.saturating_mul(MEMORY_FACTOR);
    if wire::decoded_bytes(plain) > limit_bytes {
        return Err(DecodeError::DecodedTooLarge { limit_bytes });
    }
    Profile::decode(plain).map_err(|source| DecodeError::Protobuf { source })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::encode::encode_gz;
    use crate::tables::tests::small_profile;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_and_plain_decode_to_the_same_profile() {
        let profile = small_profile();
        let limits = DecodeLimits::default();
        assert_eq!(decode(&encode_gz(&profile), &limits).unwrap(), profile);
        assert_eq!(decode(&profile.encode_to_vec(), &limits).unwrap(), profile);
    }

    #[test]
    fn gzip_of_several_members_decodes() {
        let plain = small_profile().encode_to_vec();
        let (front, back) = plain.split_at(plain.len() / 2);
        let bytes = [gzip(front), gzip(back)].concat();
        assert_eq!(decode(&bytes, &DecodeLimits::default()).unwrap(), small_profile());
    }

    #[test]
    fn gzip_bomb_stops_at_the_limit() {
        let limits =
            DecodeLimits { max_compressed_bytes: 1 << 20, max_decompressed_bytes: 1 << 16 };
        let bomb = gzip(&vec![0; 8 << 20]);
        assert!(bomb.len() < limits.max_compressed_bytes);
        let error = decode(&bomb, &limits).unwrap_err();
        assert!(matches!(error, DecodeError::DecompressedTooLarge { .. }), "{error}");
    }

    #[test]
    fn bomb_of_empty_messages_is_refused_before_it_is_decoded() {
        let limits =
            DecodeLimits { max_compressed_bytes: 1 << 20, max_decompressed_bytes: 1 << 20 };
        // Half a million empty samples: field 2, length 0.
        let bomb = gzip(&[0x12, 0x00].repeat(1 << 19));
        let error = decode(&bomb, &limits).unwrap_err();
        assert!(matches!(error, DecodeError::DecodedTooLarge { .. }), "{error}");
    }

    #[test]
    fn too_many_compressed_bytes_are_refused() {
        let limits = DecodeLimits { max_compressed_bytes: 10, ..DecodeLimits::default() };
        let error = decode(&[0; 11], &limits).unwrap_err();
        assert_eq!(error.to_string(), "the profile has 11 bytes; the limit is 10");
    }

    #[test]
    fn truncated_gzip_is_an_error_at_every_length() {
        let bytes = encode_gz(&small_profile());
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len], &DecodeLimits::default()).is_err(), "{len}");
        }
    }

    #[test]
    fn other_files_are_not_profiles() {
        for bytes in [&b""[..], b"{}", b"main;work 7\n", b"\x7fELF\x02\x01\x01", b"\x1f\x8b"] {
            assert!(decode(bytes, &DecodeLimits::default()).is_err(), "{bytes:?}");
        }
    }
}
