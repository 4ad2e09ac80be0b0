//! Loads a program that can be attached to instructions.
//!
//! A program is loaded for the way in which it is attached. aya knows perf events only, so for links
//! to many places at once the object is read a second time, put together with the maps that there are
//! already, and loaded by a system call of ours. Where that fails for whatever reason, aya's way is gone,
//! and what that says is reported.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::{ProgramError, UProbe};
use aya_obj::Object;
use thiserror::Error;
use tracing::info;

use super::sys;
use crate::collect::bpf::BpfError;
use crate::collect::brief;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::collect) enum UprobeForm {
    /// To all places in a file by one link.
    Multi,
    /// To one place by a perf event and a link to that.
    PerfEvents,
}

/// A program in the kernel.
#[derive(Debug)]
pub(in crate::collect) struct UprobeProgram {
    fd: OwnedFd,
    form: UprobeForm,
}

/// Why a program is not loaded in the form [`UprobeForm::Multi`].
#[derive(Debug, Error)]
enum MultiError {
    #[error("the object cannot be read")]
    Parse(#[from] aya_obj::ParseError),
    #[error("its types cannot be adapted to this kernel")]
    Types(#[from] aya_obj::btf::BtfError),
    #[error("it cannot be put together")]
    Relocate(#[from] aya_obj::relocation::EbpfRelocationError),
    #[error("the object has no such program, or no types")]
    Missing,
    #[error("the kernel refuses it")]
    Refused(#[from] io::Error),
    #[error("the kernel attaches it to threads, not processes")]
    Threads,
}

impl UprobeProgram {
    /// Loads a program of `ebpf`, which has been made of `object` and has all of its maps.
    pub(in crate::collect) fn load(
        ebpf: &mut Ebpf,
        object: &[u8],
        name: &'static str,
    ) -> Result<Self, BpfError> {
        match load_multi(ebpf, object, name) {
            Ok(fd) => Ok(Self { fd, form: UprobeForm::Multi }),
            Err(error) => {
                info!(program = name, reason = brief(&error), "uprobes are attached one by one");
                Self::load_for_events(ebpf, name)
            }
        }
    }

    /// Loads it in the form [`UprobeForm::PerfEvents`].
    pub(super) fn load_for_events(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, BpfError> {
        let refused = |source: ProgramError| BpfError::Program { program: name, source };
        let program: &mut UProbe = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(BpfError::Missing { name })?;
        program.load().map_err(refused)?;
        let fd = program.fd().map_err(refused)?.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| refused(ProgramError::IOError(source)))?;
        Ok(Self { fd, form: UprobeForm::PerfEvents })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How it is attached.
    pub(super) fn form(&self) -> UprobeForm {
        self.form
    }
}

fn load_multi(ebpf: &Ebpf, object: &[u8], name: &str) -> Result<OwnedFd, MultiError> {
    let mut object = Object::parse(object)?;
    object.programs.retain(|other, _| other == name);
    let features = aya::features();
    let types = match features.btf() {
        Some(features) => object.fixup_and_sanitize_btf(features)?.map(aya_obj::btf::Btf::to_bytes),
        None => None,
    };
    let types = sys::load_types(&types.ok_or(MultiError::Missing)?)?;
    let maps: Vec<_> = object.maps.drain().collect();
    let there = maps
        .iter()
        .filter_map(|(name, map)| Some((name.as_str(), map_fd(ebpf.map(name)?)?.as_raw_fd(), map)));
    let text_sections: HashSet<usize> =
        object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(there, &text_sections)?;
    object.relocate_calls(&text_sections)?;
    object.sanitize_functions(features);
    let program = object.programs.get(name).ok_or(MultiError::Missing)?;
    let function = object.functions.get(&program.function_key()).ok_or(MultiError::Missing)?;
    let fd = sys::load_program(&sys::Code {
        name,
        instructions: &function.instructions,
        license: &program.license,
        types: types.as_fd(),
        functions: &function.func_info.func_info_bytes(),
        function_size: u32::try_from(function.func_info_rec_size).unwrap_or(0),
    })?;
    if sys::can_link_process(fd.as_fd()) { Ok(fd) } else { Err(MultiError::Threads) }
}

/// Of those types of maps that programs use.
fn map_fd(map: &Map) -> Option<BorrowedFd<'_>> {
    let (Map::Array(data)
    | Map::ArrayOfMaps(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::RingBuf(data)
    | Map::Unsupported(data)) = map
    else {
        return None;
    };
    Some(data.fd().as_fd())
}
