//! Which of a profile's sample types to look at.

use everflame_proto::pprof::{Label, Profile, Sample, ValueType};

/// Why no sample type could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// The profile does not have the wanted one.
    #[error("the profile has no sample type `{wanted}`; it has {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The profile has none at all.
    #[error("the profile has no sample types")]
    None,
}

/// The index of a sample type in the values of each sample: the one of that name, or the
/// profile's default, or else the last one (as other pprof tools do).
pub fn sample_type_index(profile: &Profile, wanted: Option<&str>) -> Result<usize, SelectError> {
    let last = profile.sample_type.len().checked_sub(1).ok_or(SelectError::None)?;
    let position = |name: &str| {
        profile.sample_type.iter().position(|sample_type| type_name(profile, sample_type) == name)
    };
    match wanted {
        Some(wanted) => position(wanted).ok_or_else(|| SelectError::Unknown {
            wanted: wanted.to_owned(),
            known: sample_types(profile).into_iter().map(|(name, _)| name.to_owned()).collect(),
        }),
        None => Ok(match string(profile, profile.default_sample_type) {
            "" => last,
            default => position(default).unwrap_or(last),
        }),
    }
}

/// (type, unit) of each sample type of a profile.
pub fn sample_types(profile: &Profile) -> Vec<(&str, &str)> {
    profile
        .sample_type
        .iter()
        .map(|sample_type| (type_name(profile, sample_type), string(profile, sample_type.unit)))
        .collect()
}

/// Keeps the samples whose label `key` has this text, and no others.
pub fn retain_labelled(profile: &mut Profile, key: &str, text: &str) {
    filter_labelled(profile, key, text, true);
}

/// Removes the samples whose label `key` has this text.
pub fn remove_labelled(profile: &mut Profile, key: &str, text: &str) {
    filter_labelled(profile, key, text, false);
}

fn filter_labelled(profile: &mut Profile, key: &str, text: &str, is_kept: bool) {
    let mut samples = std::mem::take(&mut profile.sample);
    let is_it = |label: &Label| {
        label.str != 0 && string(profile, label.key) == key && string(profile, label.str) == text
    };
    samples.retain(|sample| sample.label.iter().any(is_it) == is_kept);
    profile.sample = samples;
}

/// The text of a sample's label; "" if it has none.
pub fn label<'a>(profile: &'a Profile, sample: &Sample, key: &str) -> &'a str {
    let found = sample.label.iter().find(|label| string(profile, label.key) == key);
    found.map_or("", |label| string(profile, label.str))
}

/// The number of a sample's label, if it has one.
pub fn number_of(profile: &Profile, sample: &Sample, key: &str) -> Option<i64> {
    sample.label.iter().find(|label| string(profile, label.key) == key).map(|label| label.num)
}

/// The number of a sample's label; 0 if it has none.
pub(crate) fn number(profile: &Profile, sample: &Sample, key: &str) -> i64 {
    number_of(profile, sample, key).unwrap_or(0)
}

/// An entry of the string table; "" for an index outside of it.
pub(crate) fn string(profile: &Profile, index: i64) -> &str {
    usize::try_from(index)
        .ok()
        .and_then(|index| profile.string_table.get(index))
        .map_or("", String::as_str)
}

fn type_name<'a>(profile: &'a Profile, sample_type: &ValueType) -> &'a str {
    string(profile, sample_type.r#type)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::ProfileBuilder;

    fn profile(default: &str) -> Profile {
        ProfileBuilder::new(&[("samples", "count"), ("cpu", "nanoseconds")], default).finish()
    }

    #[test]
    fn named_then_default_then_last() {
        assert_eq!(sample_type_index(&profile("samples"), Some("cpu")), Ok(1));
        assert_eq!(sample_type_index(&profile("samples"), None), Ok(0));
        assert_eq!(sample_type_index(&profile(""), None), Ok(1));
        assert_eq!(sample_type_index(&Profile::default(), None), Err(SelectError::None));
    }

    #[test]
    fn unknown_sample_type_says_what_there_is() {
        let error = sample_type_index(&profile("cpu"), Some("walltime")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the profile has no sample type `walltime`; it has samples, cpu"
        );
    }
}
