//! Which form of the programs is loaded, and with what settings.

use std::ops::RangeInclusive;

use everflame_agent_common::block::BlockLayout;
use everflame_agent_common::config::Config;
use everflame_agent_common::share::Share;
use everflame_agent_common::stats::Program;
use everflame_agent_common::tcp::TcpLayout;
use everflame_agent_common::wait::Thinning;
use tracing::{info, warn};

use super::bpf::{Bpf, BpfError, ProgramForm, Programs, require_btf};
use super::cpu::{Clock, period_ns};
use super::host::max_kernel_frames;
use super::live;
use super::{BlockConfig, CollectConfig, TcpConfig, WaitConfig, brief};
use crate::kernel::{
    BlockTracepoints, Feature, KernelFeatures, TcpHooks, Unwinder, block_layout, cpu_time_offset,
    file_location, memory_location, pt_regs_location, task_location, tcp_layout,
};

/// Stacks that are copied to be walked in user space, at most, in a second on each CPU: twice
/// as many as samples, within these bounds. Each has up to 20 KiB.
const STACK_COPIES_PER_SECOND: RangeInclusive<u64> = 128..=1024;

/// Loads the programs in the form that fits the kernel.
///
/// `clock` is what drives CPU samples, if any are taken.
pub(super) fn load(
    config: &CollectConfig,
    clock: Option<Clock>,
    ring_bytes: u32,
) -> Result<Bpf, BpfError> {
    require_btf()?;
    let features = KernelFeatures::probe();
    features.require()?;
    let form = config.program_form.unwrap_or_else(|| match features.unwinder() {
        Unwinder::Recent => ProgramForm::Recent,
        Unwinder::Old => ProgramForm::Old,
    });
    let rate_hz = config.cpu_rate_hz.unwrap_or(0);
    let mut settings = Config {
        cpu_period_ns: period_ns(rate_hz),
        target_pid: config.target_pid.unwrap_or(0),
        wakeup_bytes: ring_bytes / 4,
        max_kernel_frames: max_kernel_frames(),
        stack_copies_per_second: stack_copies_per_second(rate_hz),
        ..Config::default()
    };
    if form == ProgramForm::Old {
        let location = pt_regs_location()?;
        settings.task_stack_offset = location.task_stack_offset;
        settings.stack_registers_offset = location.stack_to_regs;
    }
    // The cycle counter's interrupt cannot be masked: no time to allocate memory for a thread. Nor
    // does it come late.
    if form == ProgramForm::Recent && clock == Some(Clock::CpuClock) {
        settings.task_cpu_time_offset = account_of_cpu_time();
    }
    // What waits need is not known to be there until it is asked for; nothing else fails then.
    let waits = config.waits.map(|waits| prepare_waits(&mut settings, &features, waits));
    let can_wait = waits.as_ref().and_then(|waits| waits.as_ref().ok()).copied();
    let growth =
        config.growth_period_bytes.map(|period| prepare_growth(&mut settings, config, period));
    let block = config.block.map(|block| prepare_block(&mut settings, block));
    let tcp = config.tcp.map(|tcp| prepare_tcp(&mut settings, tcp));
    let mut uprobes = Vec::new();
    if let Some(period_bytes) = config.window_period_bytes {
        settings.window_period_bytes = period_bytes;
        uprobes.push((Program::Allocation, "allocation"));
    }
    if config.live.is_some() {
        uprobes.extend(live::PROGRAMS);
    }
    let programs = Programs {
        waits: can_wait,
        block: block.as_ref().and_then(|block| block.as_ref().ok()).copied(),
        tcp: tcp.as_ref().and_then(|tcp| tcp.as_ref().ok()).copied(),
        uprobes,
    };
    let mut bpf = Bpf::load(settings, form, ring_bytes, programs)?;
    match growth {
        Some(Ok(())) if form == ProgramForm::Recent => bpf.load_growth(),
        Some(Ok(())) => bpf.do_without_growth(BpfError::TooOld { what: "growth of memory" }),
        Some(Err(reason)) => bpf.do_without_growth(reason),
        None => {}
    }
    if let Some(Err(reason)) = block {
        bpf.do_without_block(reason);
    }
    if let Some(Err(reason)) = tcp {
        bpf.do_without_tcp(reason);
    }
    if let Some(Err(reason)) = waits {
        bpf.do_without_waits(reason);
    }
    Ok(bpf)
}

/// See [`Config::task_cpu_time_offset`].
fn account_of_cpu_time() -> u32 {
    match cpu_time_offset() {
        Ok(Some(offset)) => offset,
        Ok(None) => {
            info!("the kernel's account of CPU time is without interrupts: samples do without it");
            0
        }
        Err(error) => {
            let reason = brief(&error);
            warn!(reason, "the kernel's account of CPU time is not found: samples do without it");
            0
        }
    }
}

fn prepare_waits(
    settings: &mut Config,
    features: &KernelFeatures,
    waits: WaitConfig,
) -> Result<WaitConfig, BpfError> {
    features.wait_end()?;
    let location = task_location()?;
    settings.task_pid_offset = location.pid_offset;
    settings.task_tgid_offset = location.tgid_offset;
    match location.queue {
        Some(queue) => {
            settings.task_run_delay_offset = queue.run_delay_offset;
            settings.task_queued_offset = queue.last_queued_offset;
        }
        None => warn!("{}", Feature::RunDelay.without()),
    }
    if let Some(clock) = location.clock {
        settings.task_cfs_rq_offset = clock.cfs_rq_offset;
        settings.cfs_rq_rq_offset = clock.rq_offset;
        settings.rq_clock_offset = clock.clock_offset;
    }
    settings.wait_period_ns = waits.period_ns;
    settings.wait_samples = samples_per_interval(waits.samples_per_second, Thinning::INTERVAL_NS);
    settings.locks = u32::from(waits.locks);
    Ok(waits)
}

fn prepare_growth(
    settings: &mut Config,
    config: &CollectConfig,
    period_bytes: u64,
) -> Result<(), BpfError> {
    let location = memory_location()?;
    settings.growth_samples = config.growth_samples_per_second;
    settings.growth_period_bytes = period_bytes;
    settings.task_mm_offset = location.mm_offset;
    settings.task_leader_offset = location.leader_offset;
    settings.mm_pages_offset = location.pages_offset;
    settings.mm_pages_stride = location.pages_stride;
    settings.page_bytes = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    // Who is sampled by the same settings as those that wait.
    let task = task_location()?;
    settings.task_pid_offset = task.pid_offset;
    settings.task_tgid_offset = task.tgid_offset;
    Ok(())
}

fn prepare_block(settings: &mut Config, config: BlockConfig) -> Result<BlockTracepoints, BpfError> {
    let samples = samples_per_interval(config.samples_per_second, Share::INTERVAL_NS);
    let location = file_location()?;
    settings.inode_superblock_offset = location.superblock_offset;
    settings.superblock_device_offset = location.device_offset;
    let (layout, tracepoints) = block_layout()?;
    settings.block = BlockLayout { samples, ..layout };
    Ok(tracepoints)
}

fn prepare_tcp(settings: &mut Config, config: TcpConfig) -> Result<TcpHooks, BpfError> {
    let samples = samples_per_interval(config.samples_per_second, Share::INTERVAL_NS);
    let connections = samples_per_interval(config.connections_per_second, Share::INTERVAL_NS);
    let (layout, hooks) = tcp_layout()?;
    let (first_ephemeral, last_ephemeral) = ephemeral_ports();
    settings.tcp = TcpLayout {
        samples,
        connections,
        tick_ns: tick_ns(),
        rtt_ticks: (RTT_INTERVAL_NS / tick_ns().max(1)).max(1).next_power_of_two(),
        first_ephemeral,
        last_ephemeral,
        ..layout
    };
    Ok(TcpHooks { sees_calls: config.sees_calls, ..hooks })
}

/// How often round-trip times are read of a connection that is used, about.
const RTT_INTERVAL_NS: u32 = 16_000_000;

/// How long the kernel's ticks are.
fn tick_ns() -> u32 {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u32::try_from(tick.tv_nsec).unwrap_or(4_000_000)
}

/// Ports of those who ask for none; the kernel's default where it does not say.
fn ephemeral_ports() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let text = text.unwrap_or_default();
    let mut ports = text.split_whitespace().filter_map(|port| port.parse().ok());
    ports.next().zip(ports.next()).unwrap_or((32_768, 60_999))
}

/// `interval_ns`: of what keeps to this.
fn samples_per_interval(per_second: u32, interval_ns: u64) -> u32 {
    let samples = u64::from(per_second) * interval_ns / 1_000_000_000;
    u32::try_from(samples).unwrap_or(u32::MAX).max(1)
}

fn stack_copies_per_second(rate_hz: u64) -> u32 {
    let (min, max) = STACK_COPIES_PER_SECOND.into_inner();
    u32::try_from((rate_hz.saturating_mul(2)).clamp(min, max)).unwrap_or(u32::MAX)
}
