//! One profile less another, as `go tool pprof -diff_base` has it.

use everflame_proto::pprof::Profile;

use crate::merge::{MergeError, Merger};

/// The label (with the value "true") by which pprof knows what is of the base: percentages are of its sum.
pub const BASE_LABEL: &str = "pprof::base";

/// What the second profile has, and, negative, what the base has.
pub fn subtract(base: &Profile, compare: &Profile) -> Result<Profile, MergeError> {
    let mut negative = base.clone();
    for value in negative.sample.iter_mut().flat_map(|sample| &mut sample.value) {
        *value = value.saturating_neg();
    }
    let mut merger = Merger::new();
    merger.add(compare)?;
    merger.add_with_labels(&negative, &[(BASE_LABEL.to_owned(), "true".to_owned())])?;
    let mut difference = merger.finish();
    difference.time_nanos = compare.time_nanos;
    difference.duration_nanos = compare.duration_nanos;
    Ok(difference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::label;
    use crate::tables::tests::small_profile;

    #[test]
    fn base_is_negative_and_marked() {
        let (base, mut compare) = (small_profile(), small_profile());
        compare.sample[0].value = compare.sample[0].value.iter().map(|value| value * 3).collect();
        let difference = subtract(&base, &compare).unwrap();
        let sum = |is_base: bool| -> i64 {
            let of_side = difference
                .sample
                .iter()
                .filter(|sample| (label(&difference, sample, BASE_LABEL) == "true") == is_base);
            of_side.map(|sample| sample.value[1]).sum()
        };
        let values =
            |profile: &Profile| profile.sample.iter().map(|sample| sample.value[1]).sum::<i64>();
        assert_eq!((sum(true), sum(false)), (-values(&base), values(&compare)));
        assert_eq!(difference.duration_nanos, compare.duration_nanos);
        assert_eq!(crate::validate::validate(&difference), Ok(()));
    }
}
