//! Loads every BPF program of the agent, in each form that the kernel can run: what is made
//! for the oldest kernels must be accepted by all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use everflame_agent::collect::{CollectConfig, Collector, ProgramForm, WaitConfig};
use everflame_agent::kernel::{KernelFeatures, Unwinder};
use everflame_agent::session::{AllocMode, Session, SessionConfig, Target};
use everflame_profile::{Kind, fold};

use crate::recording::RATE_HZ;

/// Longer than the period, so that each is a sample.
const SLEEP: Duration = Duration::from_millis(20);
const SLEEPS: i64 = 50;

/// Returns the forms with the time that it took to start with each.
pub(crate) fn check() -> Result<String> {
    let mut times = Vec::new();
    for form in forms() {
        let started = Instant::now();
        let mut config = CollectConfig::at_rate(RATE_HZ);
        config.program_form = Some(form);
        let collector =
            Collector::start(&config).with_context(|| format!("in the form {form:?}"))?;
        times.push(format!("{form:?} in {:.1?}", started.elapsed()));
        accepted(&collector).with_context(|| format!("in the form {form:?}"))?;
    }
    Ok(times.join(", "))
}

/// Those that the kernel can run.
pub(crate) fn forms() -> Vec<ProgramForm> {
    match KernelFeatures::probe().unwinder() {
        Unwinder::Recent => vec![ProgramForm::Recent, ProgramForm::Old],
        Unwinder::Old => vec![ProgramForm::Old],
    }
}

/// Fails if the kernel has refused a program, with all that it says.
pub(crate) fn accepted(collector: &Collector) -> Result<()> {
    let Some((program, error)) = collector.refused_programs().next() else { return Ok(()) };
    let mut reasons = vec![error.to_string()];
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        reasons.push(error.to_string());
        source = error.source();
    }
    bail!("{program:?} is refused: {}", reasons.join(": "))
}

/// Follows waits where the kernel says enough about them, and returns how it sees their ends.
pub(crate) fn check_waits() -> Result<String> {
    let config = CollectConfig::of_waits(WaitConfig { locks: true, ..WaitConfig::default() });
    let collector = Collector::start(&config)?;
    accepted(&collector)?;
    let end = collector.wait_end().context("waits are not followed")?;
    drop(collector);

    let session = SessionConfig {
        kind: Kind::OffCpu,
        rate_hz: RATE_HZ,
        alloc_mode: AllocMode::default(),
        alloc_period_bytes: 1 << 20,
        live_period_bytes: None,
        target: Target::All,
    };
    let session = Session::start(session)?;
    for _ in 0..SLEEPS {
        std::thread::sleep(SLEEP);
    }
    let recording = session.finish()?;
    // The first value of a sample is how many waits it stands for.
    let sleeps: i64 = fold(&recording.profile, 0)
        .into_iter()
        .filter(|(stack, _)| stack.contains("nanosleep"))
        .map(|(_, waits)| waits)
        .sum();
    let detail = format!("{sleeps} sleeps of {SLEEPS}, by {}", end.name());
    ensure!(sleeps >= SLEEPS, "{detail}");
    Ok(detail)
}

/// Where waits cannot be followed, that is said, and all else goes on; alone they are an error.
pub(crate) fn check_without_waits() -> Result<String> {
    let mut config = CollectConfig::at_rate(RATE_HZ);
    config.waits = Some(WaitConfig { locks: true, ..WaitConfig::default() });
    let collector = Collector::start(&config).context("with CPU samples")?;
    ensure!(collector.wait_end().is_none(), "they are followed here");
    ensure!(collector.clock().is_some(), "CPU samples are lost, too");
    let refused: Vec<String> =
        collector.refused_programs().map(|(_, error)| error.to_string()).collect();
    let [reason] = refused.as_slice() else { bail!("not one reason: {refused:?}") };
    drop(collector);
    match Collector::start(&CollectConfig::of_waits(WaitConfig::default())) {
        Ok(_) => bail!("an agent of waits only has started"),
        Err(error) => ensure!(error.to_string() == *reason, "another reason alone: {error}"),
    }
    Ok(reason.clone())
}
