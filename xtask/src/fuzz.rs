//! `cargo xtask fuzz`: runs the fuzz targets of `fuzz/` for a while, as many at once as there
//! are CPUs.
//!
//! Sanitizers are unstable options of the compiler; `RUSTC_BOOTSTRAP` lets the stable one take
//! them, so that no second toolchain is needed. What a target has learned stays under
//! `target/fuzz/corpus`, and the next run goes on from there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::command::{self, ask, cargo, command, line, repository, target_dir};
use crate::setup;

/// All targets; the ones that need most time come first.
const TARGETS: [&str; 4] = ["compile", "eh_frame", "cache", "step"];

/// What the library may take for one input, besides the time to find out.
const LIMITS: [&str; 4] =
    ["-timeout=10", "-rss_limit_mb=1024", "-malloc_limit_mb=256", "-max_len=32768"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which targets: compile, eh_frame, cache, step [default: all]
    #[arg(value_name = "TARGET", value_parser = TARGETS)]
    targets: Vec<String>,
    /// How long to run each
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require(&setup::Args { fuzz: true, ..setup::Args::default() })?;
    let fuzz = Fuzz::build()?;
    let all = TARGETS.map(str::to_owned);
    let targets = if args.targets.is_empty() { &all[..] } else { &args.targets };
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    let mut failed = Vec::new();
    for targets in targets.chunks(at_once) {
        let running = targets.iter().map(|target| fuzz.start(target, args.seconds));
        for (target, running) in targets.iter().zip(running.collect::<Result<Vec<_>>>()?) {
            if !running.finish()? {
                failed.push(target.as_str());
            }
        }
    }
    if !failed.is_empty() {
        bail!("findings in {}; see above", failed.join(", "));
    }
    Ok(())
}

/// Targets that are built.
struct Fuzz {
    /// What they learn, find and say.
    dir: PathBuf,
    /// The programs.
    programs: PathBuf,
}

impl Fuzz {
    fn build() -> Result<Self> {
        let dir = target_dir().join("fuzz");
        let version = ask(command("rustc").arg("-vV")).context("cannot run rustc")?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("rustc does not say what it builds for")?;
        let mut build = cargo();
        build.env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "build", "--target", host]);
        command::run(build.arg("--target-dir").arg(&dir))?;
        let programs = dir.join(host).join("release");
        command::run(command(programs.join("derive-seeds")).arg(dir.join("seeds")))?;
        Ok(Self { dir, programs })
    }

    fn start(&self, target: &str, seconds: u32) -> Result<Running> {
        let corpus = self.dir.join("corpus").join(target);
        let findings = self.dir.join("findings").join(target);
        for dir in [&corpus, &findings] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let log = self.dir.join(format!("{target}.log"));
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut run = command(self.programs.join(target));
        // New inputs go to the first directory only.
        run.arg(corpus).args(self.seeds(target)).args(LIMITS);
        run.arg(format!("-max_total_time={seconds}"));
        run.arg(format!("-artifact_prefix={}/", findings.display()));
        let stdout = output.try_clone().context("cannot share a log file")?;
        let child = run.stdout(stdout).stderr(output).spawn();
        let child = child.with_context(|| format!("cannot run `{}`", line(&run)))?;
        Ok(Running { target: target.to_owned(), child, log })
    }

    /// Those that are committed and those made of them.
    fn seeds(&self, target: &str) -> impl Iterator<Item = PathBuf> {
        let committed = repository().join("fuzz/seeds").join(target);
        let derived = self.dir.join("seeds").join(target);
        [committed, derived].into_iter().filter(|dir| dir.is_dir())
    }
}

struct Running {
    target: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Whether nothing was found; says what happened.
    fn finish(mut self) -> Result<bool> {
        let status =
            self.child.wait().with_context(|| format!("cannot wait for {}", self.target))?;
        let log = read(&self.log)?;
        if status.success() {
            let done = log.lines().rfind(|line| line.contains("DONE")).unwrap_or_default();
            println!("[fuzz] {}: {}", self.target, done.trim_start_matches('#'));
        } else {
            println!("[fuzz] {}: {status}; the end of {}:", self.target, self.log.display());
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(60)..] {
                println!("    {line}");
            }
        }
        Ok(status.success())
    }
}

/// A log, which quotes inputs.
fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
