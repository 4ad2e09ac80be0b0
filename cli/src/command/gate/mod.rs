//! `everflame gate`: whether a version costs more than it may.

mod junit;
mod markdown;

use std::fmt::Write as _;

use everflame_compare::{Comparison, Exceeded, GateResult, Outcome, Rule, Settings, check};
use everflame_profile::Kind;
use serde::Serialize;

use super::comparison::{
    ask, caveats, cost, describe, files::FileSets, relative, relative_interval,
};
use super::json;
use crate::args::{GateArgs, NotEnough};
use crate::collector::Collector;
use crate::failure::Failure;
use crate::format::Format;
use crate::output::Destination;
use crate::table::printable;
use crate::when::now_unix_ns;

pub(crate) const FORMATS: &[Format] =
    &[Format::Table, Format::Json, Format::Markdown, Format::Junit];

/// What is shown of a limit that is exceeded by many functions.
const MAX_SHOWN: usize = 10;

pub(crate) fn run(args: GateArgs) -> Result<(), Failure> {
    let output = args.output.as_deref();
    let format = Format::choose(args.format, output, FORMATS)?;
    let destination = Destination::new(output, false)?;
    let kinds = kinds(&args.fail_on)?;
    let comparisons = compare(&args, &kinds)?;
    let gate = Gate::new(&args.fail_on, comparisons);
    let bytes = match format {
        Format::Json => json(&gate),
        Format::Markdown => markdown::text(&gate).into_bytes(),
        Format::Junit => junit::text(&gate).into_bytes(),
        _ => text(&gate).into_bytes(),
    };
    destination.write(&bytes)?;
    gate.end(args.not_enough_data)
}

/// All limits, and what they were checked on.
#[derive(Serialize)]
struct Gate {
    result: GateResult,
    limits: Vec<Checked>,
    comparisons: Vec<Comparison>,
}

/// A limit with its kind's comparison, as an index.
#[derive(Serialize)]
struct Checked {
    #[serde(flatten)]
    outcome: Outcome,
    comparison: usize,
}

impl Gate {
    fn new(rules: &[Rule], comparisons: Vec<Comparison>) -> Self {
        let settings = Settings::default();
        let checked = |rule: &Rule| {
            let comparison = comparisons.iter().position(|it| it.kind == rule.kind)?;
            Some(Checked {
                outcome: check(rule, &comparisons[comparison].report, &settings),
                comparison,
            })
        };
        let limits: Vec<Checked> = rules.iter().filter_map(checked).collect();
        let has = |result| limits.iter().any(|checked| checked.outcome.result == result);
        let result = if has(GateResult::Failed) {
            GateResult::Failed
        } else if has(GateResult::NotEnoughData) {
            GateResult::NotEnoughData
        } else {
            GateResult::Passed
        };
        Self { result, limits, comparisons }
    }

    fn comparison(&self, checked: &Checked) -> &Comparison {
        &self.comparisons[checked.comparison]
    }

    fn end(&self, not_enough: NotEnough) -> Result<(), Failure> {
        let of = |result| {
            let limits = self.limits.iter().filter(|checked| checked.outcome.result == result);
            limits.map(|checked| checked.outcome.rule.to_string()).collect::<Vec<_>>().join(", ")
        };
        let exceeded =
            |limits: String| Failure::CheckFailed { message: format!("exceeded: {limits}") };
        match (self.result, not_enough) {
            (GateResult::Failed, _) => Err(exceeded(of(GateResult::Failed))),
            (GateResult::NotEnoughData, NotEnough::Exit2) => Err(Failure::NoData {
                message: format!("not enough data for {}", of(GateResult::NotEnoughData)),
            }),
            (GateResult::NotEnoughData, NotEnough::Fail) => Err(Failure::CheckFailed {
                message: format!("not enough data for {}", of(GateResult::NotEnoughData)),
            }),
            (GateResult::NotEnoughData, NotEnough::Pass) | (GateResult::Passed, _) => Ok(()),
        }
    }
}

/// The kinds that limits are about, each once.
fn kinds(rules: &[Rule]) -> Result<Vec<Kind>, Failure> {
    let mut kinds = Vec::new();
    for rule in rules {
        let kind: Kind = rule
            .kind
            .parse()
            .map_err(|err| Failure::usage(format!("in --fail-on {rule}: {err}")))?;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

fn compare(args: &GateArgs, kinds: &[Kind]) -> Result<Vec<Comparison>, Failure> {
    let (from, to) = (args.from.as_deref(), args.to.as_deref());
    if let Some(service) = &args.service {
        let request =
            ask::request(service, &args.sides, (from, to), &args.selector, now_unix_ns())?;
        let mut collector = Collector::connect(&args.server.server)?;
        return kinds.iter().map(|kind| ask::compare(&mut collector, &request, *kind)).collect();
    }
    let (Some(from), Some(to)) = (from, to) else {
        return Err(Failure::usage(
            "say what to compare: --service NAME, or files with --from 'base/*.pb.gz' --to 'pr/*.pb.gz'",
        ));
    };
    let sets = FileSets::read(from, to)?;
    kinds.iter().map(|kind| sets.compare(*kind, &Settings::default())).collect()
}

/// What a result is called.
const fn verdict(result: GateResult) -> &'static str {
    match result {
        GateResult::Passed => "passed",
        GateResult::Failed => "failed",
        GateResult::NotEnoughData => "not enough data",
    }
}

/// What exceeds a limit, in a line: whose cost, before, after, and by how much.
fn describe_exceeded(exceeded: &Exceeded, comparison: &Comparison) -> String {
    let per = comparison.report.basis.cost_per;
    let whose = match (&exceeded.function, exceeded.own) {
        (None, _) => "everything".to_owned(),
        (Some(name), true) => printable(name),
        (Some(name), false) => format!("{} with what it calls", printable(name)),
    };
    let (before, after) = (
        cost(exceeded.cost.base, &comparison.unit, per),
        cost(exceeded.cost.compare, &comparison.unit, per),
    );
    let (change, interval) = (relative(&exceeded.cost), relative_interval(&exceeded.cost));
    format!("{whose}: {before} before, {after} after, {change} ({interval})")
}

fn text(gate: &Gate) -> String {
    let mut out = String::new();
    for checked in &gate.limits {
        let (outcome, comparison) = (&checked.outcome, gate.comparison(checked));
        let _ = writeln!(
            out,
            "{}: {} ({})",
            outcome.rule,
            verdict(outcome.result),
            describe(&comparison.report.basis)
        );
        for exceeded in outcome.exceeded.iter().take(MAX_SHOWN) {
            let _ = writeln!(out, "  {}", describe_exceeded(exceeded, comparison));
        }
        if let Some(more) = outcome.exceeded.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
            let _ = writeln!(out, "  ... and {more} more");
        }
    }
    for comparison in &gate.comparisons {
        for caveat in caveats(&comparison.report.basis, comparison.report.answer) {
            let _ = writeln!(out, "note: {}: {caveat}", comparison.kind);
        }
    }
    out
}
