//! What the agent says about itself: every loss, every queue and its own cost.
//!
//! One [`Metrics`] is shared by all stages. Its fields are the metrics: the field
//! `samples` is served as `everflame_agent_samples_total`, and its documentation is the
//! help text that a scrape shows. Counting is an atomic addition; nothing here blocks.
//! State that lives elsewhere (BPF counters, `/proc`) is mirrored by the setters.

use std::fs;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use rustix::time::ClockId;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A counter of seconds; the default [`Counter`] counts whole things.
pub type SecondsCounter = Counter<f64, std::sync::atomic::AtomicU64>;

/// A gauge of seconds.
pub type SecondsGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

macro_rules! labels {
    ($($(#[doc = $doc:literal])* $name:ident { $($field:ident: $type:ty),* })*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        #[expect(missing_docs, reason = "a label's name is all there is to say")]
        pub struct $name { $(pub $field: $type),* }
    )*};
}

labels! {
    /// `cpu`, `offcpu` and so on.
    KindLabels { kind: &'static str }
    /// A kind of profile on one CPU.
    KindCpuLabels { kind: &'static str, cpu: u32 }
    /// Why a stack ended early (`depth_limit`, `broken_chain`, `unreadable`, `failed`,
    /// `compat`, `no_table`, `bad_rule`, `no_info`, `unmapped`), and whether its `kernel` or `user` side did.
    TruncationLabels { reason: &'static str, side: &'static str }
    /// Where a frame's code is from (`kernel`, `file`, `jit`, `unmapped`), and whether it
    /// has a name: `resolved` is `yes` or `no`.
    FrameLabels { origin: &'static str, resolved: &'static str }
    /// How something ended.
    OutcomeLabels { outcome: &'static str }
    /// Why something was lost, or left out.
    ReasonLabels { reason: &'static str }
    /// A gRPC status code, or `unreachable`, `closed`, `ack_timeout`.
    CodeLabels { code: &'static str }
    /// A queue between two stages.
    QueueLabels { queue: &'static str }
    /// `kernel` or `user`.
    SideLabels { side: &'static str }
    /// A BPF program.
    ProgramLabels { program: String }
    /// Where CPU samples come from: `cycles` or `cpu-clock`.
    SourceLabels { source: &'static str }
    /// Something that this host or these privileges do not allow.
    CapabilityLabels { feature: String, reason: String }
}

/// Declares `Metrics` and registers each field under its own name, with its
/// documentation as help.
macro_rules! metrics {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty,)*) => {
        /// All metrics of an agent; see the module's documentation.
        #[derive(Debug)]
        pub struct Metrics {
            $($(#[doc = $doc])* pub $name: $type,)*
            registry: Registry,
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("everflame_agent");
                $(
                    let $name = <$type>::default();
                    registry.register(
                        stringify!($name),
                        concat!($($doc),*).trim().trim_end_matches('.'),
                        $name.clone(),
                    );
                )*
                let build = [("version", env!("CARGO_PKG_VERSION"))];
                registry.register("build", "Which agent this is", Info::new(build));
                Self { $($name,)* registry }
            }
        }
    };
}

metrics! {
    /// Samples that came out of the kernel.
    samples: Family<KindLabels, Counter>,
    /// Samples that were lost because a ring buffer was full.
    lost_samples: Family<KindCpuLabels, Counter>,
    /// Samples that were not taken; reason is idle, filtered (not a process that was asked
    /// for) or no_scratch (for want of memory).
    skipped_samples: Family<ReasonLabels, Counter>,
    /// Threads whose waits, processes whose growth, requests to disks and TCP connections that are not seen, as
    /// there are more than can be followed.
    untracked_threads: Counter,
    /// Samples of waits, of growth, and of requests to disks, when there were too many: fewer are taken, and each stands for more.
    thinned_samples: Counter,
    /// Processes that the kernel began to end for want of memory.
    oom_victims: Counter,
    /// Profiles of what they had grown by; of those without any growth that was seen, there are none.
    oom_profiles: Counter,
    /// Memory of what is kept of growing processes for such profiles.
    growth_history_bytes: Gauge,
    /// Processes of which that was forgotten, having grown least, to make room for others.
    growth_history_evictions: Counter,
    /// Stacks that became one with others in it, as their processes have too many.
    growth_history_folded: Counter,
    /// Requests to disks that were forgotten, as there were too many that did not end: most have been merged
    /// into others.
    block_requests_forgotten: Counter,
    /// Requests to disks that ended without that their beginning was seen: it was lost.
    block_requests_unmatched: Counter,
    /// TCP connections, and requests on them, that were forgotten before they ended, as there were too many.
    tcp_connections_forgotten: Counter,
    /// Events of TCP connections that are shown without a stack, as that was lost.
    tcp_connections_unmatched: Counter,
    /// Times that the waits that go on could not be listed.
    waiting_errors: Counter,
    /// Windows on the allocators of processes that are open.
    alloc_windows_open: Gauge,
    /// Windows on the allocators of processes that were opened.
    alloc_windows: Counter,
    /// Times that windows were closed before their time, as they cost too much.
    alloc_windows_stopped: Counter,
    /// Windows that could not be opened, mostly as the process was gone.
    alloc_windows_failed: Counter,
    /// Programs without an allocator whose functions are known by name.
    alloc_processes_without_allocator: Counter,
    /// Samples of allocations that were left out, as one function of an allocator had called another.
    alloc_nested_samples: Counter,
    /// How long windows were open.
    alloc_window_open_seconds: SecondsCounter,
    /// What windows have cost the processes that they were open on, by the runs that were timed.
    alloc_window_cost_seconds: SecondsCounter,
    /// Processes whose live heaps are seen.
    live_processes: Gauge,
    /// Files of the library that could not be attached to.
    live_attach_failures: Counter,
    /// Sampled objects on live heaps that are there.
    live_objects: Gauge,
    /// Memory for them.
    live_bytes: Gauge,
    /// Sampled objects that are missing in what processes hold, as there was no room for them.
    live_refused: Counter,
    /// Ends of objects that were allocated before anybody looked, or refused.
    live_unknown_ends: Counter,
    /// Process and mapping records that perf could not deliver.
    sideband_lost: Counter,
    /// Stacks that reach their outermost frame.
    complete_stacks: Family<SideLabels, Counter>,
    /// Stacks that end before their outermost frame.
    truncated_stacks: Family<TruncationLabels, Counter>,
    /// User stacks that were copied, as they met a file without a table, and walked in user
    /// space; outcome is complete, truncated, no_table (it did not come in time) or refused
    /// (too many at a time; these are counted as truncated as well).
    user_space_walks: Family<OutcomeLabels, Counter>,
    /// Files with a table of unwind rules.
    unwind_tables: Gauge,
    /// Files that wait for a table.
    unwind_tables_waiting: Gauge,
    /// Parts of unwind tables that are loaded into BPF maps.
    unwind_shards: Gauge,
    /// Memory of BPF maps that is allocated for unwind tables and layouts of processes.
    unwind_page_bytes: Gauge,
    /// Of unwind_page_bytes, what is in use.
    unwind_page_bytes_used: Gauge,
    /// Processes whose memory layout is known to the BPF programs.
    unwind_layouts: Gauge,
    /// Processes that wait for room for their layout.
    unwind_layouts_waiting: Gauge,
    /// Layouts that left memory for others, their processes being idle.
    unwind_layout_evictions: Counter,
    /// Kernel memory of layouts, a part of unwind_page_bytes_used.
    unwind_layout_bytes: Gauge,
    /// Memory of stacks that wait for a table to be walked in user space.
    unwind_waiting_bytes: Gauge,
    /// Parts of unwind tables that left memory for others.
    unwind_evictions: Counter,
    /// What found no room: reason is memory (table), processes (layout) or records (process
    /// records; /proc is read again).
    unwind_refused: Family<ReasonLabels, Counter>,
    /// Files compiled to unwind tables; outcome is compiled, cached (taken from disk),
    /// no_code or malformed.
    unwind_files: Family<OutcomeLabels, Counter>,
    /// Rows of unwind tables compiled.
    unwind_rows: Counter,
    /// Time spent compiling unwind tables.
    unwind_compile_seconds: SecondsCounter,
    /// What went wrong with the cache of unwind tables on disk: reason is corrupt, stale (of
    /// another version), write_error or too_large.
    unwind_cache_problems: Family<ReasonLabels, Counter>,
    /// Bytes of the cache of unwind tables on disk.
    unwind_cache_bytes: Gauge,
    /// Updates of unwind tables that the kernel refused.
    unwind_map_errors: Counter,
    /// Frames that were symbolised, with or without success.
    frames: Family<FrameLabels, Counter>,
    /// Symbol lookups answered from the cache.
    symbol_cache_hits: Counter,
    /// Symbol lookups that needed the binary.
    symbol_cache_misses: Counter,
    /// Memory of the symbol caches.
    symbol_cache_bytes: Gauge,
    /// Frames, binaries and processes' generated code that left the symbol caches for others.
    symbol_evictions: Counter,
    /// Files, or parts of files, whose symbols could not be used.
    symbol_failures: Counter,
    /// Lookups without lines and inlined functions, as reading those again cost too much.
    symbol_deferrals: Counter,
    /// Executables that were opened when they were mapped; outcome is opened, failed
    /// or over_limit.
    binaries: Family<OutcomeLabels, Counter>,
    /// Processes that are tracked.
    processes: Gauge,
    /// Executable mappings that are tracked.
    mappings: Gauge,
    /// Mappings that were not taken note of, as their processes have too many.
    refused_mappings: Counter,
    /// Processes that were gone before it could be found out who they are, or what control group
    /// they are in.
    processes_vanished: Counter,
    /// Records from the kernel that could not be read.
    unreadable_records: Counter,
    /// Times at which the clock that orders events went backwards.
    clock_backwards: Counter,
    /// Aggregation windows that were finished.
    windows: Counter,
    /// Windows that were extended because the next stage was busy.
    windows_extended: Counter,
    /// Windows that were lost because the next stage had ended.
    windows_dropped: Counter,
    /// Items waiting between two stages.
    queue_depth: Family<QueueLabels, Gauge>,
    /// Batches waiting for the collector.
    spool_batches: Gauge,
    /// Bytes on disk waiting for the collector.
    spool_bytes: Gauge,
    /// Batches that left the spool undelivered.
    spool_dropped_batches: Family<ReasonLabels, Counter>,
    /// Bytes that left the spool undelivered.
    spool_dropped_bytes: Family<ReasonLabels, Counter>,
    /// Reads of spooled batches that failed for a reason that may pass; they are repeated.
    spool_read_errors: Counter,
    /// Profiles that were not delivered while the rest of their batch was.
    dropped_profiles: Family<ReasonLabels, Counter>,
    /// Acknowledgements by outcome: stored, duplicate, rejected, retry.
    export_batches: Family<OutcomeLabels, Counter>,
    /// Bytes of batches sent to the collector, before HTTP/2 framing.
    export_bytes: Counter,
    /// Batches that have to be sent again.
    export_retries: Counter,
    /// Streams to the collector that failed, or could not be opened.
    export_stream_failures: Family<CodeLabels, Counter>,
    /// Whether a stream to the collector is open.
    export_connected: Gauge,
    /// Runs of a BPF program.
    bpf_program_runs: Family<ProgramLabels, Counter>,
    /// Runs of a BPF program that the kernel left out, as it was under way on that CPU already: what they
    /// would have seen is missing.
    bpf_program_missed_runs: Family<ProgramLabels, Counter>,
    /// Run time of a BPF program, estimated from the random 1 in 64 that are timed.
    bpf_program_run_seconds: Family<ProgramLabels, SecondsCounter>,
    /// The run time of a BPF program that 99 % of its runs stay below, of those timed since
    /// the start.
    bpf_program_p99_seconds: Family<ProgramLabels, SecondsGauge>,
    /// Memory of BPF maps, those of unwind tables among them.
    bpf_map_bytes: Gauge,
    /// CPU time of the agent's process, in user and kernel space, without BPF programs.
    process_cpu_seconds: SecondsCounter,
    /// Resident memory of the agent's process.
    rss_bytes: Gauge,
    /// The most that rss_bytes has been.
    rss_peak_bytes: Gauge,
    /// Resident memory and BPF maps together.
    memory_bytes: Gauge,
    /// Where CPU samples come from.
    sampling_source_info: Family<SourceLabels, Gauge>,
    /// Features that are switched off on this host, and why.
    capability_off: Family<CapabilityLabels, Gauge>,
}

impl Metrics {
    /// Metrics at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// All metrics in the OpenMetrics text format; see [`CONTENT_TYPE`].
    ///
    /// # Errors
    /// None in practice: writing to a `String` does not fail.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        self.refresh_process();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Says where CPU samples come from.
    pub fn set_sampling_source(&self, source: &'static str) {
        self.sampling_source_info.clear();
        self.sampling_source_info.get_or_create(&SourceLabels { source }).set(1);
    }

    /// Says that a feature is off on this host.
    pub fn set_capability_off(&self, feature: &str, reason: &str) {
        let labels = CapabilityLabels { feature: feature.into(), reason: reason.into() };
        self.capability_off.get_or_create(&labels).set(1);
    }

    /// Mirrors the cumulative run counts of a BPF program.
    pub fn set_bpf_program(&self, program: &str, runs: u64, run_ns: u64) {
        let labels = ProgramLabels { program: program.into() };
        raise_to(&self.bpf_program_runs.get_or_create(&labels), runs);
        let seconds = std::time::Duration::from_nanos(run_ns).as_secs_f64();
        raise_seconds_to(&self.bpf_program_run_seconds.get_or_create(&labels), seconds);
    }

    /// Mirrors how many runs of a BPF program the kernel has left out.
    pub fn set_bpf_missed_runs(&self, program: &str, runs: u64) {
        let labels = ProgramLabels { program: program.into() };
        raise_to(&self.bpf_program_missed_runs.get_or_create(&labels), runs);
    }

    /// Mirrors the run times of a BPF program: upper bounds in nanoseconds, and how many runs
    /// lie below each but not below the one before.
    pub fn set_bpf_run_times(&self, program: &str, run_times: &[(u64, u64)]) {
        let Some(p99_ns) = percentile(run_times, 99) else { return };
        let labels = ProgramLabels { program: program.into() };
        let seconds = std::time::Duration::from_nanos(p99_ns).as_secs_f64();
        self.bpf_program_p99_seconds.get_or_create(&labels).set(seconds);
    }

    /// Mirrors how long windows were open and what they cost.
    pub fn set_alloc_windows(&self, open_ns: u64, cost_ns: u64) {
        let seconds = |ns| std::time::Duration::from_nanos(ns).as_secs_f64();
        raise_seconds_to(&self.alloc_window_open_seconds, seconds(open_ns));
        raise_seconds_to(&self.alloc_window_cost_seconds, seconds(cost_ns));
    }

    /// Mirrors time spent compiling unwind tables.
    pub fn set_unwind_compile_ns(&self, ns: u64) {
        let seconds = std::time::Duration::from_nanos(ns).as_secs_f64();
        raise_seconds_to(&self.unwind_compile_seconds, seconds);
    }

    /// Mirrors how many samples the kernel could not hand over on one CPU, since start.
    pub fn set_lost_samples(&self, kind: &'static str, cpu: u32, lost: u64) {
        raise_to(&self.lost_samples.get_or_create(&KindCpuLabels { kind, cpu }), lost);
    }

    fn refresh_process(&self) {
        let cpu = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
        let cpu_seconds = std::time::Duration::try_from(cpu).unwrap_or_default().as_secs_f64();
        raise_seconds_to(&self.process_cpu_seconds, cpu_seconds);

        // /proc is there on every host that can be profiled; without it the gauges stay.
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            if let Some(rss) = status_bytes(&status, "VmRSS:") {
                self.rss_bytes.set(rss);
            }
            if let Some(peak) = status_bytes(&status, "VmHWM:") {
                self.rss_peak_bytes.set(peak);
            }
        }
        self.memory_bytes.set(self.rss_bytes.get().saturating_add(self.bpf_map_bytes.get()));
    }
}

/// The bound that `percent` of all runs do not exceed; see [`Metrics::set_bpf_run_times`].
fn percentile(run_times: &[(u64, u64)], percent: u64) -> Option<u64> {
    let runs: u64 = run_times.iter().map(|(_, runs)| runs).sum();
    let wanted = (runs * percent).div_ceil(100);
    let mut below = 0;
    run_times.iter().find_map(|(bound_ns, runs)| {
        below += runs;
        (below >= wanted).then_some(*bound_ns)
    })
}

/// Lets a counter mirror a total that is kept elsewhere; it never goes back.
pub fn raise_to(counter: &Counter, total: u64) {
    counter.inner().fetch_max(total, Ordering::Relaxed);
}

fn raise_seconds_to(counter: &SecondsCounter, total: f64) {
    // The counter stores the bits of an f64, and those of positive numbers sort as the
    // numbers do.
    counter.inner().fetch_max(total.max(0.0).to_bits(), Ordering::Relaxed);
}

/// A size from `/proc/PID/status`, which says `VmRSS:    1234 kB`.
fn status_bytes(status: &str, field: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_names_metrics_after_their_fields() {
        let metrics = Metrics::new();
        metrics.samples.get_or_create(&KindLabels { kind: "cpu" }).inc_by(3);
        metrics.set_lost_samples("cpu", 1, 7);
        metrics.set_capability_off("map_files", "no CAP_CHECKPOINT_RESTORE");
        metrics.set_sampling_source("cycles");
        metrics.set_sampling_source("cpu-clock");
        metrics.set_bpf_program("sample_cpu", 64, 1_500_000_000);
        let text = metrics.encode().expect("a string takes everything");
        for line in [
            "# HELP everflame_agent_samples Samples that came out of the kernel.",
            "everflame_agent_samples_total{kind=\"cpu\"} 3",
            "everflame_agent_lost_samples_total{kind=\"cpu\",cpu=\"1\"} 7",
            "everflame_agent_capability_off{feature=\"map_files\",reason=\"no CAP_CHECKPOINT_RESTORE\"} 1",
            "everflame_agent_sampling_source_info{source=\"cpu-clock\"} 1",
            "everflame_agent_bpf_program_run_seconds_total{program=\"sample_cpu\"} 1.5",
            concat!("everflame_agent_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
        assert!(!text.contains("source=\"cycles\""), "the old source is gone");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_agents_own_cost_is_measured() {
        let metrics = Metrics::new();
        metrics.bpf_map_bytes.set(1 << 20);
        metrics.encode().expect("a string takes everything");
        assert!(metrics.process_cpu_seconds.get() > 0.0);
        assert!(metrics.rss_peak_bytes.get() >= metrics.rss_bytes.get());
        assert_eq!(metrics.memory_bytes.get(), metrics.rss_bytes.get() + (1 << 20));
    }

    #[test]
    fn a_mirrored_counter_never_goes_back() {
        let metrics = Metrics::new();
        metrics.set_lost_samples("cpu", 0, 9);
        metrics.set_lost_samples("cpu", 0, 4);
        let labels = KindCpuLabels { kind: "cpu", cpu: 0 };
        assert_eq!(metrics.lost_samples.get_or_create(&labels).get(), 9);
    }

    #[test]
    fn percentile_is_the_bound_of_a_bucket() {
        assert_eq!(percentile(&[(100, 98), (300, 1), (900, 1)], 99), Some(300));
        assert_eq!(percentile(&[(100, 1), (300, 1)], 99), Some(300));
        assert_eq!(percentile(&[(100, 7)], 99), Some(100));
        assert_eq!(percentile(&[], 99), None);
    }

    #[test]
    fn sizes_are_read_from_proc_status() {
        assert_eq!(status_bytes("VmHWM:\t  20 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12 << 10));
        assert_eq!(status_bytes("VmRSS:\t garbage\n", "VmRSS:"), None);
    }
}
