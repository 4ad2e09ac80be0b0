//! Label selectors as in PromQL: `{service="api",version=~"v4.*",comm!="x"}`.
//!
//! A series that lacks a label is treated as having it with the value "", and
//! regular expressions have to match the whole value.

mod lexer;
mod parser;

use std::{fmt, str::FromStr};

use regex::Regex;

use crate::store::SeriesKey;

pub use parser::SelectorError;

/// Conditions that a series has to meet, all of them. Empty selects everything.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    matchers: Vec<Matcher>,
}

/// One condition on one label.
#[derive(Debug, Clone)]
pub struct Matcher {
    /// The label's name.
    pub name: String,
    /// What its value has to be.
    pub condition: Condition,
}

/// What the value of a label has to be.
#[derive(Debug, Clone)]
pub enum Condition {
    /// `=`
    Equal(String),
    /// `!=`
    NotEqual(String),
    /// `=~`, fully anchored.
    Match(Regex),
    /// `!~`, fully anchored.
    NotMatch(Regex),
}

impl Selector {
    /// Whether the series meets all conditions.
    pub fn matches(&self, series: &SeriesKey) -> bool {
        self.matchers.iter().all(|matcher| matcher.condition.holds(series.label(&matcher.name)))
    }

    /// Leaves out series with one of these values of a label, unless there is a condition on that label:
    /// what has it repeats what others have, or is no cost, and belongs into no sum that nobody asked for.
    pub fn leave_out(&mut self, name: &str, values: &[&str]) {
        if self.is_on(name) {
            return;
        }
        self.matchers.extend(values.iter().map(|value| {
            let condition = Condition::NotEqual((*value).to_owned());
            Matcher { name: name.to_owned(), condition }
        }));
    }

    /// Whether there is a condition on a label.
    pub fn is_on(&self, name: &str) -> bool {
        self.matchers.iter().any(|matcher| matcher.name == name)
    }

    /// The same with one more condition: a label has this value.
    #[must_use]
    pub fn and(mut self, name: &str, value: &str) -> Self {
        let condition = Condition::Equal(value.to_owned());
        self.matchers.push(Matcher { name: name.to_owned(), condition });
        self
    }

    /// The same without conditions on a label.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let others = self.matchers.iter().filter(|matcher| matcher.name != name);
        Self { matchers: others.cloned().collect() }
    }

    /// The label values that every matching series has, for looking them up in an
    /// index. Does not include conditions that series without the label meet.
    pub fn required_values(&self) -> impl Iterator<Item = (&str, &str)> {
        self.matchers.iter().filter_map(|matcher| match &matcher.condition {
            Condition::Equal(value) if !value.is_empty() => {
                Some((matcher.name.as_str(), value.as_str()))
            }
            _ => None,
        })
    }
}

impl Condition {
    /// Whether a label value meets this condition.
    pub fn holds(&self, value: &str) -> bool {
        match self {
            Self::Equal(expected) => value == expected,
            Self::NotEqual(unwanted) => value != unwanted,
            Self::Match(regex) => regex.is_match(value),
            Self::NotMatch(regex) => !regex.is_match(value),
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        parser::parse(text).map(|matchers| Self { matchers })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal(value) => write!(f, "={value:?}"),
            Self::NotEqual(value) => write!(f, "!={value:?}"),
            Self::Match(regex) => write!(f, "=~{:?}", regex.as_str()),
            Self::NotMatch(regex) => write!(f, "!~{:?}", regex.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(labels: &[(&str, &str)]) -> SeriesKey {
        let mut labels: Vec<_> =
            labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        labels.sort();
        SeriesKey { kind: everflame_profile::Kind::Cpu, labels }
    }

    #[track_caller]
    fn check(selector: &str, labels: &[(&str, &str)], expected: bool) {
        let parsed: Selector = selector.parse().unwrap();
        assert_eq!(parsed.matches(&series(labels)), expected, "{selector} on {labels:?}");
    }

    #[test]
    fn empty_selector_matches_everything() {
        check("", &[], true);
        check("{}", &[("service", "api")], true);
        check("  { } ", &[("service", "api")], true);
    }

    #[test]
    fn what_is_left_out_can_be_asked_for() {
        let check = |selector: &str, labels: &[(&str, &str)], expected| {
            let mut selector: Selector = selector.parse().unwrap();
            selector.leave_out("oom", &["true", "again"]);
            assert_eq!(selector.matches(&series(labels)), expected, "{selector:?} on {labels:?}");
        };
        let (plain, repeated) = ([("pid", "1")], [("oom", "true"), ("pid", "1")]);
        check("", &plain, true);
        check("", &repeated, false);
        check(r#"{pid="1"}"#, &repeated, false);
        check(r#"{oom="true"}"#, &repeated, true);
        check(r#"{oom="true"}"#, &plain, false);
        check(r#"{oom=~".*"}"#, &repeated, true);
        check("", &[("oom", "again")], false);
        check(r#"{oom="again"}"#, &[("oom", "again")], true);
    }

    #[test]
    fn equality_compares_the_whole_value() {
        check(r#"{service="api"}"#, &[("service", "api")], true);
        check(r#"{service="api"}"#, &[("service", "api2")], false);
        check(r#"{service="api"}"#, &[], false);
        check(r#"{service!="api"}"#, &[("service", "api")], false);
        check(r#"{service!="api"}"#, &[], true);
    }

    #[test]
    fn regular_expressions_are_anchored_on_both_sides() {
        check(r#"{version=~"v4.*"}"#, &[("version", "v42")], true);
        check(r#"{version=~"v4"}"#, &[("version", "v42")], false);
        check(r#"{version=~"4.*"}"#, &[("version", "v42")], false);
        check(r#"{version=~"a|b"}"#, &[("version", "ab")], false);
        check(r#"{pid!~".."}"#, &[("pid", "42")], false);
        check(r#"{pid!~".."}"#, &[("pid", "421")], true);
    }

    #[test]
    fn missing_label_is_the_empty_value() {
        check(r#"{service=""}"#, &[("host", "a")], true);
        check(r#"{service=""}"#, &[("service", "api")], false);
        check(r#"{service!=""}"#, &[("host", "a")], false);
        check(r#"{service=~".*"}"#, &[("host", "a")], true);
        check(r#"{service=~".+"}"#, &[("host", "a")], false);
    }

    #[test]
    fn all_conditions_have_to_hold() {
        let labels = [("comm", "x"), ("service", "api"), ("version", "v42")];
        check(r#"{service="api",version=~"v4.*"}"#, &labels, true);
        check(r#"{service="api",version=~"v4.*",comm!="x"}"#, &labels, false);
        check(r#"{service="api",service="web"}"#, &labels, false);
    }

    #[test]
    fn only_values_that_have_to_be_there_are_required() {
        let selector: Selector = r#"{a="1",b="",c!="2",d=~"3"}"#.parse().unwrap();
        assert_eq!(selector.required_values().collect::<Vec<_>>(), [("a", "1")]);
    }
}
