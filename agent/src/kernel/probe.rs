//! Tries one feature of the kernel at a time: loads a program of two instructions, creates a
//! map of one entry, opens an event of this thread only. All are gone when it returns. Whether
//! there is a tracepoint for programs, the kernel's types say.
//!
//! `Ok(false)` is the kernel's own word that it does not know something; whatever else goes
//! wrong, such as a missing right, is an error.

use std::error::Error;
use std::fs::File;
use std::io;
use std::sync::Arc;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use perf_event::Builder;
use perf_event::events::{KProbe, Software};

use super::btf::{Btf, BtfError};
use super::{FINISH_TASK_SWITCH, Feature};

/// What the kernel says of its types.
pub(super) type Types<'a> = Result<Btf<'a>, Arc<BtfError>>;

pub(super) fn probe(feature: Feature, types: &Types<'_>) -> io::Result<bool> {
    match feature {
        Feature::KernelTypes => has_kernel_types(),
        Feature::PerfEventPrograms => {
            is_program_supported(ProgramType::PerfEvent).map_err(into_io_error)
        }
        Feature::ProbeReadUser => has_helper(BpfHelper::BPF_FUNC_probe_read_user),
        Feature::ProbeReadKernel => has_helper(BpfHelper::BPF_FUNC_probe_read_kernel),
        Feature::RingBuffer => has_map(MapType::RingBuf),
        Feature::MapInMap => has_map(MapType::ArrayOfMaps),
        Feature::BpfLoop => has_helper(BpfHelper::BPF_FUNC_loop),
        Feature::TaskPtRegs => Ok(has_helper(BpfHelper::BPF_FUNC_get_current_task_btf)?
            && has_helper(BpfHelper::BPF_FUNC_task_pt_regs)?),
        Feature::BuildIdRecords => has_build_id_records(),
        // Linux 5.18 had it in the middle for a while, where programs expect a task.
        Feature::SwitchState => look_up(types, |types| {
            types.tracepoint("sched_switch") == Some(vec![false, true, true, false])
        }),
        Feature::TaskStorage => {
            Ok(has_map(MapType::TaskStorage)? && has_helper(BpfHelper::BPF_FUNC_task_storage_get)?)
        }
        Feature::SchedExit => has_tracepoint(types, "sched_exit_tp"),
        Feature::FinishTaskSwitch => has_kprobe(&FINISH_TASK_SWITCH),
        Feature::RunDelay => look_up(types, |types| types.queue_location().is_some()),
        Feature::SchedWaking => has_tracepoint(types, "sched_waking"),
        // What such a program is attached to.
        Feature::TaskIterator => look_up(types, |types| types.has_function("bpf_iter_task")),
        Feature::LockContention => {
            Ok(has_tracepoint(types, "contention_begin")?
                && has_tracepoint(types, "contention_end")?)
        }
    }
}

fn look_up(types: &Types<'_>, ask: impl FnOnce(&Btf<'_>) -> bool) -> io::Result<bool> {
    match types {
        Ok(types) => Ok(ask(types)),
        Err(error) => match error.as_ref() {
            // Without types there is nothing of what needs them.
            BtfError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Ok(false),
            _ => Err(io::Error::other(Arc::clone(error))),
        },
    }
}

fn has_tracepoint(types: &Types<'_>, name: &str) -> io::Result<bool> {
    look_up(types, |types| types.tracepoint(name).is_some())
}

/// Whether one of the functions can be probed. Only trying tells: a kernel may be built without
/// kprobes, have no such function, or forbid to probe it.
fn has_kprobe(functions: &[&str]) -> io::Result<bool> {
    for function in functions {
        let opened =
            KProbe::probe(function, 0).and_then(|probe| Builder::new(probe).observe_self().build());
        match opened.as_ref().map_err(io::Error::raw_os_error) {
            Ok(_) => return Ok(true),
            Err(Some(libc::ENOENT | libc::ENODEV | libc::EINVAL | libc::EOPNOTSUPP)) => {}
            Err(_) => return opened.map(|_| true),
        }
    }
    Ok(false)
}

fn has_kernel_types() -> io::Result<bool> {
    match File::open(super::btf::KERNEL_BTF) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Asked for the kind of program that samples; other kinds have other helpers.
fn has_helper(helper: BpfHelper) -> io::Result<bool> {
    is_helper_supported(ProgramType::PerfEvent, helper).map_err(into_io_error)
}

fn has_map(map: MapType) -> io::Result<bool> {
    is_map_supported(map).map_err(|error| error.io_error)
}

fn has_build_id_records() -> io::Result<bool> {
    let open = |build_id| {
        Builder::new(Software::DUMMY).observe_self().mmap2(true).build_id(build_id).build()
    };
    // Whatever refuses the same event without build ids has nothing to do with them.
    open(false)?;
    match open(true) {
        Ok(_) => Ok(true),
        // Flags that a kernel does not know are invalid arguments.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the kernel said, where it did.
fn into_io_error(error: impl Error + Send + Sync + 'static) -> io::Error {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(each) = cause {
        let said = each.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if let Some(errno) = said {
            return io::Error::from_raw_os_error(errno);
        }
        cause = each.source();
    }
    io::Error::other(error)
}
