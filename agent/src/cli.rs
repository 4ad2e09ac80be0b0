//! The command line of `everflame-agent`: what can be typed, turned into settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use everflame_profile::kind::Kind;

use crate::collect::{AllocMode, BlockConfig, LiveConfig, TcpConfig, WaitConfig};
use crate::export::{self, ExportError};
use crate::rotation::RotationConfig;
use crate::session::DEFAULT_ALLOC_PERIOD_BYTES;
use crate::size::{parse_sampling_period, parse_size};
use crate::unwind::DEFAULT_CACHE_DIR;
use crate::unwind_info;

const EXAMPLES: &str = "\
Examples:
  everflame-agent --server http://collector:4040
      profile this host and deliver to a collector
  everflame-agent --server http://collector:4040 --label env=prod --cpu-rate-hz 49
      with a label on every profile, and more samples
  everflame-agent capabilities
      what this process may do and this kernel can, and what is off because it may not
  everflame-agent unwind-info /usr/lib/x86_64-linux-gnu/libc.so.6
      how stacks are unwound through a library, to find out why one breaks
  curl http://127.0.0.1:4041/metrics
      what the agent has sampled, lost and used

The agent needs root, or CAP_BPF and CAP_PERFMON; `everflame-agent capabilities` says what
others give. Exit codes: 0 success, 64 usage, 69 unavailable, 70 failed while running,
77 permission denied.";

/// Samples this host with eBPF, all the time, and delivers profiles to a collector.
#[derive(Debug, Parser)]
#[command(name = "everflame-agent", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What else to do than to profile.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to profile.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The longest name and value of a label that a collector takes.
const MAX_LABEL_NAME_BYTES: usize = 128;
const MAX_LABEL_VALUE_BYTES: usize = 1024;

/// How many labels there may be, and how long all together: collectors take 63 labels and
/// 16 KiB, and what is found out needs its part.
const MAX_LABELS: usize = 48;
const MAX_LABELS_BYTES: usize = 8 << 10;

/// Labels that tell processes and hosts apart, which one value for all would undo.
const RESERVED_LABELS: [&str; 8] =
    ["host", "pid", "comm", "container_id", "unit", "mode", "event", "oom"];

/// What the agent can do beside profiling.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows what this process may do and what this kernel can, and what is off without
    Capabilities {
        /// As what to show it
        #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
        format: ReportFormat,
    },
    /// Shows how stacks are unwound through the code of a file: statistics, and rules in words
    UnwindInfo(unwind_info::Args),
}

/// For whom a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Settings of a profiling agent.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The collector; without one, profiles are kept in the spool
    #[arg(long, value_name = "URL", value_parser = server, env = "EVERFLAME_SERVER")]
    pub server: Option<String>,
    /// Kinds of profile to take: cpu, offcpu, lock, alloc, block, tcp
    #[arg(
        long,
        value_name = "KINDS",
        value_delimiter = ',',
        default_value = "cpu",
        env = "EVERFLAME_KINDS"
    )]
    pub kinds: Vec<Kind>,
    /// CPU samples a second on each CPU
    #[arg(long, value_name = "N", default_value_t = 19, value_parser = clap::value_parser!(u64).range(1..), env = "EVERFLAME_CPU_RATE_HZ")]
    pub cpu_rate_hz: u64,
    /// One sample of kinds offcpu and lock in this much time that a thread waits; longer waits
    /// are always sampled, unless a CPU has more than 1000 such samples a second
    #[arg(long, value_name = "DURATION", default_value = "10ms", value_parser = offcpu_period, env = "EVERFLAME_OFFCPU_PERIOD")]
    pub offcpu_period: Duration,
    /// Requests to disks of which kind block takes the stack, at most, in a second on each CPU; where there are
    /// more, a share of them stands for all
    #[arg(long, value_name = "N", default_value_t = BlockConfig::default().samples_per_second, value_parser = clap::value_parser!(u32).range(10..), env = "EVERFLAME_BLOCK_SAMPLES")]
    pub block_samples: u32,
    /// Connections, requests on them, and segments sent again of which kind tcp takes samples, each at most, in a
    /// second on each CPU; where there are more, a share of them stands for all
    #[arg(long, value_name = "N", default_value_t = TcpConfig::default().samples_per_second, value_parser = clap::value_parser!(u32).range(10..), env = "EVERFLAME_TCP_SAMPLES")]
    pub tcp_samples: u32,
    /// How kind alloc sees allocations: faults is by what processes' memory grows by, live is by the
    /// library that is loaded into some of them (docs/live-heap.md)
    #[arg(long, value_name = "MODES", value_delimiter = ',', default_value = "faults", value_parser = alloc_mode, env = "EVERFLAME_ALLOC_MODES")]
    pub alloc_modes: Vec<AllocMode>,
    /// One sample of kind alloc in this much memory [default: 512KiB; in mode live, as processes
    /// have it]
    #[arg(long, value_name = "SIZE", value_parser = parse_sampling_period, env = "EVERFLAME_ALLOC_PERIOD")]
    pub alloc_period: Option<u64>,
    /// Also see what processes ask their allocators for, in windows of this length; each call costs
    /// them a microsecond while a window is open
    #[arg(long, value_name = "DURATION", value_parser = duration, env = "EVERFLAME_ALLOC_WINDOW")]
    pub alloc_window: Option<Duration>,
    /// From the beginning of a window to that of the next, which is on other processes
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration, env = "EVERFLAME_ALLOC_WINDOW_INTERVAL")]
    pub alloc_window_interval: Duration,
    /// Processes that a window is open on
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000), env = "EVERFLAME_ALLOC_WINDOW_PROCESSES")]
    pub alloc_window_processes: u64,
    /// CPU time that a window may cost; it ends when it has cost that
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = budget, env = "EVERFLAME_ALLOC_WINDOW_BUDGET")]
    pub alloc_window_budget: Duration,
    /// Where to serve /metrics, /healthz and /debug/pprof/profile; `off` serves nothing
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4041", env = "EVERFLAME_METRICS")]
    pub metrics: MetricsAddress,
    /// A label for every profile; can be given many times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label, env = "EVERFLAME_LABELS", value_delimiter = ',')]
    pub labels: Vec<(String, String)>,
    /// This host's name in profiles [default: the kernel's]
    #[arg(long, value_name = "NAME", env = "EVERFLAME_HOST")]
    pub host: Option<String>,
    /// Where profiles wait for the collector
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/everflame/spool",
        env = "EVERFLAME_SPOOL_DIR"
    )]
    pub spool_dir: PathBuf,
    /// How much may wait there, such as 256MiB; the oldest is dropped first
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size, env = "EVERFLAME_SPOOL_MAX_BYTES")]
    pub spool_max_bytes: u64,
    /// Memory for symbols that are kept between windows
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_size, env = "EVERFLAME_SYMBOL_CACHE_BYTES")]
    pub symbol_cache_bytes: u64,
    /// The most debug information read of one binary; of larger ones only functions are
    /// resolved, not lines and inlined functions. It can take twice as much memory
    #[arg(long, value_name = "SIZE", default_value = "12MiB", value_parser = parse_size, env = "EVERFLAME_DWARF_BYTES")]
    pub dwarf_bytes: u64,
    /// Where separate debug files are installed; can be given many times
    #[arg(
        long = "debug-dir",
        value_name = "DIR",
        default_value = "/usr/lib/debug",
        env = "EVERFLAME_DEBUG_DIRS",
        value_delimiter = ':'
    )]
    pub debug_dirs: Vec<PathBuf>,
    /// Kernel memory for the tables that stacks are walked with; the least recently used make
    /// room for others
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size, env = "EVERFLAME_UNWIND_MAX_BYTES")]
    pub unwind_max_bytes: u64,
    /// Where compiled tables are kept for the next start; `off` keeps none
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CACHE_DIR, env = "EVERFLAME_UNWIND_CACHE_DIR")]
    pub unwind_cache_dir: CacheDir,
    /// How much may be kept there
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size, env = "EVERFLAME_UNWIND_CACHE_MAX_BYTES")]
    pub unwind_cache_max_bytes: u64,
    /// How much time one profile covers
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration, env = "EVERFLAME_WINDOW")]
    pub window: Duration,
}

/// Where to serve metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl std::str::FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = text.parse().map(Self::At);
        address.map_err(|error| format!("{error}; it looks like 127.0.0.1:4041, or `off`"))
    }
}

/// Where tables are kept between starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheDir {
    /// Nowhere.
    Off,
    /// Here.
    At(PathBuf),
}

impl CacheDir {
    /// The directory, if there is one.
    pub fn dir(self) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::At(dir) => Some(dir),
        }
    }
}

impl std::str::FromStr for CacheDir {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "off" { Self::Off } else { Self::At(PathBuf::from(text)) })
    }
}

impl RunArgs {
    /// Which waits are sampled, if any are.
    pub fn wait_config(&self) -> Option<WaitConfig> {
        let locks = self.kinds.contains(&Kind::Lock);
        let period_ns = u64::try_from(self.offcpu_period.as_nanos()).unwrap_or(u64::MAX);
        (locks || self.kinds.contains(&Kind::OffCpu)).then_some(WaitConfig {
            period_ns,
            locks,
            ..WaitConfig::default()
        })
    }

    /// Which requests to disks are sampled, if any are.
    pub fn block_config(&self) -> Option<BlockConfig> {
        let config = BlockConfig { samples_per_second: self.block_samples };
        self.kinds.contains(&Kind::Block).then_some(config)
    }

    /// Which TCP connections are sampled, if any are.
    pub fn tcp_config(&self) -> Option<TcpConfig> {
        self.kinds.contains(&Kind::Tcp).then_some(TcpConfig::of_samples(self.tcp_samples))
    }

    /// How live heaps are followed, if they are.
    pub fn live_config(&self) -> Option<LiveConfig> {
        let period_bytes = self.alloc_period;
        self.has_alloc_mode(AllocMode::Live).then_some(LiveConfig { period_bytes })
    }

    /// How much growth of memory a sample stands for, if any are taken.
    pub fn growth_period_bytes(&self) -> Option<u64> {
        self.has_alloc_mode(AllocMode::Faults).then_some(self.alloc_period_bytes())
    }

    fn alloc_period_bytes(&self) -> u64 {
        self.alloc_period.unwrap_or(DEFAULT_ALLOC_PERIOD_BYTES)
    }

    fn has_alloc_mode(&self, mode: AllocMode) -> bool {
        self.kinds.contains(&Kind::Alloc) && self.alloc_modes.contains(&mode)
    }

    /// When windows on allocators are open, if they are, and how much memory a sample stands for.
    pub fn alloc_windows(&self) -> Option<(RotationConfig, u64)> {
        let window = self.alloc_window.filter(|_| self.kinds.contains(&Kind::Alloc))?;
        let config = RotationConfig {
            window,
            interval: self.alloc_window_interval,
            processes: usize::try_from(self.alloc_window_processes).unwrap_or(usize::MAX),
            budget: self.alloc_window_budget,
        };
        Some((config, self.alloc_period_bytes()))
    }

    /// Checks what no flag can know by itself.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        if !self.kinds.contains(&Kind::Alloc) {
            let given = [
                ("--alloc-window", self.alloc_window.is_some()),
                ("--alloc-modes", self.alloc_modes != [AllocMode::Faults]),
            ];
            if let Some((flag, _)) = given.iter().find(|(_, is_given)| *is_given) {
                return Err(format!("{flag} is of kind alloc; add that to --kinds"));
            }
        }
        if self.alloc_window.is_some_and(|window| window >= self.alloc_window_interval) {
            return Err("a window must be shorter than --alloc-window-interval".to_owned());
        }
        for (position, (name, _)) in self.labels.iter().enumerate() {
            if self.labels[..position].iter().any(|(other, _)| other == name) {
                return Err(format!("the label `{name}` is given twice; give it one value"));
            }
        }
        let bytes: usize = self.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.labels.len() > MAX_LABELS || bytes > MAX_LABELS_BYTES {
            return Err(format!(
                "{} labels with {bytes} bytes are too much; at most {MAX_LABELS} labels with \
                 {MAX_LABELS_BYTES} bytes can be given",
                self.labels.len()
            ));
        }
        Ok(())
    }
}

fn alloc_mode(text: &str) -> Result<AllocMode, String> {
    [AllocMode::Faults, AllocMode::Live]
        .into_iter()
        .find(|mode| mode.name() == text)
        .ok_or_else(|| "the modes are faults and live".to_owned())
}

fn server(text: &str) -> Result<String, ExportError> {
    export::check_address(text).map(|()| text.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label looks like key=value")?;
    let mut bytes = key.bytes();
    let head = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !head || !bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(format!(
            "`{key}` is not a label name: letters, digits and underscores, no digit first"
        ));
    }
    if RESERVED_LABELS.contains(&key) {
        let instead = if key == "host" { "; use --host" } else { "" };
        return Err(format!("the label `{key}` is set by the agent{instead}"));
    }
    if key.len() > MAX_LABEL_NAME_BYTES {
        return Err(format!("the name of a label has at most {MAX_LABEL_NAME_BYTES} bytes"));
    }
    if value.len() > MAX_LABEL_VALUE_BYTES {
        return Err(format!(
            "the value of label `{key}` is longer than {MAX_LABEL_VALUE_BYTES} bytes"
        ));
    }
    if value.chars().any(char::is_control) {
        return Err(format!("the value of label `{key}` has control characters"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// A number with one of these units, in the unit that is 1.
fn amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

fn duration(text: &str) -> Result<Duration, String> {
    match amount(text, &[("s", 1), ("m", 60)]) {
        Some(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        Some(_) => Err("a window lasts from 1s to 60m".to_owned()),
        None => Err("a duration looks like 10s or 1m".to_owned()),
    }
}

fn budget(text: &str) -> Result<Duration, String> {
    match amount(text, &[("ms", 1), ("s", 1000)]) {
        Some(budget @ 1..=3_600_000) => Ok(Duration::from_millis(budget)),
        Some(_) => Err("a budget is 1ms to 3600s".to_owned()),
        None => Err("a budget looks like 100ms or 1s".to_owned()),
    }
}

/// The BPF programs count a period in 32 bits.
fn offcpu_period(text: &str) -> Result<Duration, String> {
    match amount(text, &[("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)]) {
        Some(period @ 100_000..=1_000_000_000) => Ok(Duration::from_nanos(period)),
        Some(_) => Err("a period lasts from 100us to 1s".to_owned()),
        None => Err("a period looks like 10ms or 500us".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_that_others_rely_on_are_there() {
        let cli = Cli::try_parse_from([
            "everflame-agent",
            "--server",
            "http://c:4040",
            "--kinds",
            "cpu",
            "--cpu-rate-hz",
            "97",
            "--metrics",
            "127.0.0.1:0",
            "--label",
            "env=prod",
            "--label",
            "zone=a",
            "--spool-dir",
            "/tmp/spool",
        ])
        .unwrap();
        assert_eq!(cli.run.cpu_rate_hz, 97);
        assert_eq!(cli.run.labels.len(), 2);
        assert_eq!(cli.run.window, Duration::from_secs(10));
        assert_eq!(cli.run.spool_max_bytes, 256 << 20);
    }

    #[test]
    fn bad_values_say_what_a_good_one_looks_like() {
        let error = |args: &[&str]| {
            let args = ["everflame-agent"].iter().chain(args);
            Cli::try_parse_from(args).unwrap_err().to_string()
        };
        assert!(error(&["--server", "collector:4040"]).contains("looks like http://HOST:4040"));
        assert!(error(&["--server", "https://collector"]).contains("TLS is not supported yet"));
        assert!(error(&["--cpu-rate-hz", "0"]).contains("0 is not in 1.."));
        assert!(error(&["--label", "env"]).contains("key=value"));
        assert!(error(&["--label", "9x=1"]).contains("not a label name"));
        assert!(error(&["--label", "host=a"]).contains("use --host"));
        assert!(error(&["--label", "pid=1"]).contains("set by the agent"));
        assert!(error(&["--label", "a=b\nc"]).contains("control characters"));
        assert!(error(&["--label", &format!("{}=a", "x".repeat(129))]).contains("128 bytes"));
        assert!(error(&["--label", &format!("a={}", "x".repeat(1025))]).contains("1024 bytes"));
        assert!(error(&["--window", "10"]).contains("10s or 1m"));
        assert!(error(&["--spool-max-bytes", "9XB"]).contains("KiB, MiB or GiB"));
        assert!(error(&["--metrics", "here"]).contains("127.0.0.1:4041"));
        assert!(error(&["--kinds", "cpux"]).contains("the kinds are cpu"));
    }

    fn check(args: &[&str]) -> Result<(), String> {
        let args = ["everflame-agent"].iter().chain(args);
        Cli::try_parse_from(args).unwrap().run.check()
    }

    #[test]
    fn labels_that_a_collector_would_refuse_are_refused_at_once() {
        let largest = format!("{}={}", "x".repeat(128), "y".repeat(1024));
        assert_eq!(check(&["--label", &largest, "--label", "service=a,version="]), Ok(()));
        let twice = check(&["--label", "env=prod,zone=a", "--label", "env=test"]);
        assert!(twice.unwrap_err().contains("`env` is given twice"));
        let many: Vec<String> = (0..49).map(|n| format!("l{n}=x")).collect();
        assert!(check(&["--label", &many.join(",")]).unwrap_err().contains("at most 48 labels"));
        let long: Vec<String> = (0..9).map(|n| format!("l{n}={}", "x".repeat(1000))).collect();
        assert!(check(&["--label", &long.join(",")]).unwrap_err().contains("8192 bytes"));
    }

    #[test]
    fn allocations_are_seen_in_the_modes_that_are_asked_for() {
        let parse = |args: &[&str]| {
            let args = ["everflame-agent"].iter().chain(args);
            Cli::try_parse_from(args).map(|cli| cli.run).map_err(|error| error.to_string())
        };
        let of = |args: &[&str]| {
            let run = parse(args).unwrap();
            (run.growth_period_bytes(), run.live_config().map(|live| live.period_bytes))
        };
        assert_eq!(of(&["--alloc-modes", "live"]), (None, None), "not of kind alloc");
        assert_eq!(of(&["--kinds", "alloc"]), (Some(512 << 10), None));
        assert_eq!(of(&["--kinds", "alloc", "--alloc-modes", "live"]), (None, Some(None)));
        assert_eq!(
            of(&["--kinds", "alloc", "--alloc-modes", "faults,live", "--alloc-period", "1MiB"]),
            (Some(1 << 20), Some(Some(1 << 20)))
        );
        assert!(parse(&["--alloc-modes", "malloc"]).unwrap_err().contains("faults and live"));
    }

    #[test]
    fn windows_on_allocators_are_of_kind_alloc() {
        let window = ["--kinds", "alloc", "--alloc-window", "2s"];
        assert_eq!(check(&window), Ok(()));
        assert!(check(&window[2..]).unwrap_err().contains("--kinds"));
        let long = ["--kinds", "alloc", "--alloc-window", "2m"];
        assert!(check(&long).unwrap_err().contains("shorter"));
        // The preloaded library has the same variable, so it may be there for that.
        assert_eq!(check(&["--alloc-period", "1MiB"]), Ok(()));
        assert!(check(&["--alloc-modes", "live"]).unwrap_err().contains("--kinds"));
    }
}
