//! A gate's result as a comment on a pull request.

use std::fmt::Write as _;

use everflame_compare::{Exceeded, GateResult};

use super::super::comparison::{caveats, cost, describe, probability, relative, relative_interval};
use super::{Gate, MAX_SHOWN, verdict};

pub(super) fn text(gate: &Gate) -> String {
    let mut out = format!("### {} everflame: {}\n\n", sign(gate.result), verdict(gate.result));
    if let Some(comparison) = gate.comparisons.first() {
        let service = if comparison.service.is_empty() {
            String::new()
        } else {
            format!("{}: ", code(&comparison.service))
        };
        let name =
            |name: &str| if name.is_empty() { "another time".to_owned() } else { code(name) };
        let _ = writeln!(
            out,
            "{service}{} → {}\n",
            name(&comparison.base.name),
            name(&comparison.compare.name)
        );
    }
    out.push_str(
        "| limit | result | all of it | 95 % | compared |\n| --- | --- | --- | --- | --- |\n",
    );
    for checked in &gate.limits {
        let report = &gate.comparison(checked).report;
        let _ = writeln!(
            out,
            "| {} | {} {} | {} | {} | {} |",
            code(&checked.outcome.rule.to_string()),
            sign(checked.outcome.result),
            verdict(checked.outcome.result),
            relative(&report.whole.cost),
            relative_interval(&report.whole.cost),
            describe(&report.basis)
        );
    }
    for checked in gate.limits.iter().filter(|checked| !checked.outcome.exceeded.is_empty()) {
        let comparison = gate.comparison(checked);
        let _ = writeln!(out, "\n**{}** is exceeded by\n", code(&checked.outcome.rule.to_string()));
        out.push_str("| function | before | after | change | 95 % | p |\n| --- | ---: | ---: | ---: | --- | ---: |\n");
        let per = comparison.report.basis.cost_per;
        for exceeded in checked.outcome.exceeded.iter().take(MAX_SHOWN) {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} |",
                whose(exceeded),
                cost(exceeded.cost.base, &comparison.unit, per),
                cost(exceeded.cost.compare, &comparison.unit, per),
                relative(&exceeded.cost),
                relative_interval(&exceeded.cost),
                probability(Some(exceeded.adjusted_p))
            );
        }
        if let Some(more) =
            checked.outcome.exceeded.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0)
        {
            let _ = writeln!(out, "\n... and {more} more");
        }
    }
    let mut notes: Vec<String> = Vec::new();
    for comparison in &gate.comparisons {
        for caveat in caveats(&comparison.report.basis, comparison.report.answer) {
            if !notes.contains(&caveat) {
                notes.push(caveat);
            }
        }
    }
    for note in notes {
        let _ = writeln!(out, "\n> {note}");
    }
    out
}

const fn sign(result: GateResult) -> &'static str {
    match result {
        GateResult::Passed => "✅",
        GateResult::Failed => "❌",
        GateResult::NotEnoughData => "❔",
    }
}

fn whose(exceeded: &Exceeded) -> String {
    match (&exceeded.function, exceeded.own) {
        (None, _) => "everything".to_owned(),
        (Some(name), true) => code(name),
        (Some(name), false) => format!("{} and what it calls", code(name)),
    }
}

/// As code that cannot end the cell it is in, nor the code: names come from other people's programs.
fn code(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|character| match character {
            '`' => '\'',
            character if character.is_control() => ' ',
            character => character,
        })
        .collect();
    format!("`{}`", clean.replace('|', "\\|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_cell() {
        assert_eq!(code("a|b`c\nd"), "`a\\|b'c d`");
    }
}
