//! Comparisons of pprof files: each is what one host did, or one run of a benchmark.

use std::path::{Path, PathBuf};

use everflame_compare::{
    ComparedSide, Comparison, Functions, Instance, Settings, Side, Summer, compare,
};
use everflame_profile::pprof::Profile;
use everflame_profile::{Kind, sample_type_index, select};

use crate::failure::Failure;
use crate::files;

/// What is said in a file's comments of where it is from: `host=web-1`, or `host: web-1`.
const HOST: &str = "host";

/// The files that a pattern names, sorted.
pub(crate) fn matching(pattern: &str, flag: &str) -> Result<Vec<PathBuf>, Failure> {
    let paths = glob::glob(pattern).map_err(|err| {
        Failure::usage(format!("{flag} `{pattern}` is not a pattern of files: {err}"))
    })?;
    let mut paths: Vec<PathBuf> =
        paths.filter_map(Result::ok).filter(|path| path.is_file()).collect();
    paths.sort();
    if paths.is_empty() {
        return Err(Failure::NoData { message: format!("no file matches {flag} `{pattern}`") });
    }
    Ok(paths)
}

/// Profiles of both sides, each with what its host is called.
pub(crate) struct FileSets {
    base: (String, Vec<(String, Profile)>),
    compare: (String, Vec<(String, Profile)>),
}

impl FileSets {
    /// Reads the files that two patterns name.
    pub(crate) fn read(from: &str, to: &str) -> Result<Self, Failure> {
        let read = |pattern: &str, flag: &str| -> Result<_, Failure> {
            let mut profiles = Vec::new();
            for path in matching(pattern, flag)? {
                let profile = files::read(&path)?;
                profiles.push((host(&profile, &path), profile));
            }
            Ok((pattern.to_owned(), profiles))
        };
        Ok(Self { base: read(from, "--from")?, compare: read(to, "--to")? })
    }

    /// The comparison of a kind: of the files that have values of it.
    pub(crate) fn compare(&self, kind: Kind, settings: &Settings) -> Result<Comparison, Failure> {
        let mut functions = Functions::default();
        let (base, base_used) = side(&self.base, kind, &mut functions)?;
        let (other, other_used) = side(&self.compare, kind, &mut functions)?;
        let unit = kind.sample_types().iter().find(|(name, _)| *name == kind.default_sample_type());
        Ok(Comparison {
            service: String::new(),
            kind: kind.name().to_owned(),
            unit: unit.map_or("", |(_, unit)| unit).to_owned(),
            base: base_used,
            compare: other_used,
            report: compare(&functions, &base, &other, settings),
        })
    }
}

fn side(
    (pattern, profiles): &(String, Vec<(String, Profile)>),
    kind: Kind,
    functions: &mut Functions,
) -> Result<(Side, ComparedSide), Failure> {
    let (mut side, mut summer) = (Side::default(), Summer::default());
    let mut used = ComparedSide { name: pattern.clone(), ..ComparedSide::default() };
    for (at, (host, profile)) in
        profiles.iter().enumerate().filter(|(_, (_, profile))| is_of(profile, kind))
    {
        let ns = |value: i64| u64::try_from(value).unwrap_or(0);
        // Files that say no time are not of the same one.
        let start =
            if profile.time_nanos > 0 { ns(profile.time_nanos) } else { at as u64 * 1_000_000_000 };
        summer.add(profile, kind, (start, ns(profile.duration_nanos)), functions);
        summer.finish(&mut side, Instance { host, name: &at.to_string() });
        used.profiles += 1;
    }
    if used.profiles == 0 {
        return Err(Failure::NoData {
            message: format!("no file of `{pattern}` has values of kind {kind}"),
        });
    }
    Ok((side, used))
}

/// Whether a file has the first value of a kind, which is what tells it from others.
fn is_of(profile: &Profile, kind: Kind) -> bool {
    let has = |name: &str| sample_type_index(profile, Some(name)).is_ok();
    has(kind.default_sample_type()) && kind.sample_types().first().is_none_or(|(name, _)| has(name))
}

/// The host that a file is from: its label, its comment, or else its name.
fn host(profile: &Profile, path: &Path) -> String {
    let label = profile.sample.first().map_or("", |sample| select::label(profile, sample, HOST));
    let comment = profile.comment.iter().find_map(|comment| {
        let text = usize::try_from(*comment).ok().and_then(|at| profile.string_table.get(at))?;
        let value = text.strip_prefix(HOST)?.trim_start().strip_prefix(['=', ':'])?;
        Some(value.trim())
    });
    match (label, comment) {
        ("", Some(host)) if !host.is_empty() => host.to_owned(),
        ("", _) => path.display().to_string(),
        (host, _) => host.to_owned(),
    }
}
