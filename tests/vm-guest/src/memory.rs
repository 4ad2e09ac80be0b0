//! Allocations: loads the programs that see them, in the form that the kernel takes, and measures memory that is
//! known to have grown.

use anyhow::{Result, bail, ensure};
use everflame_agent::collect::{CollectConfig, Collector, LiveConfig};
use everflame_agent::session::{AllocMode, Session, SessionConfig, Target};
use everflame_profile::{Kind, fold};

use crate::load::accepted;
use crate::recording::RATE_HZ;

const PERIOD_BYTES: u64 = 256 << 10;
const GROWTH_BYTES: usize = 32 << 20;

/// Values of a sample begin with objects and bytes.
const ALLOC_SPACE: usize = 1;

/// Returns what was seen of the growth of this process.
pub(crate) fn check() -> Result<String> {
    let config = CollectConfig {
        oom_victims: true,
        window_period_bytes: Some(PERIOD_BYTES),
        live: Some(LiveConfig::default()),
        ..CollectConfig::of_growth(PERIOD_BYTES)
    };
    let collector = Collector::start(&config)?;
    accepted(&collector)?;
    drop(collector);

    let session = Session::start(SessionConfig {
        kind: Kind::Alloc,
        rate_hz: RATE_HZ,
        alloc_mode: AllocMode::Faults,
        alloc_period_bytes: PERIOD_BYTES,
        live_period_bytes: None,
        target: Target::Pid(std::process::id()),
    })?;
    let grown = std::hint::black_box(vec![1_u8; GROWTH_BYTES]);
    let recording = session.finish()?;
    drop(grown);
    let bytes: i64 =
        fold(&recording.profile, ALLOC_SPACE).into_iter().map(|(_, bytes)| bytes).sum();
    let detail = format!("{} MiB grown of {}", bytes >> 20, GROWTH_BYTES >> 20);
    // What there was when the program first looked is not growth, and that may be a huge page; on the other
    // hand, the profiler itself grows a bit in this process.
    let expected = GROWTH_BYTES as i64;
    ensure!(bytes > expected * 90 / 100 && bytes < expected * 125 / 100, "{detail}");
    Ok(detail)
}

/// Where they cannot be seen, that is said.
pub(crate) fn check_without() -> Result<String> {
    match Collector::start(&CollectConfig::of_growth(PERIOD_BYTES)) {
        Ok(_) => bail!("an agent of allocations only has started"),
        Err(error) => {
            let reason = error.to_string();
            ensure!(reason.contains("older than Linux 5.17"), "another reason: {reason}");
            Ok(reason)
        }
    }
}
