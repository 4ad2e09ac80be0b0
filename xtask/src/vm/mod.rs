//! `cargo xtask vm`: the agent on kernels other than this machine's.
//!
//! Boots Debian's kernels in qemu (software emulation, so no KVM is needed) with nothing but
//! an initramfs: the agent, a workload whose stacks are known, and `everflame-vm-guest` as
//! init, which checks that the BPF programs load, that samples arrive and that stacks are
//! complete. What it prints on the serial console decides. Nothing is installed but what
//! `cargo xtask setup --vm` lists, and kernels are cached outside of the repository.

mod archive;
mod build;
mod initramfs;
mod kernel;
mod libraries;
mod machine;
mod qemu;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use self::kernel::{KERNELS, Kernel};
use self::report::{Report, print_table};
use crate::command::target_dir;
use crate::setup;

pub(crate) use self::archive::archive_source;
pub(crate) use self::machine::Machine;

const EXAMPLES: &str = "\
Examples:
  cargo xtask vm                                    all kernels
  cargo xtask vm --kernel 5.10                      the oldest one, by its name in --list
  cargo xtask vm --kernel 5.10 --kernel 7 --verbose what their consoles say, too
  cargo xtask vm --update                           look for newer builds of the kernels";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Boot this kernel (can be repeated; default: all)
    #[arg(long = "kernel", value_name = "NAME", value_parser = kernel::parse)]
    kernels: Vec<&'static Kernel>,
    /// List the kernels and where they come from
    #[arg(long)]
    list: bool,
    /// Download the newest build of each kernel, even if there is one in the cache
    #[arg(long)]
    update: bool,
    /// Show the consoles while the kernels run
    #[arg(long, short)]
    verbose: bool,
    /// Give up on a kernel after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Debian archive to take the kernels from (default: the one of this machine's apt sources)
    #[arg(long, value_name = "URI")]
    mirror: Option<String>,
}

/// Whether all checks passed in all kernels.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let kernels: Vec<&Kernel> = if args.kernels.is_empty() {
        KERNELS.iter().collect()
    } else {
        KERNELS.iter().filter(|kernel| args.kernels.contains(kernel)).collect()
    };
    let mut machines: Vec<Machine> = kernels.iter().map(|kernel| kernel.machine).collect();
    machines.dedup();
    setup::require(&setup::Args::default())?;
    setup::require_vm(&machines)?;

    let started = Instant::now();
    let cache = cache_dir()?;
    for kernel in &kernels {
        kernel.fetch(&cache, args.mirror.as_deref(), args.update)?;
    }
    let folder = target_dir().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for machine in machines {
        say(&format!("building the agent and the guest for {machine}"));
        let guest = build::guest(machine)?;
        initramfs::write(&guest, &initramfs_path(machine))?;
    }
    say(&format!("kernels and programs are there after {:.0?}", started.elapsed()));

    let mut reports = Vec::new();
    for kernel in kernels {
        let initramfs = folder.join(format!("initramfs-{}.cpio", kernel.name));
        initramfs::with_modules(
            &initramfs_path(kernel.machine),
            &kernel.modules(&cache),
            &initramfs,
        )?;
        let run = qemu::Run {
            machine: kernel.machine,
            kernel: kernel.image(&cache),
            initramfs,
            console: folder.join(format!("{}.log", kernel.name)),
            timeout: Duration::from_secs(args.timeout),
            show: args.verbose,
        };
        say(&format!("booting {}", kernel.name));
        let ended = qemu::run(&run)?;
        let report = Report::read(kernel.name, ended, &run.console)?;
        report.print();
        reports.push(report);
    }
    print_table(&reports);
    Ok(if reports.iter().all(Report::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list() {
    for kernel in &KERNELS {
        println!("{:<14} {:<8} {}", kernel.name, kernel.machine.to_string(), kernel.suite);
    }
}

fn initramfs_path(machine: Machine) -> PathBuf {
    target_dir().join("vm").join(format!("initramfs-{machine}.cpio"))
}

/// `$XDG_CACHE_HOME/everflame/vm`: kernels outlive `cargo clean`.
fn cache_dir() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir,
        _ => match env::var_os("HOME") {
            Some(home) => PathBuf::from(home).join(".cache"),
            None => bail!("neither XDG_CACHE_HOME nor HOME says where to keep kernels"),
        },
    };
    Ok(base.join("everflame/vm"))
}

fn say(line: &str) {
    println!("[vm] {line}");
}
