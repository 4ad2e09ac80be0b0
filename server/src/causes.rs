//! An error and its causes in one line, for answers and logs.
//!
//! Errors keep their causes as values; only where they leave the process are
//! they turned into text.

use std::error::Error;

/// Messages quote what was asked, and gRPC clients do not take headers of any length.
const MAX_BYTES: usize = 2_048;

/// The message of the error, then those of its causes, separated by ": ".
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Regex errors draw a picture of several lines; the last one says why.
        let message = error.to_string();
        let message = message.lines().last().unwrap_or_default().trim();
        text.push_str(": ");
        text.push_str(message.strip_prefix("error: ").unwrap_or(message));
        cause = error.source();
    }
    if text.len() > MAX_BYTES {
        text.truncate(text.floor_char_boundary(MAX_BYTES));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::selector::Selector;

    #[test]
    fn long_messages_are_cut_between_characters() {
        let err = "ü".repeat(MAX_BYTES).parse::<everflame_profile::Kind>().unwrap_err();
        let text = with_causes(&err);
        assert!(text.len() <= MAX_BYTES + '…'.len_utf8() && text.ends_with('…'), "{text}");
    }

    #[test]
    fn causes_follow_in_one_line() {
        let err = r#"{version=~"v(4"}"#.parse::<Selector>().unwrap_err();
        assert_eq!(
            with_causes(&err),
            "wrong selector at column 11: bad regular expression: unclosed group"
        );
    }
}
