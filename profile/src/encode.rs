//! A profile as the bytes that every pprof tool reads: gzip'd protobuf.

use std::io::Write;

use everflame_proto::pprof::Profile;
use flate2::{Compression, GzBuilder};
use prost::Message;

/// Encodes and compresses. The same profile always gives the same bytes.
pub fn encode_gz(profile: &Profile) -> Vec<u8> {
    let plain = profile.encode_to_vec();
    // No name and no time in the header, or equal profiles would differ.
    let mut encoder =
        GzBuilder::new().write(Vec::with_capacity(plain.len() / 3 + 64), Compression::default());
    let written = encoder.write_all(&plain).and_then(|()| encoder.finish());
    #[expect(clippy::expect_used, reason = "writing to a Vec cannot fail")]
    written.expect("a Vec takes all bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_is_gzip_and_deterministic() {
        let profile = Profile { string_table: vec![String::new()], ..Profile::default() };
        let bytes = encode_gz(&profile);
        assert_eq!(bytes[..2], [0x1f, 0x8b]);
        assert_eq!(bytes, encode_gz(&profile));
    }
}
