//! A file that somebody else overwrites while it is read.

use std::cell::Cell;
use std::io;

use everflame_unwind::ReadAt;

/// Bytes that are others after some reads, and fewer.
#[derive(Debug)]
pub struct TornFile<'a> {
    bytes: &'a [u8],
    reads_left: Cell<u8>,
}

impl<'a> TornFile<'a> {
    /// Changes after so many reads.
    pub fn new(bytes: &'a [u8], reads: u8) -> Self {
        Self { bytes, reads_left: Cell::new(reads) }
    }

    fn is_changed(&self) -> bool {
        self.reads_left.get() == 0
    }
}

impl ReadAt for TornFile<'_> {
    fn size(&self) -> io::Result<u64> {
        let size = self.bytes.len() as u64;
        Ok(if self.is_changed() { size * 3 / 4 } else { size })
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let is_changed = self.is_changed();
        self.reads_left.set(self.reads_left.get().saturating_sub(1));
        self.bytes.read_exact_at(buffer, offset)?;
        if is_changed {
            // As if everything had moved a bit.
            buffer.rotate_left(buffer.len().min(8));
        }
        Ok(())
    }
}
