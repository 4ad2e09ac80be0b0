//! Cuts a selector into tokens, each with the column it begins in.
//!
//! Values are quoted as in PromQL: in double or single quotes with Go's escapes, or in
//! backticks without any, which is what regular expressions are best written in.

use std::{iter::Peekable, str::Chars};

use super::parser::{Problem, SelectorError};

/// A token, and the column of its first character, counted in characters from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) column: usize,
    pub(super) kind: TokenKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TokenKind {
    OpenBrace,
    CloseBrace,
    Comma,
    Equal,
    NotEqual,
    Match,
    NotMatch,
    Name(String),
    /// With escapes resolved.
    Value(String),
    End,
}

impl TokenKind {
    /// How a message refers to the token.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::OpenBrace => "'{'".to_owned(),
            Self::CloseBrace => "'}'".to_owned(),
            Self::Comma => "','".to_owned(),
            Self::Equal => "'='".to_owned(),
            Self::NotEqual => "'!='".to_owned(),
            Self::Match => "'=~'".to_owned(),
            Self::NotMatch => "'!~'".to_owned(),
            Self::Name(name) => format!("'{name}'"),
            Self::Value(_) => "a quoted value".to_owned(),
            Self::End => "the end".to_owned(),
        }
    }
}

pub(super) struct Lexer<'a> {
    rest: Peekable<Chars<'a>>,
    column: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text.chars().peekable(), column: 0 }
    }

    pub(super) fn next_token(&mut self) -> Result<Token, SelectorError> {
        while self.rest.next_if(|c| c.is_whitespace()).is_some() {
            self.column += 1;
        }
        let column = self.column + 1;
        let kind = match self.bump() {
            None => TokenKind::End,
            Some('{') => TokenKind::OpenBrace,
            Some('}') => TokenKind::CloseBrace,
            Some(',') => TokenKind::Comma,
            Some('=') if self.bump_if('~') => TokenKind::Match,
            Some('=') => TokenKind::Equal,
            Some('!') if self.bump_if('=') => TokenKind::NotEqual,
            Some('!') if self.bump_if('~') => TokenKind::NotMatch,
            Some(quote @ ('"' | '\'')) => self.value(column, quote)?,
            Some('`') => self.raw_value(column)?,
            Some(first) if first.is_ascii_alphabetic() || first == '_' => self.name(first),
            Some(other) => {
                return Err(SelectorError { column, problem: Problem::UnexpectedCharacter(other) });
            }
        };
        Ok(Token { column, kind })
    }

    fn name(&mut self, first: char) -> TokenKind {
        let mut name = String::from(first);
        while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            self.column += 1;
            name.push(c);
        }
        TokenKind::Name(name)
    }

    fn value(&mut self, start: usize, quote: char) -> Result<TokenKind, SelectorError> {
        let mut value = String::new();
        loop {
            match self.bump() {
                Some(c) if c == quote => return Ok(TokenKind::Value(value)),
                Some('\\') => {
                    let column = self.column;
                    let Some(escape) = self.bump() else { break };
                    let escaped = self.escaped(escape);
                    value.push(
                        escaped
                            .ok_or(SelectorError { column, problem: Problem::BadEscape(escape) })?,
                    );
                }
                Some(c) => value.push(c),
                None => break,
            }
        }
        Err(SelectorError { column: start, problem: Problem::UnterminatedValue })
    }

    /// What a backslash and this character stand for, after which the digits of a code
    /// point may follow.
    fn escaped(&mut self, escape: char) -> Option<char> {
        let digits = match escape {
            '\\' | '"' | '\'' => return Some(escape),
            'a' => return Some('\x07'),
            'b' => return Some('\x08'),
            'f' => return Some('\x0c'),
            'n' => return Some('\n'),
            'r' => return Some('\r'),
            't' => return Some('\t'),
            'v' => return Some('\x0b'),
            'u' => 4,
            'U' => 8,
            _ => return None,
        };
        let mut code_point = 0_u32;
        for _ in 0..digits {
            code_point = code_point.checked_mul(16)?.checked_add(self.bump()?.to_digit(16)?)?;
        }
        char::from_u32(code_point)
    }

    fn raw_value(&mut self, start: usize) -> Result<TokenKind, SelectorError> {
        let mut value = String::new();
        while let Some(c) = self.bump() {
            match c {
                '`' => return Ok(TokenKind::Value(value)),
                c => value.push(c),
            }
        }
        Err(SelectorError { column: start, problem: Problem::UnterminatedValue })
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.column += usize::from(next.is_some());
        next
    }

    fn bump_if(&mut self, expected: char) -> bool {
        let found = self.rest.next_if_eq(&expected).is_some();
        self.column += usize::from(found);
        found
    }
}
