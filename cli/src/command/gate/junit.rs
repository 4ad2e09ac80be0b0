//! A gate's result as JUnit's XML, in which pipelines show tests: each limit is one.

use std::fmt::Write as _;

use everflame_compare::GateResult;

use super::super::comparison::caveats;
use super::{Gate, describe_exceeded};

pub(super) fn text(gate: &Gate) -> String {
    let count =
        |result| gate.limits.iter().filter(|checked| checked.outcome.result == result).count();
    let mut out = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    let _ = writeln!(
        out,
        "<testsuite name=\"everflame gate\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">",
        gate.limits.len(),
        count(GateResult::Failed),
        count(GateResult::NotEnoughData)
    );
    for checked in &gate.limits {
        let comparison = gate.comparison(checked);
        let (name, class) =
            (escaped(&checked.outcome.rule.to_string()), escaped(&comparison.service));
        let _ = write!(out, "  <testcase name=\"{name}\" classname=\"{class}\"");
        match checked.outcome.result {
            GateResult::Passed => out.push_str("/>\n"),
            GateResult::NotEnoughData => {
                let report = &comparison.report;
                let reason = caveats(&report.basis, report.answer).join("; ");
                let _ = writeln!(
                    out,
                    ">\n    <skipped message=\"{}\"/>\n  </testcase>",
                    escaped(&reason)
                );
            }
            GateResult::Failed => {
                let lines: Vec<String> = checked
                    .outcome
                    .exceeded
                    .iter()
                    .map(|exceeded| escaped(&describe_exceeded(exceeded, comparison)))
                    .collect();
                let first = lines.first().map_or("", String::as_str);
                let _ = writeln!(
                    out,
                    ">\n    <failure message=\"{first}\">{}</failure>\n  </testcase>",
                    lines.join("\n")
                );
            }
        }
    }
    out.push_str("</testsuite>\n");
    out
}

/// Text in XML, without the characters that XML 1.0 cannot have.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            character if character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}') => {
                out.push('\u{fffd}')
            }
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_generic_code_are_escaped() {
        assert_eq!(
            escaped("Vec<u8>::at \"x\" & \u{1}"),
            "Vec&lt;u8&gt;::at &quot;x&quot; &amp; \u{fffd}"
        );
    }
}
