//! The init of the machines that `cargo xtask vm` boots: tries the agent on their kernel.
//!
//! Each check prints one line, `VM: ok CHECK: detail` or `VM: fail CHECK: detail`, and
//! `VM: done` comes last; the host decides from these. Whatever happens, the machine is
//! powered off at the end, because the host waits for that.

#![deny(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the console is the only way out")]

#[expect(unsafe_code, reason = "disks are made by ioctls")]
mod block;
mod capabilities;
mod chain;
mod load;
mod machine;
mod memory;
mod recording;
#[expect(unsafe_code, reason = "a network device is raised by an ioctl")]
mod tcp;

use anyhow::{Result, ensure};
use tracing_subscriber::EnvFilter;

use self::chain::Share;

/// How many of the samples in a leaf function must show its whole stack.
const MIN_COMPLETE_PERCENT: u64 = 95;

fn main() {
    if std::process::id() != 1 {
        println!("this is the init of a virtual machine; run `cargo xtask vm`");
        std::process::exit(64);
    }
    match machine::mount_all() {
        Ok(()) => check_all(),
        Err(error) => println!("VM: fail boot: {error:#}"),
    }
    println!("VM: done");
    machine::power_off();
}

fn check_all() {
    let release = machine::kernel_release();
    println!("VM: note Linux {release}");
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("warn"))
        .with_ansi(false)
        .with_writer(std::io::stdout)
        .init();
    check("capabilities", capabilities::check(&release));
    check("load", load::check());
    // Before, `sched_switch` does not say in what state a thread leaves.
    if capabilities::version(&release) >= (5, 18) {
        check("waits", load::check_waits());
        check("allocations", memory::check());
    } else {
        check("allocations", memory::check_without());
        check("waits", load::check_without_waits());
    }
    check("block", block::check());
    if cfg!(target_arch = "aarch64") {
        // Its kernels before 6.4 show no ends of functions; what is left there has not been tried yet.
        println!("VM: note TCP connections are not tried on this architecture");
    } else {
        check("tcp", tcp::check());
    }
    match recording::record() {
        Ok(recorded) => {
            check("samples", enough(recorded.samples, recorded.expected));
            for note in &recorded.notes {
                println!("VM: note {note}");
            }
            for (name, share) in chain::check_all(&recorded.stacks) {
                check(name, complete(&share));
                for (stack, samples) in share.wrong {
                    println!("VM: note {name}: {samples} samples of {stack}");
                }
            }
        }
        Err(error) => check("samples", Err(error)),
    }
}

fn check(name: &str, result: Result<String>) {
    match result {
        Ok(detail) => println!("VM: ok {name}: {detail}"),
        Err(error) => {
            // What the verifier says is many lines long.
            let text = format!("{error:#}");
            let mut lines = text.lines();
            println!("VM: fail {name}: {}", lines.next().unwrap_or_default());
            for line in lines {
                println!("  {line}");
            }
        }
    }
}

/// Much less than the rate promises: the emulator has to share this machine's CPUs.
fn enough(samples: u64, expected: u64) -> Result<String> {
    let detail = format!("{samples} of {expected}");
    ensure!(samples >= expected / 10, "{detail}");
    Ok(detail)
}

fn complete(share: &Share) -> Result<String> {
    let Share { complete, all, .. } = share;
    ensure!(*all > 0, "no sample of it");
    let detail = format!("{complete} of {all} complete");
    ensure!(complete * 100 >= all * MIN_COMPLETE_PERCENT, "{detail}");
    Ok(detail)
}
