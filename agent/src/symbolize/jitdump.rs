//! jitdump files: what `perf inject --jit` reads, written by JVM agents, V8, .NET and
//! LLVM (tools/perf/Documentation/jitdump-specification.txt in the kernel).
//!
//! Read with our own reader because the file is the process's to fill: linux-perf-data's
//! trusts the counts and sizes in it (an entry count of 2^60 aborts the process) and
//! reads the generated code along, which nobody needs here.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use thiserror::Error;

use super::foreign_file::{self, FileRange};
use super::jit::{CodeMap, SourceRow};
use crate::object::{ObjectFile, ObjectKind};

/// Why a jitdump file is not read any further.
#[derive(Debug, Error)]
enum JitDumpError {
    #[error("cannot read the jitdump file")]
    Io(#[from] io::Error),
    #[error("not a jitdump file of this machine's byte order")]
    NotJitDump,
    #[error("malformed record at offset {offset:#x}")]
    Malformed { offset: u64 },
}

const MAGIC: u32 = 0x4a69_5444;
const HEADER_BYTES: u64 = 40;
const RECORD_HEADER_BYTES: u64 = 16;

const CODE_LOAD: u32 = 0;
const CODE_MOVE: u32 = 1;
const CODE_DEBUG_INFO: u32 = 2;

/// The fields of `JIT_CODE_LOAD` before the name.
const LOAD_BYTES: u64 = 40;
const MAX_NAME_BYTES: u64 = 4096;
/// Larger records of lines are skipped; 100 KiB are a lot.
const MAX_DEBUG_INFO_BYTES: u64 = 4 << 20;

/// How far a jitdump file has been read.
pub(super) struct JitDump {
    object: Arc<ObjectFile>,
    /// Where the next record begins; 0 before the header has been read.
    position: u64,
    /// Lines of the code whose `JIT_CODE_LOAD` follows.
    lines: Option<(u64, Vec<SourceRow>)>,
    failed: bool,
}

impl JitDump {
    pub(super) fn new(object: &Arc<ObjectFile>) -> Self {
        Self { object: Arc::clone(object), position: 0, lines: None, failed: false }
    }

    pub(super) fn is_of(&self, object: &Arc<ObjectFile>) -> bool {
        Arc::ptr_eq(&self.object, object)
    }

    /// Adds the code of the records written since the last call, if `uid` or root writes
    /// the file. Returns whether that failed for the first time.
    pub(super) fn read(&mut self, uid: u32, code: &mut CodeMap) -> bool {
        if self.failed {
            return false;
        }
        match self.read_added(uid, code) {
            Ok(()) => false,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(path = self.object.path, error, "jitdump file is read no further");
                self.failed = true;
                true
            }
        }
    }

    fn read_added(&mut self, uid: u32, code: &mut CodeMap) -> Result<(), JitDumpError> {
        let ObjectKind::Elf { file: Some(file) } = &self.object.kind else { return Ok(()) };
        if !foreign_file::is_by(file, uid) {
            return Ok(());
        }
        let len = file.metadata()?.len();
        if self.position == 0 {
            if len < HEADER_BYTES {
                return Ok(());
            }
            self.position = header_bytes(file)?;
        }
        while let Some(after_header) = self.position.checked_add(RECORD_HEADER_BYTES)
            && after_header <= len
        {
            let offset = self.position;
            let mut record = FileRange::new(file, offset, RECORD_HEADER_BYTES);
            let (kind, size) = (read_u32(&mut record)?, u64::from(read_u32(&mut record)?));
            if size < RECORD_HEADER_BYTES {
                return Err(JitDumpError::Malformed { offset });
            }
            if offset.saturating_add(size) > len {
                // Not written to its end yet.
                return Ok(());
            }
            let mut body = FileRange::new(file, after_header, size - RECORD_HEADER_BYTES);
            let read = match kind {
                CODE_LOAD => read_load(&mut body, &mut self.lines, code),
                CODE_MOVE => read_move(&mut body, code),
                CODE_DEBUG_INFO => read_debug_info(&mut body).map(|lines| self.lines = lines),
                // The end, unwinding tables, and what newer versions may have.
                _ => Ok(()),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(JitDumpError::Malformed { offset });
                }
                read => read?,
            }
            self.position = offset + size;
        }
        Ok(())
    }
}

fn header_bytes(file: &File) -> Result<u64, JitDumpError> {
    let mut header = FileRange::new(file, 0, HEADER_BYTES);
    let magic = read_u32(&mut header)?;
    let _version = read_u32(&mut header)?;
    let size = u64::from(read_u32(&mut header)?);
    if magic != MAGIC || size < HEADER_BYTES {
        return Err(JitDumpError::NotJitDump);
    }
    Ok(size)
}

/// pid, tid, vma, address, size, index; a name; the code.
fn read_load(
    body: &mut FileRange<'_>,
    lines: &mut Option<(u64, Vec<SourceRow>)>,
    code: &mut CodeMap,
) -> io::Result<()> {
    let mut fields = body.by_ref().take(LOAD_BYTES);
    let (_process, _vma) = (read_u64(&mut fields)?, read_u64(&mut fields)?);
    let (address, size) = (read_u64(&mut fields)?, read_u64(&mut fields)?);
    let _index = read_u64(&mut fields)?;
    let mut name = Vec::new();
    body.take(MAX_NAME_BYTES).read_to_end(&mut name)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let rows = match lines.take() {
        Some((of, rows)) if of == address => rows,
        _ => Vec::new(),
    };
    code.insert(address, size, name, rows);
    Ok(())
}

/// pid, tid, vma, old address, new address, size, index.
fn read_move(body: &mut FileRange<'_>, code: &mut CodeMap) -> io::Result<()> {
    let (_process, _vma) = (read_u64(body)?, read_u64(body)?);
    let (from, to, size) = (read_u64(body)?, read_u64(body)?, read_u64(body)?);
    code.relocate(from, to, size);
    Ok(())
}

/// Address, number of rows; for each row address, line, column, file name. The name
/// `\xff` stands for that of the row before.
fn read_debug_info(body: &mut FileRange<'_>) -> io::Result<Option<(u64, Vec<SourceRow>)>> {
    if body.len() > MAX_DEBUG_INFO_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    body.read_to_end(&mut bytes)?;
    let mut body = bytes.as_slice();
    let (code_address, count) = (read_u64(&mut body)?, read_u64(&mut body)?);
    let mut rows: Vec<SourceRow> = Vec::new();
    for _ in 0..count {
        let address = read_u64(&mut body)?;
        let (line, _column) = (read_u32(&mut body)?, read_u32(&mut body)?);
        let end = body.iter().position(|byte| *byte == 0).ok_or(io::ErrorKind::UnexpectedEof)?;
        let (name, rest) = body.split_at(end);
        body = rest.get(1..).unwrap_or_default();
        let file_name = match rows.last() {
            Some(row) if name == b"\xff" || name == row.file_name.as_bytes() => {
                Arc::clone(&row.file_name)
            }
            _ => Arc::from(String::from_utf8_lossy(name)),
        };
        rows.push(SourceRow { address, line, file_name });
    }
    rows.sort_by_key(|row| row.address);
    Ok(Some((code_address, rows)))
}

fn read_u32(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_u64(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
