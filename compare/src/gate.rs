//! Limits for deploys: `cpu:+2%`.
//!
//! Here the limit is the null hypothesis: a rule fails when a cost is significantly more than the base's and the
//! limit, however little that matters to somebody else. What only moved between functions never fails.

use std::{fmt, str::FromStr};

use regex::Regex;
use serde::{Serialize, Serializer};

use crate::{
    judge::{Settings, THE_WHOLE},
    multiple::benjamini_hochberg,
    report::{Answer, Change, Metric, Report, Verdict},
};

/// What a cost may not exceed.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What is measured, such as `cpu`.
    pub kind: String,
    /// Whose cost.
    pub scope: Scope,
    /// How much more it may be, as a share of the base: 0.02 for `+2%`.
    pub limit: f64,
}

/// Whose cost is limited.
#[derive(Debug, Clone)]
pub enum Scope {
    /// `cpu`: that of any function, and of everything.
    Any,
    /// `cpu.total`: that of everything.
    Whole,
    /// `cpu/REGEX/`: that of any function whose name matches.
    Matching(Regex),
}

/// Why a rule is none.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// It is written in another way.
    #[error(
        "`{rule}` is no limit; write KIND:+N%, KIND.total:+N% or KIND/REGEX/:+N%, such as `cpu:+2%` or \
         `lock/^db::/:+10%`"
    )]
    Syntax {
        /// What was given.
        rule: String,
    },
    /// The regular expression is none.
    #[error("the regular expression in `{rule}` is not valid")]
    Regex {
        /// What was given.
        rule: String,
        /// What is wrong.
        #[source]
        source: regex::Error,
    },
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(rule: &str) -> Result<Self, Self::Err> {
        let syntax = || RuleError::Syntax { rule: rule.to_owned() };
        let (what, limit) = rule.rsplit_once(':').ok_or_else(syntax)?;
        let percent = limit.trim().strip_prefix('+').and_then(|limit| limit.strip_suffix('%'));
        let percent = percent.and_then(|percent| percent.trim().parse::<f64>().ok());
        let percent = percent.filter(|percent| (0.0..1e6).contains(percent)).ok_or_else(syntax)?;
        let (kind, scope) = match what.trim().split_once('/') {
            Some((kind, pattern)) => {
                let pattern = pattern.strip_suffix('/').ok_or_else(syntax)?;
                let regex = Regex::new(pattern)
                    .map_err(|source| RuleError::Regex { rule: rule.to_owned(), source })?;
                (kind, Scope::Matching(regex))
            }
            None => match what.trim().split_once('.') {
                Some((kind, "total")) => (kind, Scope::Whole),
                Some(_) => return Err(syntax()),
                None => (what.trim(), Scope::Any),
            },
        };
        let is_name = !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_name {
            return Err(syntax());
        }
        Ok(Self { kind: kind.to_owned(), scope, limit: percent / 100.0 })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        match &self.scope {
            Scope::Any => {}
            Scope::Whole => f.write_str(".total")?,
            Scope::Matching(regex) => write!(f, "/{regex}/")?,
        }
        // As it was written: 0.07 * 100 is not quite 7.
        write!(f, ":+{}%", (self.limit * 1e8).round() / 1e6)
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What became of a rule.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Which one.
    pub rule: Rule,
    /// In a word.
    pub result: GateResult,
    /// What costs more than it may: everything, then functions in the order of the report.
    pub exceeded: Vec<Exceeded>,
}

/// What became of a rule, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GateResult {
    /// Nothing costs significantly more than it may.
    Passed,
    /// Something does.
    Failed,
    /// Too few replicates to say.
    NotEnoughData,
}

/// What costs more than it may.
#[derive(Debug, Clone, Serialize)]
pub struct Exceeded {
    /// The function; `None` for everything.
    pub function: Option<String>,
    /// Whether it is what the function costs by itself; else with all that it calls.
    pub own: bool,
    /// What it cost.
    pub cost: Change,
    /// The probability of as much more than the limit if it is kept, adjusted for how much was tested.
    pub adjusted_p: f64,
}

/// Checks a rule on what a comparison of its kind says.
pub fn check(rule: &Rule, report: &Report, settings: &Settings) -> Outcome {
    let mut exceeded = Vec::new();
    if report.answer == Answer::NotEnoughData {
        return Outcome { rule: rule.clone(), result: GateResult::NotEnoughData, exceeded };
    }
    let p = |change: &Change| change.means.map(|means| means.test(1.0 + rule.limit).p_greater);
    let (whole_alpha, functions_q) = match &rule.scope {
        Scope::Any => (settings.whole_alpha, settings.functions_q),
        // All there is to be tested has all that may be false.
        Scope::Whole => (settings.whole_alpha + settings.functions_q, 0.0),
        Scope::Matching(_) => (0.0, settings.whole_alpha + settings.functions_q),
    };
    if let Some(adjusted_p) = p(&report.whole.cost).filter(|p| *p <= whole_alpha) {
        exceeded.push(Exceeded {
            function: None,
            own: false,
            cost: report.whole.cost.clone(),
            adjusted_p,
        });
    }
    let is_meant = |name: &str| match &rule.scope {
        Scope::Any => true,
        Scope::Whole => false,
        Scope::Matching(regex) => regex.is_match(name),
    };
    let mut tests: Vec<(&str, bool, &Metric, f64)> = Vec::new();
    for function in report.functions.iter().filter(|function| is_meant(&function.name)) {
        for (is_own, metric) in [(true, &function.own), (false, &function.total)] {
            // A leaf's metrics are one: `own` is tested.
            let is_same =
                !is_own && function.own.cost.compare >= 0.999 * function.total.cost.compare;
            // What is as good as everything, such as `main`, is tested as that.
            let is_the_whole = matches!(rule.scope, Scope::Any)
                && metric.share.base.min(metric.share.compare) >= THE_WHOLE;
            if metric.verdict != Verdict::Untested && !is_same && !is_the_whole {
                tests.extend(p(&metric.cost).map(|p| (function.name.as_str(), is_own, metric, p)));
            }
        }
    }
    let adjusted = benjamini_hochberg(&tests.iter().map(|test| test.3).collect::<Vec<_>>());
    let mut functions: Vec<Exceeded> = tests
        .into_iter()
        .zip(adjusted)
        .filter(|((_, _, metric, _), adjusted_p)| {
            *adjusted_p <= functions_q && !matches!(metric.verdict, Verdict::Shifted { .. })
        })
        .map(|((name, own, metric, _), adjusted_p)| Exceeded {
            function: Some(name.to_owned()),
            own,
            cost: metric.cost.clone(),
            adjusted_p,
        })
        .collect();
    exceeded.append(&mut functions);
    let result = if exceeded.is_empty() { GateResult::Passed } else { GateResult::Failed };
    Outcome { rule: rule.clone(), result, exceeded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        for rule in
            ["cpu:+2%", "cpu.total:+0.5%", "lock/^db::.*/:+10%", "alloc/a:b/:+7%", "cpu:+0%"]
        {
            assert_eq!(rule.parse::<Rule>().unwrap().to_string(), rule);
        }
        let rule: Rule = "cpu/x/:+150 %".parse().unwrap();
        assert!(matches!(rule.scope, Scope::Matching(_)) && (rule.limit - 1.5).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_rule_is_refused_with_an_example() {
        for rule in [
            "",
            "cpu",
            "cpu:2%",
            "cpu:+2",
            "cpu:+-2%",
            "cpu:+x%",
            "cpu.self:+2%",
            "cpu/x:+2%",
            ":+2%",
            "c pu:+1%",
            "cpu:+NaN%",
            "cpu:+inf%",
        ] {
            let error = rule.parse::<Rule>().unwrap_err();
            assert!(error.to_string().contains("`cpu:+2%`"), "{rule}: {error}");
        }
        assert!(matches!("cpu/(/:+2%".parse::<Rule>(), Err(RuleError::Regex { .. })));
    }
}
