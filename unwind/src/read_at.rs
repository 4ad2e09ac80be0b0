//! Reading at an offset, from a file or from memory, without ever mapping a foreign file:
//! touching a page that has been truncated away kills the process with SIGBUS.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::CompileError;

/// Bytes that can be read at any offset, and may change while they are.
pub trait ReadAt {
    /// How many bytes there are at this moment.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on, or fails.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

/// For images that are in memory already, such as the vDSO.
impl ReadAt for &[u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let source = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(source);
        Ok(())
    }
}

/// Copies out `len` bytes; callers check `len` against a limit of theirs.
pub(crate) fn read_bytes(
    file: &dyn ReadAt,
    offset: u64,
    len: u64,
) -> Result<Vec<u8>, CompileError> {
    let failed = |source| CompileError::Read { offset, len, source };
    // A size from a header is only believed once the file is known to be that long.
    let available = file.size().map_err(failed)?;
    let fits = offset.checked_add(len).is_some_and(|end| end <= available);
    let Some(size) = usize::try_from(len).ok().filter(|_| fits) else {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    };
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}
