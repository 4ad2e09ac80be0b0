//! Flame graphs as SVG, drawn by inferno.

use std::io;

use everflame_profile::fold;
use everflame_profile::pprof::Profile;
use everflame_profile::select::sample_types;
use inferno::flamegraph::{self, Options};

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

    // The picture has no place for values below zero, as in profiles that were subtracted.
    let lines: Vec<String> = fold(profile, index)
        .into_iter()
        .filter(|(_, value)| *value > 0)
        .map(|(stack, value)| format!("{stack} {value}"))
        .collect();
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
        .map_err(|source| SvgError { source })?;
    Ok(svg)
}

/// Collapsed stacks as text, one per line.
pub(crate) fn folded(profile: &Profile, index: usize) -> String {
    fold(profile, index).into_iter().map(|(stack, value)| format!("{stack} {value}\n")).collect()
}
