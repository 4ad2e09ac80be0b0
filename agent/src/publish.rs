//! What is known of unwinding, of live heaps and of requests to disks, as metrics.

use crate::collect::{AttachStats, BlockStats, CollectStats};
use crate::live::LiveStats;
use crate::metrics::{Metrics, OutcomeLabels, ReasonLabels, raise_to};
use crate::profiler::Profiler;
use everflame_agent_common::stats::Program;
use everflame_profile::kind::Kind;

pub(crate) fn publish_block(metrics: &Metrics, profiler: &Profiler, stats: &BlockStats) {
    for cpu in 0..stats.start.ring_full.len() {
        let programs = stats.programs();
        let lost = programs.iter().filter_map(|(_, stats)| stats.ring_full.get(cpu)).sum();
        metrics.set_lost_samples(Kind::Block.name(), u32::try_from(cpu).unwrap_or(u32::MAX), lost);
    }
    let (forgotten, unmatched) = profiler.missed_requests();
    raise_to(&metrics.block_requests_forgotten, forgotten);
    raise_to(&metrics.block_requests_unmatched, unmatched);
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
