//! Flame graphs as SVG, drawn by inferno.

use std::collections::BTreeMap;
use std::io;

use everflame_profile::pprof::Profile;
use everflame_profile::select::sample_types;
use everflame_profile::{fold, sample_type_index};
use inferno::flamegraph::{self, Options};

use crate::failure::Failure;

/// Why a flame graph could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the flame graph")]
pub(crate) struct SvgError {
    #[source]
    source: io::Error,
}

/// A picture of the values at `index` of each sample. There must be some: a flame graph
/// of nothing cannot be drawn.
pub(crate) fn draw(profile: &Profile, index: usize) -> Result<Vec<u8>, SvgError> {
    // The picture has no place for values below zero, as in profiles that were subtracted.
    let lines: Vec<String> = fold(profile, index)
        .into_iter()
        .filter(|(_, value)| *value > 0)
        .map(|(stack, value)| format!("{stack} {value}"))
        .collect();
    picture(options(profile, index), &lines)
}

/// A picture of the second profile, in which what costs more than in the first is red, and what costs less blue.
/// The first is scaled to what the second has in all, so that colours show changes of shares.
pub(crate) fn draw_difference(
    base: &Profile,
    compare: &Profile,
    sample_type: Option<&str>,
) -> Result<Vec<u8>, Failure> {
    let index = sample_type_index(compare, sample_type)?;
    let name = sample_types(compare).get(index).map_or("", |(name, _)| *name);
    let base_stacks = fold(base, sample_type_index(base, Some(name))?);
    let compare_stacks = fold(compare, index);
    let sum = |stacks: &[(String, i64)]| stacks.iter().map(|(_, value)| *value as f64).sum::<f64>();
    let (of_base, of_compare) = (sum(&base_stacks), sum(&compare_stacks));
    if of_base <= 0.0 || of_compare <= 0.0 {
        let side = if of_base <= 0.0 { "first" } else { "second" };
        return Err(Failure::NoData { message: format!("no samples in the {side} profile") });
    }
    let scale = of_compare / of_base;
    let mut both: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (stack, value) in base_stacks {
        both.entry(stack).or_default().0 = (value as f64 * scale) as i64;
    }
    for (stack, value) in compare_stacks {
        both.entry(stack).or_default().1 = value;
    }
    let lines: Vec<String> = both
        .into_iter()
        .filter(|(_, (base, compare))| *base > 0 || *compare > 0)
        .map(|(stack, (base, compare))| format!("{stack} {} {}", base.max(0), compare.max(0)))
        .collect();
    let mut options = options(compare, index);
    options.title.push_str(", difference");
    Ok(picture(options, &lines)?)
}

fn options(profile: &Profile, index: usize) -> Options<'static> {
    let (sample_type, unit) = sample_types(profile).get(index).copied().unwrap_or_default();
    let (count_name, factor) = match unit {
        "nanoseconds" => ("ms", 1e-6),
        "bytes" => ("KiB", 1.0 / 1024.0),
        "count" => (sample_type, 1.0),
        unit => (unit, 1.0),
    };
    let mut options = Options::default();
    options.title = format!("everflame: {sample_type}");
    options.count_name = count_name.to_owned();
    options.factor = factor;
    options.deterministic = true;
    options
}

fn picture(mut options: Options<'_>, lines: &[String]) -> Result<Vec<u8>, SvgError> {
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
        .map_err(|source| SvgError { source })?;
    Ok(svg)
}

/// Collapsed stacks as text, one per line.
pub(crate) fn folded(profile: &Profile, index: usize) -> String {
    fold(profile, index).into_iter().map(|(stack, value)| format!("{stack} {value}\n")).collect()
}
