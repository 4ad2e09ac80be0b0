//! `cargo xtask`: everything that a newcomer or CI runs, one subcommand per module.
//!
//! It is the first thing anyone compiles here, so it has few dependencies and none of the
//! workspace's other crates: it works before `cargo xtask setup` has made them buildable.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "telling people is the task")]

mod bench;
mod check;
mod command;
mod demo;
mod fuzz;
mod programs;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks for working on everflame.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what this machine lacks for building; does nothing the second time
    Setup(setup::Args),
    /// Build, profile this host with a sample workload, and show where to look
    Demo(demo::Args),
    /// Run all tests (as root those that load BPF programs run too)
    Test(test::Args),
    /// Measure what the agent costs or what the collector takes in
    Bench(bench::Args),
    /// Boot other kernels in qemu and try the agent on each
    Vm(vm::Args),
    /// Feed hostile input to what reads strangers' files
    Fuzz(fuzz::Args),
    /// Formatting, clippy, dependency policy and file conventions
    Check,
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Setup(args) => setup::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Demo(args) => demo::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Vm(args) => vm::run(&args),
        Task::Fuzz(args) => fuzz::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Check => check::run().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
