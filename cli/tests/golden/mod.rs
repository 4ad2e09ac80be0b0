//! Compares output with the files beside this one, which people review.

use std::path::Path;

/// Fails if the output is not what the file says. With UPDATE_GOLDEN=1 the file is written
/// instead.
pub(crate) fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{name} has changed; if that is meant, run again with UPDATE_GOLDEN=1\n\
         --- expected\n{expected}\n--- actual\n{actual}"
    );
}
