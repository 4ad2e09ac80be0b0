//! What the stages have counted, as metrics.

use everflame_agent_common::stats::Program;
use everflame_agent_common::unwind::Stop;
use everflame_profile::kind::Kind;

use crate::collect::{AttachStats, BlockStats, CollectStats, TcpStats};
use crate::live::LiveStats;
use crate::metrics::{
    FrameLabels, Metrics, OutcomeLabels, QueueLabels, ReasonLabels, SideLabels, TruncationLabels,
    raise_to,
};
use crate::profile::FrameStats;
use crate::profiler::Profiler;
use crate::rotation::RotationStats;
use crate::symbolize::SymbolizeStats;

pub(crate) fn publish_collect(metrics: &Metrics, profiler: &Profiler, stats: &CollectStats) {
    let kind = Kind::Cpu.name();
    for (cpu, &lost) in stats.cpu.ring_full.iter().enumerate() {
        metrics.set_lost_samples(kind, u32::try_from(cpu).unwrap_or(u32::MAX), lost);
    }
    let no_scratch = stats.cpu.no_scratch
        + stats.waits.no_scratch()
        + stats.growth.no_scratch
        + stats.allocation.no_scratch
        + stats.allocated.no_scratch
        + stats.block.no_scratch()
        + stats.tcp.no_scratch();
    let skipped =
        [("idle", stats.cpu.idle), ("filtered", stats.cpu.filtered), ("no_scratch", no_scratch)];
    for (reason, count) in skipped {
        raise_to(&metrics.skipped_samples.get_or_create_owned(&ReasonLabels { reason }), count);
    }
    let run_time_ns = stats.cpu.estimated_run_time_ns();
    metrics.set_bpf_program(Program::Cpu.name(), stats.cpu.runs, run_time_ns);
    let waits = &stats.waits;
    let others = [
        (Program::Exec, &stats.exec),
        (Program::NewTask, &waits.new_task),
        (Program::SwitchOut, &waits.switch_out),
        (Program::SwitchIn, &waits.switch_in),
        (Program::Waking, &waits.waking),
        (Program::Waiting, &waits.waiting),
        (Program::LockBegin, &waits.lock_begin),
        (Program::LockEnd, &waits.lock_end),
        (Program::Growth, &stats.growth),
        (Program::Allocation, &stats.allocation),
        (Program::Allocated, &stats.allocated),
        (Program::Freed, &stats.freed),
        (Program::OomVictim, &stats.oom_victim),
    ];
    let others = others.into_iter().chain(stats.block.programs()).chain(stats.tcp.programs());
    for (program, stats) in others.filter(|(_, stats)| stats.runs > 0) {
        metrics.set_bpf_program(program.name(), stats.runs, stats.estimated_run_time_ns());
    }
    for (program, runs) in &stats.missed_runs {
        metrics.set_bpf_missed_runs(program, *runs);
    }
    let lost = waits.switch_in.ring_full.iter().zip(&waits.waiting.ring_full);
    for (cpu, (ended, going_on)) in lost.enumerate() {
        let cpu = u32::try_from(cpu).unwrap_or(u32::MAX);
        metrics.set_lost_samples(Kind::OffCpu.name(), cpu, ended + going_on);
    }
    for cpu in 0..waits.waking.ring_full.len() {
        let lost = waits.of_locks().filter_map(|stats| stats.ring_full.get(cpu)).sum();
        metrics.set_lost_samples(Kind::Lock.name(), u32::try_from(cpu).unwrap_or(u32::MAX), lost);
    }
    for cpu in 0..stats.growth.ring_full.len() {
        let of_kind = [&stats.growth, &stats.allocation, &stats.allocated, &stats.freed];
        let lost = of_kind.iter().filter_map(|stats| stats.ring_full.get(cpu)).sum();
        metrics.set_lost_samples(Kind::Alloc.name(), u32::try_from(cpu).unwrap_or(u32::MAX), lost);
    }
    if let Some(windows) = profiler.rotation_stats() {
        publish_windows(metrics, &windows);
    }
    let history = profiler.history_stats();
    metrics.growth_history_bytes.set(gauge(history.bytes));
    raise_to(&metrics.growth_history_evictions, history.evicted);
    raise_to(&metrics.growth_history_folded, history.folded);
    let untracked = waits.untracked() + stats.growth.untracked;
    let untracked = untracked + stats.block.untracked() + stats.tcp.untracked();
    raise_to(&metrics.untracked_threads, untracked);
    let thinned = waits.switch_in.thinned + stats.growth.thinned;
    let thinned = thinned + stats.block.start.thinned + stats.tcp.thinned();
    raise_to(&metrics.thinned_samples, thinned);
    raise_to(&metrics.waiting_errors, waits.waiting_errors);
    metrics.bpf_map_bytes.set(gauge(stats.bpf_memory_bytes));
    raise_to(&metrics.sideband_lost, stats.sideband_lost);
    raise_to(&metrics.unreadable_records, stats.unreadable);
    raise_to(&metrics.clock_backwards, stats.clock_backwards);
    let binaries = |outcome| metrics.binaries.get_or_create_owned(&OutcomeLabels { outcome });
    raise_to(&binaries("opened"), stats.objects.opened);
    raise_to(&binaries("failed"), stats.objects.failed);
    raise_to(&binaries("over_limit"), stats.objects.over_limit);
    let known = profiler.process_stats();
    metrics.processes.set(gauge(known.processes as u64));
    metrics.mappings.set(gauge(known.mappings as u64));
    raise_to(&metrics.refused_mappings, known.refused_mappings);
    raise_to(&metrics.processes_vanished, known.vanished);
    let depth = metrics.queue_depth.get_or_create_owned(&QueueLabels { queue: "events" });
    depth.set(gauge(profiler.queue_depth() as u64));
}

fn publish_windows(metrics: &Metrics, windows: &RotationStats) {
    metrics.alloc_windows_open.set(gauge(windows.open));
    raise_to(&metrics.alloc_windows, windows.opened);
    raise_to(&metrics.alloc_windows_stopped, windows.stopped_for_cost);
    raise_to(&metrics.alloc_windows_failed, windows.failed);
    raise_to(&metrics.alloc_processes_without_allocator, windows.without_allocator);
    raise_to(&metrics.alloc_nested_samples, windows.nested);
    metrics.set_alloc_windows(windows.open_ns, windows.cost_ns);
}

pub(crate) fn publish_stops(metrics: &Metrics, side: &'static str, stops: &[u64]) {
    for (stop, &count) in Stop::ALL.iter().zip(stops) {
        if *stop == Stop::End {
            metrics.complete_stacks.get_or_create(&SideLabels { side }).inc_by(count);
        }
        if stop.is_truncated() && count > 0 {
            let labels = TruncationLabels { reason: stop.name(), side };
            metrics.truncated_stacks.get_or_create(&labels).inc_by(count);
        }
    }
}

pub(crate) fn publish_frames(metrics: &Metrics, stats: &FrameStats) {
    let origins = [("kernel", stats.kernel), ("file", stats.file), ("jit", stats.jit)];
    let counts = origins
        .into_iter()
        .flat_map(|(origin, (yes, no))| [(origin, "yes", yes), (origin, "no", no)])
        .chain([("unmapped", "no", stats.unmapped)]);
    for (origin, resolved, count) in counts.filter(|(_, _, count)| *count > 0) {
        metrics.frames.get_or_create(&FrameLabels { origin, resolved }).inc_by(count);
    }
}

pub(crate) fn publish_symbolize(metrics: &Metrics, stats: &SymbolizeStats) {
    raise_to(&metrics.symbol_cache_hits, stats.cache_hits);
    raise_to(&metrics.symbol_cache_misses, stats.cache_misses);
    raise_to(&metrics.symbol_evictions, stats.evictions);
    raise_to(&metrics.symbol_failures, stats.parse_failures);
    raise_to(&metrics.symbol_deferrals, stats.binaries_deferred);
    metrics.symbol_cache_bytes.set(gauge(stats.cache_bytes as u64));
}

pub(crate) fn publish_block(metrics: &Metrics, profiler: &Profiler, stats: &BlockStats) {
    for cpu in 0..stats.start.ring_full.len() {
        let programs = stats.programs();
        let lost = programs.iter().filter_map(|(_, stats)| stats.ring_full.get(cpu)).sum();
        metrics.set_lost_samples(Kind::Block.name(), u32::try_from(cpu).unwrap_or(u32::MAX), lost);
    }
    let missed = profiler.missed_requests();
    raise_to(&metrics.block_requests_forgotten, missed.forgotten);
    raise_to(&metrics.block_requests_unmatched, missed.unmatched);
}

pub(crate) fn publish_tcp(metrics: &Metrics, profiler: &Profiler, stats: &TcpStats) {
    for cpu in 0..stats.state.ring_full.len() {
        let programs = stats.programs();
        let lost = programs.iter().filter_map(|(_, stats)| stats.ring_full.get(cpu)).sum();
        metrics.set_lost_samples(Kind::Tcp.name(), u32::try_from(cpu).unwrap_or(u32::MAX), lost);
    }
    let missed = profiler.missed_connections();
    raise_to(&metrics.tcp_connections_forgotten, missed.forgotten);
    raise_to(&metrics.tcp_connections_unmatched, missed.unmatched);
}

pub(crate) fn publish_live(metrics: &Metrics, live: &LiveStats, attached: &AttachStats) {
    metrics.live_processes.set(gauge(attached.processes as u64));
    raise_to(&metrics.live_attach_failures, attached.failed);
    metrics.live_objects.set(gauge(live.objects as u64));
    metrics.live_bytes.set(gauge(live.bytes as u64));
    raise_to(&metrics.live_refused, live.refused);
    raise_to(&metrics.live_unknown_ends, live.unknown_ends);
}

pub(crate) fn publish_unwind(metrics: &Metrics, profiler: &Profiler, stats: &CollectStats) {
    let unwind = &stats.unwind;
    if let Ok(run_times) = profiler.cpu_run_times() {
        metrics.set_bpf_run_times(Program::Cpu.name(), &run_times);
    }
    let walks = |outcome| metrics.user_space_walks.get_or_create_owned(&OutcomeLabels { outcome });
    raise_to(&walks("complete"), unwind.finished);
    raise_to(&walks("truncated"), unwind.finished_truncated);
    raise_to(&walks("no_table"), unwind.given_up);
    let refused = stats.cpu.stack_copies_refused
        + stats.waits.switch_in.stack_copies_refused
        + stats.allocated.stack_copies_refused
        + stats.block.start.stack_copies_refused
        + stats.tcp.stack_copies_refused()
        + profiler.unfinished_refused();
    raise_to(&walks("refused"), refused);
    metrics.unwind_tables.set(gauge(unwind.tables));
    metrics.unwind_tables_waiting.set(gauge(unwind.tables_waiting));
    metrics.unwind_shards.set(gauge(unwind.shards));
    metrics.unwind_page_bytes.set(gauge(unwind.page_bytes));
    metrics.unwind_page_bytes_used.set(gauge(unwind.page_bytes_used));
    metrics.unwind_layouts.set(gauge(unwind.layouts));
    metrics.unwind_layouts_waiting.set(gauge(unwind.layouts_dormant));
    raise_to(&metrics.unwind_layout_evictions, unwind.layouts_evicted);
    metrics.unwind_layout_bytes.set(gauge(unwind.layout_bytes));
    metrics.unwind_waiting_bytes.set(gauge(unwind.waiting_bytes));
    raise_to(&metrics.unwind_evictions, unwind.evicted);
    let refused = |reason| metrics.unwind_refused.get_or_create_owned(&ReasonLabels { reason });
    raise_to(&refused("memory"), unwind.over_budget);
    raise_to(&refused("processes"), unwind.processes_refused);
    raise_to(&refused("records"), stats.unwinder_missed);
    let files = |outcome| metrics.unwind_files.get_or_create_owned(&OutcomeLabels { outcome });
    raise_to(&files("compiled"), unwind.compiled);
    raise_to(&files("cached"), unwind.cache.hits);
    raise_to(&files("no_code"), unwind.not_compiled);
    raise_to(&files("malformed"), unwind.malformed);
    raise_to(&metrics.unwind_rows, unwind.rows_compiled);
    metrics.set_unwind_compile_ns(unwind.compile_ns);
    let problems =
        |reason| metrics.unwind_cache_problems.get_or_create_owned(&ReasonLabels { reason });
    raise_to(&problems("corrupt"), unwind.cache.corrupt);
    raise_to(&problems("stale"), unwind.cache.stale);
    raise_to(&problems("write_error"), unwind.cache.write_errors);
    raise_to(&problems("too_large"), unwind.cache.too_large);
    metrics.unwind_cache_bytes.set(gauge(unwind.cache.bytes));
    raise_to(&metrics.unwind_map_errors, unwind.map_errors);
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
