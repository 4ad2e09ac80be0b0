//! The programs that follow requests to disks.

use aya::programs::RawTracePoint;
use aya::{Btf, Ebpf};
use everflame_agent_common::stats::Program;

use super::bpf::{BpfError, refused, tracing_program};
use super::stats::ProgramStats;
use crate::kernel::BlockTracepoints;

/// Which requests to disks are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Requests of which stacks are taken in a second on each CPU, at most: where there are more, a
    /// share of them is chosen, which stands for all.
    pub samples_per_second: u32,
}

impl BlockConfig {
    /// Many: somebody has asked for them. All that fast disks do, a hundred thousand requests a second, is more
    /// than can be handed over.
    pub fn for_recording() -> Self {
        Self { samples_per_second: 5000 }
    }
}

impl Default for BlockConfig {
    /// See docs/benchmarks.md for what they cost.
    fn default() -> Self {
        Self { samples_per_second: 100 }
    }
}

/// What these programs have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// When requests are made; it takes the samples.
    pub start: ProgramStats,
    /// When they are issued.
    pub issue: ProgramStats,
    /// When they are completed.
    pub done: ProgramStats,
    /// When files have been made durable.
    pub sync: ProgramStats,
}

impl BlockStats {
    /// All of them.
    pub fn programs(&self) -> [(Program, &ProgramStats); 4] {
        [
            (Program::BlockStart, &self.start),
            (Program::BlockIssue, &self.issue),
            (Program::BlockDone, &self.done),
            (Program::Sync, &self.sync),
        ]
    }

    /// Samples that found no room.
    pub fn lost(&self) -> u64 {
        self.programs().iter().map(|(_, stats)| stats.lost()).sum()
    }

    /// Samples for which there was no scratch memory.
    pub fn no_scratch(&self) -> u64 {
        self.programs().iter().map(|(_, stats)| stats.no_scratch).sum()
    }

    /// Requests and files that could not be followed.
    pub fn untracked(&self) -> u64 {
        self.programs().iter().map(|(_, stats)| stats.untracked).sum()
    }
}

const START: &str = "block_start";
const START_OF_BIO: &str = "block_start_of_bio";
const START_OF_QUEUED_BIO: &str = "block_start_of_queued_bio";
const ISSUE: &str = "block_issue";
const ISSUE_OF_QUEUE: &str = "block_issue_of_queue";
const DONE: &str = "block_done";
const MERGE: &str = "block_merge";
const SYNC_ENTER: &str = "sync_enter";
const SYNC_EXIT: &str = "sync_exit";

/// Tracepoints of file systems at the begin and at the end of making a file durable.
const SYNC_TRACEPOINTS: [(&str, &str); 2] = [
    ("ext4_sync_file_enter", "ext4_sync_file_exit"),
    ("f2fs_sync_file_enter", "f2fs_sync_file_exit"),
];

/// The programs, loaded.
pub(super) struct BlockPrograms {
    /// In the order in which they are attached: what begins comes last.
    programs: Vec<&'static str>,
    sync: Result<(), BpfError>,
}

impl BlockPrograms {
    /// Loads those that fit the kernel's tracepoints, and attaches nothing yet.
    ///
    /// # Errors
    /// Where the kernel refuses a program without which nothing is seen.
    pub(super) fn load(ebpf: &mut Ebpf, kernel: BlockTracepoints) -> Result<Self, BpfError> {
        let types = Btf::from_sys_fs().map_err(|source| BpfError::Types { source })?;
        let start = match (kernel.has_io_start, kernel.getrq_has_queue) {
            (true, _) => (START, "block_io_start"),
            (false, false) => (START_OF_BIO, "block_getrq"),
            (false, true) => (START_OF_QUEUED_BIO, "block_getrq"),
        };
        let issue = if kernel.issue_has_queue { ISSUE_OF_QUEUE } else { ISSUE };
        let mut programs = vec![(DONE, "block_rq_complete"), (issue, "block_rq_issue")];
        if kernel.has_io_start {
            // Otherwise requests are first seen when they are not merged any more.
            programs.push((MERGE, "block_rq_merge"));
        }
        programs.push(start);
        for (name, tracepoint) in &programs {
            tracing_program(ebpf, name)?.load(tracepoint, &types).map_err(refused(name))?;
        }
        let programs = programs.into_iter().map(|(name, _)| name).collect();
        let sync = [SYNC_ENTER, SYNC_EXIT]
            .into_iter()
            .try_for_each(|name| raw_program(ebpf, name)?.load().map_err(refused(name)));
        Ok(Self { programs, sync })
    }

    /// Attaches them.
    pub(super) fn start(&mut self, ebpf: &mut Ebpf) -> Result<(), BpfError> {
        for &name in &self.programs {
            tracing_program(ebpf, name)?.attach().map_err(refused(name))?;
        }
        if self.sync.is_ok() {
            self.sync = start_sync(ebpf);
        }
        Ok(())
    }

    /// Programs that the agent does without, and why.
    pub(super) fn refused(&self) -> impl Iterator<Item = (Program, &BpfError)> {
        self.sync.as_ref().err().map(|error| (Program::Sync, error)).into_iter()
    }
}

/// Attaches to all file systems that tell. What the first one says is the reason if there is none.
fn start_sync(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    let mut result = Ok(());
    let mut attached = 0;
    for (enter, exit) in SYNC_TRACEPOINTS {
        let both =
            attach_raw(ebpf, SYNC_EXIT, exit).and_then(|()| attach_raw(ebpf, SYNC_ENTER, enter));
        match both {
            Ok(()) => attached += 1,
            Err(error) => result = result.and(Err(error)),
        }
    }
    if attached > 0 { Ok(()) } else { result }
}

fn attach_raw(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<(), BpfError> {
    raw_program(ebpf, name)?.attach(tracepoint).map_err(refused(name))?;
    Ok(())
}

fn raw_program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut RawTracePoint, BpfError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(BpfError::Missing { name })
}
