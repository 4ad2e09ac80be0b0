//! Reads a selector. Every error says in which column, and what was expected there.
//!
//! ```text
//! selector  = [ "{" [ condition { "," condition } [ "," ] ] "}" ]
//! condition = name ( "=" | "!=" | "=~" | "!~" ) quoted value
//! ```

use regex::RegexBuilder;

use super::{
    Condition, Matcher,
    lexer::{Lexer, Token, TokenKind},
};

/// What a compiled regular expression may take; more is an attack or a mistake.
const MAX_REGEX_BYTES: usize = 1 << 20;
/// Conditions in one selector.
const MAX_MATCHERS: usize = 64;

/// Why a selector cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("wrong selector at column {column}")]
pub struct SelectorError {
    /// Where, counted in characters from 1.
    pub column: usize,
    /// What is wrong there.
    #[source]
    pub problem: Problem,
}

/// What is wrong with a selector.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Problem {
    /// Something else has to come here.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What would be right.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// No token begins like this.
    #[error(
        "unexpected character {0:?}; a selector looks like {{service=\"api\",version=~\"v4.*\"}}"
    )]
    UnexpectedCharacter(char),
    /// A quote that is not closed.
    #[error("this quoted value has no end")]
    UnterminatedValue,
    /// A backslash before something that needs none.
    #[error(
        "unknown escape '\\{0}'; write '\\\\' for a backslash, or `...` for a value without escapes"
    )]
    BadEscape(char),
    /// Not a regular expression, or one that is too large.
    #[error("bad regular expression")]
    Regex(#[from] regex::Error),
    /// Too many conditions.
    #[error("more than {MAX_MATCHERS} conditions")]
    TooMany,
}

pub(super) fn parse(text: &str) -> Result<Vec<Matcher>, SelectorError> {
    let mut parser = Parser { lexer: Lexer::new(text) };
    parser.selector()
}

struct Parser<'a> {
    lexer: Lexer<'a>,
}

impl Parser<'_> {
    fn selector(&mut self) -> Result<Vec<Matcher>, SelectorError> {
        let mut matchers = Vec::new();
        let first = self.lexer.next_token()?;
        match first.kind {
            TokenKind::End => return Ok(matchers),
            TokenKind::OpenBrace => {}
            _ => return Err(unexpected("'{'", &first)),
        }
        let mut token = self.lexer.next_token()?;
        while token.kind != TokenKind::CloseBrace {
            if matchers.len() == MAX_MATCHERS {
                return Err(SelectorError { column: token.column, problem: Problem::TooMany });
            }
            matchers.push(self.matcher(token)?);
            token = self.lexer.next_token()?;
            match token.kind {
                TokenKind::Comma => token = self.lexer.next_token()?,
                TokenKind::CloseBrace => {}
                _ => return Err(unexpected("',' or '}'", &token)),
            }
        }
        let last = self.lexer.next_token()?;
        match last.kind {
            TokenKind::End => Ok(matchers),
            _ => Err(unexpected("nothing after '}'", &last)),
        }
    }

    fn matcher(&mut self, token: Token) -> Result<Matcher, SelectorError> {
        let TokenKind::Name(name) = token.kind else {
            return Err(unexpected("a label name", &token));
        };
        let operator = self.lexer.next_token()?;
        let negated = match operator.kind {
            TokenKind::Equal | TokenKind::Match => false,
            TokenKind::NotEqual | TokenKind::NotMatch => true,
            _ => return Err(unexpected("'=', '!=', '=~' or '!~'", &operator)),
        };
        let token = self.lexer.next_token()?;
        let TokenKind::Value(value) = token.kind else {
            return Err(unexpected("a value in quotes", &token));
        };
        let condition = match (operator.kind, negated) {
            (TokenKind::Equal, _) => Condition::Equal(value),
            (TokenKind::NotEqual, _) => Condition::NotEqual(value),
            (_, false) => Condition::Match(anchored(&value, token.column)?),
            (_, true) => Condition::NotMatch(anchored(&value, token.column)?),
        };
        Ok(Matcher { name, condition })
    }
}

fn anchored(pattern: &str, column: usize) -> Result<regex::Regex, SelectorError> {
    // The pattern has to stand on its own: wrapping it must not repair it.
    let check = RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).build();
    check
        .and_then(|_| {
            RegexBuilder::new(&format!("^(?s:{pattern})$")).size_limit(MAX_REGEX_BYTES).build()
        })
        .map_err(|err| SelectorError { column, problem: Problem::Regex(err) })
}

fn unexpected(expected: &'static str, token: &Token) -> SelectorError {
    let found = token.kind.describe();
    SelectorError { column: token.column, problem: Problem::Expected { expected, found } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(selector: &str, column: usize, message: &str) {
        let err = parse(selector).unwrap_err();
        assert_eq!(err.column, column, "{selector}: {err:?}");
        assert!(err.problem.to_string().contains(message), "{selector}: {err:?}");
    }

    #[test]
    fn errors_name_the_column_and_what_was_expected() {
        check("service", 1, "expected '{'");
        check("{service}", 9, "expected '=', '!=', '=~' or '!~', found '}'");
        check(r#"{service="api""#, 15, "expected ',' or '}', found the end");
        check(r#"{service="api" version="1"}"#, 16, "expected ',' or '}'");
        check("{service=api}", 10, "expected a value in quotes, found 'api'");
        check(r#"{="api"}"#, 2, "expected a label name");
        check("{", 2, "expected a label name, found the end");
        check(r#"{service="api"} x"#, 17, "nothing after '}'");
        check(r#"{a="1",,b="2"}"#, 8, "expected a label name, found ','");
    }

    #[test]
    fn lexical_errors_name_the_column() {
        check(r#"{service="api}"#, 10, "no end");
        check(r#"{service="a\d"}"#, 12, "unknown escape");
        check("{service#}", 9, "unexpected character '#'");
        check(r"{a=`b}", 4, "no end");
        check(r#"{a="\u12"}"#, 5, "unknown escape");
        check(r#"{a="\ud800"}"#, 5, "unknown escape");
        check("{a!\"b\"}", 3, "unexpected character '!'");
    }

    #[test]
    fn bad_regular_expressions_are_refused_at_their_column() {
        check(r#"{version=~"v(4"}"#, 11, "bad regular expression");
        check(r#"{version=~"a)|(b"}"#, 11, "bad regular expression");
        check(r#"{version=~"(((a{1000}){1000}){1000})"}"#, 11, "bad regular expression");
    }

    #[test]
    fn columns_count_characters() {
        check(r#"{service="ü" x"#, 14, "expected ',' or '}'");
    }

    #[test]
    fn trailing_comma_and_single_quotes_are_fine() {
        assert_eq!(parse("{a='1',b=\"2\",}").unwrap().len(), 2);
    }

    #[test]
    fn escapes_are_resolved_except_in_backticks() {
        for (selector, value) in [
            (r#"{a="x\"y\\z"}"#, "x\"y\\z"),
            (r#"{a="\r\n\t\u00fc\U0001F525"}"#, "\r\n\tü🔥"),
            (r#"{a=`x"\n'`}"#, r#"x"\n'"#),
            (r"{a=~`v4\.\d+`}", "v4.2"),
        ] {
            let matchers = parse(selector).unwrap();
            assert!(matchers.iter().all(|m| m.condition.holds(value)), "{selector}");
        }
    }
}
