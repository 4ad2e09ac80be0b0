//! Which labels a series may have.
//!
//! Labels become keys of the store and terms of the selector language, so names
//! are identifiers, strings have no NUL, and both are bounded.

use everflame_proto::v1;

/// Labels of one series, the host included.
const MAX_LABELS: usize = 64;
const MAX_NAME_BYTES: usize = 128;
const MAX_VALUE_BYTES: usize = 1_024;
/// All names and values of a series together; they make up one key of the store.
const MAX_TOTAL_BYTES: usize = 16 << 10;
/// The label that says which host a batch came from.
pub const HOST: &str = "host";

/// Why a set of labels is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Too many of them.
    #[error("{count} labels; at most {MAX_LABELS} are taken")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Not an identifier.
    #[error(
        "label name {name:?} does not match [a-zA-Z_][a-zA-Z0-9_]* or is longer than {MAX_NAME_BYTES}"
    )]
    Name {
        /// The name, cut to a printable length.
        name: String,
    },
    /// Too long, or with a NUL.
    #[error("the value of label {name} is longer than {MAX_VALUE_BYTES} bytes or has a NUL")]
    Value {
        /// The label.
        name: String,
    },
    /// The same name twice.
    #[error("label {name} occurs twice")]
    Repeated {
        /// The label.
        name: String,
    },
    /// Too much in all.
    #[error("the labels have {bytes} bytes in all; at most {MAX_TOTAL_BYTES} are taken")]
    TooLarge {
        /// How many there are.
        bytes: usize,
    },
}

/// Checks the labels of a profile and adds its host. The result is sorted by name;
/// labels without a value are left out, since to a selector they are not there.
///
/// # Errors
/// When the labels are not what the store takes.
pub fn series_labels(
    labels: Vec<v1::Label>,
    host: &str,
) -> Result<Vec<(String, String)>, LabelError> {
    if labels.len() >= MAX_LABELS {
        return Err(LabelError::TooMany { count: labels.len() + 1 });
    }
    let mut result = vec![(HOST.to_owned(), host.to_owned())];
    for v1::Label { name, value } in labels {
        check_name(&name)?;
        check_value(&name, &value)?;
        // The batch knows better than each of its profiles where it comes from.
        if name != HOST && !value.is_empty() {
            result.push((name, value));
        }
    }
    result.sort_unstable();
    if let Some([(name, _), _]) = result.array_windows().find(|[a, b]| a.0 == b.0) {
        return Err(LabelError::Repeated { name: name.clone() });
    }
    let bytes = result.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_TOTAL_BYTES {
        return Err(LabelError::TooLarge { bytes });
    }
    Ok(result)
}

fn check_name(name: &str) -> Result<(), LabelError> {
    let mut bytes = name.bytes();
    let first_fits = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let rest_fits = bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if first_fits && rest_fits && name.len() <= MAX_NAME_BYTES {
        Ok(())
    } else {
        Err(LabelError::Name { name: name.chars().take(MAX_NAME_BYTES).collect() })
    }
}

/// Checks a label value, or a host name, which becomes one.
///
/// # Errors
/// When it is too long or has a NUL.
pub fn check_value(name: &str, value: &str) -> Result<(), LabelError> {
    if value.len() > MAX_VALUE_BYTES || value.contains('\0') {
        return Err(LabelError::Value { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Vec<v1::Label> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| v1::Label { name: (*name).into(), value: (*value).into() })
            .collect()
    }

    #[test]
    fn host_of_the_batch_is_added_and_wins() {
        let series = series_labels(labels(&[("service", "api"), ("host", "liar")]), "a").unwrap();
        let expected = [("host", "a"), ("service", "api")];
        assert_eq!(series, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn empty_values_are_left_out() {
        assert_eq!(series_labels(labels(&[("service", "")]), "a").unwrap().len(), 1);
    }

    #[test]
    fn names_have_to_be_identifiers() {
        for name in ["", "1a", "a-b", "a b", "ä", "a\0", &"x".repeat(129)] {
            let refused = series_labels(labels(&[(name, "v")]), "a");
            assert!(matches!(refused, Err(LabelError::Name { .. })), "{name:?}: {refused:?}");
        }
        for name in ["_", "a1", "Container_ID"] {
            series_labels(labels(&[(name, "v")]), "a").unwrap();
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let long = "x".repeat(MAX_VALUE_BYTES + 1);
        assert!(series_labels(labels(&[("a", &long)]), "a").is_err());
        assert!(series_labels(labels(&[("a", "x\0y")]), "a").is_err());
        let names: Vec<_> = (0..MAX_LABELS).map(|n| format!("l{n}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
        assert_eq!(
            series_labels(labels(&many), "a"),
            Err(LabelError::TooMany { count: MAX_LABELS + 1 })
        );
        let value = "x".repeat(MAX_VALUE_BYTES);
        let large: Vec<_> =
            names[..20].iter().map(|name| (name.as_str(), value.as_str())).collect();
        assert!(matches!(series_labels(labels(&large), "a"), Err(LabelError::TooLarge { .. })));
    }

    #[test]
    fn names_may_not_repeat() {
        let refused = series_labels(labels(&[("a", "1"), ("a", "2")]), "h");
        assert_eq!(refused, Err(LabelError::Repeated { name: "a".to_owned() }));
    }
}
