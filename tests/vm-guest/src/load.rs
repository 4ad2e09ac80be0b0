//! Loads every BPF program of the agent, in each form that the kernel can run: what is made
//! for the oldest kernels must be accepted by all.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use everflame_agent::collect::{CollectConfig, Collector, ProgramForm};
use everflame_agent::kernel::{KernelFeatures, Unwinder};

use crate::recording::RATE_HZ;

/// Returns the forms with the time that it took to start with each.
pub(crate) fn check() -> Result<String> {
    let forms: &[ProgramForm] = match KernelFeatures::probe().unwinder() {
        Unwinder::Recent => &[ProgramForm::Recent, ProgramForm::Old],
        Unwinder::Old => &[ProgramForm::Old],
    };
    let mut times = Vec::new();
    for &form in forms {
        let started = Instant::now();
        let mut config = CollectConfig::at_rate(RATE_HZ);
        config.program_form = Some(form);
        let collector =
            Collector::start(&config).with_context(|| format!("in the form {form:?}"))?;
        times.push(format!("{form:?} in {:.1?}", started.elapsed()));
        let refused: Vec<String> = collector
            .refused_programs()
            .map(|(program, error)| format!("{program:?}: {error}"))
            .collect();
        ensure!(refused.is_empty(), "refused in the form {form:?}: {}", refused.join("; "));
    }
    Ok(times.join(", "))
}
