//! The query parameters of /api/v1.
//!
//! Unknown parameters are refused: a mistyped `form=-1h` must not be answered as if
//! it had not been there.

use serde::Deserialize;

use crate::{
    query::{engine::Selection, error::QueryError, time::parse_unix_ns},
    store::{Filter, TimeRange},
};

const DEFAULT_FROM: &str = "-1h";
const DEFAULT_TO: &str = "now";

/// What most routes take.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    kind: Option<String>,
    selector: Option<String>,
    from: Option<String>,
    to: Option<String>,
    sample_type: Option<String>,
    limit: Option<String>,
    format: Option<String>,
}

/// What `/api/v1/kinds` takes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KindsParams {
    from: Option<String>,
    to: Option<String>,
}

/// What `/api/v1/diff` takes: `base_*` and `compare_*` for what differs between the
/// sides, the plain names for what they have in common.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiffParams {
    kind: Option<String>,
    selector: Option<String>,
    from: Option<String>,
    to: Option<String>,
    sample_type: Option<String>,
    limit: Option<String>,
    base_kind: Option<String>,
    base_selector: Option<String>,
    base_from: Option<String>,
    base_to: Option<String>,
    compare_kind: Option<String>,
    compare_selector: Option<String>,
    compare_from: Option<String>,
    compare_to: Option<String>,
}

/// How `/api/v1/merge` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Pprof,
    Flame,
}

impl KindsParams {
    /// The time range, the last hour when nothing is said.
    pub(super) fn range(&self, now_unix_ns: u64) -> Result<TimeRange, QueryError> {
        range("from", self.from.as_deref(), "to", self.to.as_deref(), now_unix_ns)
    }
}

impl Params {
    fn range(&self, now_unix_ns: u64) -> Result<TimeRange, QueryError> {
        range("from", self.from.as_deref(), "to", self.to.as_deref(), now_unix_ns)
    }

    pub(super) fn selection(&self, now_unix_ns: u64) -> Result<Selection, QueryError> {
        selection(
            self.kind.as_deref(),
            self.selector.as_deref(),
            self.range(now_unix_ns)?,
            self.sample_type.as_deref(),
        )
    }

    pub(super) fn limit(&self) -> Result<Option<usize>, QueryError> {
        limit(self.limit.as_deref())
    }

    pub(super) fn format(&self) -> Result<Format, QueryError> {
        match self.format.as_deref() {
            None | Some("pprof") => Ok(Format::Pprof),
            Some("flame") => Ok(Format::Flame),
            Some(other) => Err(QueryError::Parameter {
                message: format!("unknown format {other:?}; write pprof or flame"),
            }),
        }
    }
}

impl DiffParams {
    /// The base and what it is compared with.
    pub(super) fn selections(
        &self,
        now_unix_ns: u64,
    ) -> Result<(Selection, Selection), QueryError> {
        let sample_type = self.sample_type.as_deref();
        let own_or_common = |own: &'_ Option<String>, common: &'_ Option<String>| {
            own.as_ref().or(common.as_ref()).cloned()
        };
        let side = |kind, selector, from: (&'static str, _), to: (&'static str, _)| {
            let kind = own_or_common(kind, &self.kind);
            let selector = own_or_common(selector, &self.selector);
            let from_text = own_or_common(from.1, &self.from);
            let to_text = own_or_common(to.1, &self.to);
            let range = range(from.0, from_text.as_deref(), to.0, to_text.as_deref(), now_unix_ns)?;
            selection(kind.as_deref(), selector.as_deref(), range, sample_type)
        };
        let base = side(
            &self.base_kind,
            &self.base_selector,
            ("base_from", &self.base_from),
            ("base_to", &self.base_to),
        )?;
        let compare = side(
            &self.compare_kind,
            &self.compare_selector,
            ("compare_from", &self.compare_from),
            ("compare_to", &self.compare_to),
        )?;
        Ok((base, compare))
    }

    pub(super) fn limit(&self) -> Result<Option<usize>, QueryError> {
        limit(self.limit.as_deref())
    }
}

pub(super) fn range(
    from_name: &'static str,
    from: Option<&str>,
    to_name: &'static str,
    to: Option<&str>,
    now_unix_ns: u64,
) -> Result<TimeRange, QueryError> {
    let start_unix_ns = parse_unix_ns(from_name, from.unwrap_or(DEFAULT_FROM), now_unix_ns)?;
    let end_unix_ns = parse_unix_ns(to_name, to.unwrap_or(DEFAULT_TO), now_unix_ns)?;
    if end_unix_ns < start_unix_ns {
        return Err(QueryError::EmptyRange);
    }
    Ok(TimeRange { start_unix_ns, end_unix_ns })
}

fn selection(
    kind: Option<&str>,
    selector: Option<&str>,
    range: TimeRange,
    sample_type: Option<&str>,
) -> Result<Selection, QueryError> {
    let kind = kind.unwrap_or("cpu").parse()?;
    let selector = selector.unwrap_or_default().parse()?;
    let sample_type = sample_type.filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(Selection { filter: Filter { kind, selector, range }, sample_type })
}

pub(super) fn limit(text: Option<&str>) -> Result<Option<usize>, QueryError> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(0) => Ok(None),
        Ok(limit) => Ok(Some(limit)),
        Err(_not_a_number) => Err(QueryError::Parameter {
            message: format!("cannot read limit={text:?}: write a number, 0 for all"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_763_000_000_000_000_000;
    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn last_hour_of_cpu_profiles_is_the_default() {
        let selection = Params::default().selection(NOW).unwrap();
        assert_eq!(selection.filter.kind, everflame_profile::Kind::Cpu);
        let range = TimeRange { start_unix_ns: NOW - HOUR, end_unix_ns: NOW };
        assert_eq!(selection.filter.range, range);
    }

    #[test]
    fn sides_of_a_diff_fall_back_to_what_they_have_in_common() {
        let text = |text: &str| Some(text.to_owned());
        let params = DiffParams {
            kind: text("offcpu"),
            selector: text("{service=\"api\"}"),
            base_from: text("-3h"),
            base_to: text("-2h"),
            compare_selector: text("{service=\"web\"}"),
            ..DiffParams::default()
        };
        let (base, compare) = params.selections(NOW).unwrap();
        let range = TimeRange { start_unix_ns: NOW - 3 * HOUR, end_unix_ns: NOW - 2 * HOUR };
        assert_eq!(base.filter.range, range);
        assert_eq!(base.filter.selector.required_values().next(), Some(("service", "api")));
        assert_eq!(compare.filter.range.start_unix_ns, NOW - HOUR);
        assert_eq!(compare.filter.selector.required_values().next(), Some(("service", "web")));
        assert_eq!(compare.filter.kind, everflame_profile::Kind::OffCpu);
    }

    #[test]
    fn inverted_ranges_are_refused() {
        let params =
            Params { from: Some("now".into()), to: Some("-1h".into()), ..Params::default() };
        assert!(matches!(params.selection(NOW), Err(QueryError::EmptyRange)));
    }
}
