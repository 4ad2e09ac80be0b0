//! From call frame information to rows in order of file offset.
//!
//! Twice through the sections: the first pass notes where functions lie (16 bytes each), the
//! second runs their programs in order of their addresses, straight into pages. So memory is
//! bounded by the sections and the result, however many rows lie between.

use everflame_agent_common::unwind::Rule;

use crate::elf::Elf;
use crate::entries::{Budget, Reader};
use crate::error::CompileError;
use crate::extents;
use crate::frames::{FrameSection, Kind};
use crate::limits::Limits;
use crate::pages::Builder;
use crate::read_at::ReadAt;
use crate::rows::Rows;
use crate::stats::{Source, TableStats};
use crate::table::Table;

/// Compiles a file's call frame information.
///
/// # Errors
/// The file is not one that can be compiled, changes under our hands, or goes beyond
/// `limits`. Single functions that are damaged are no error but counted.
pub fn compile(file: &dyn ReadAt, limits: &Limits) -> Result<Table, CompileError> {
    let elf = Elf::read(file)?;
    let mut stats = TableStats { is_go: elf.is_go(), ..TableStats::default() };
    let eh_frame = FrameSection::eh_frame(&elf, limits)?;
    // What Go's linker says about its functions leaves out that they save frame pointers.
    let debug_frame = match FrameSection::debug_frame(&elf, limits) {
        _ if stats.is_go => None,
        Ok(section) => section,
        Err(_) if eh_frame.is_some() => {
            stats.debug_frame_unusable = true;
            None
        }
        Err(error) => return Err(error),
    };
    let reader = |frames| Reader::new(frames, elf.arch, limits);
    let mut eh_frame = eh_frame.as_ref().map(reader);
    let mut debug_frame = debug_frame.as_ref().map(reader);

    let mut budget = Budget::new(limits);
    let mut functions = Vec::new();
    if let Some(reader) = &mut eh_frame {
        functions = extents::collect(reader, &elf.code, limits, &mut budget, &mut stats)?;
    }
    let in_eh_frame = functions.len();
    if let Some(reader) = &mut debug_frame {
        let more = extents::collect(reader, &elf.code, limits, &mut budget, &mut stats)?;
        extents::add_missing(&mut functions, more);
    }
    stats.functions = functions.len() as u64;
    stats.source = match (in_eh_frame, functions.len() - in_eh_frame) {
        (0, 0) => Source::None,
        (_, 0) => Source::EhFrame,
        (0, _) => Source::DebugFrame,
        _ => Source::Both,
    };

    let stretches = elf.code.stretches();
    let (Some(&(first, _)), Some(&(_, last))) = (stretches.first(), stretches.last()) else {
        return Err(CompileError::NoCode);
    };
    let keeps_frame_pointers = stats.is_go || functions.is_empty();
    let mut rows = Rows::new(&elf, keeps_frame_pointers, Builder::new(first));
    let mut functions = functions.into_iter().peekable();
    for (start, end) in stretches {
        let mut covered = start;
        while let Some(function) = functions.next_if(|function| function.start < end) {
            rows.gap(covered, function.start);
            let reader = match function.kind {
                Kind::EhFrame => &mut eh_frame,
                Kind::DebugFrame => &mut debug_frame,
            };
            if let Some(reader) = reader {
                rows.function(reader, function, limits, &mut budget, &mut stats)?;
            }
            covered = function.end;
        }
        rows.gap(covered, end);
        rows.builder.push(end, Rule::NO_INFO);
    }
    let shards = rows.builder.finish(last);
    stats.count_pages(&shards);
    Ok(Table { arch: elf.arch, shards, stats })
}
