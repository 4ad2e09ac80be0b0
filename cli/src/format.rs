//! What form a result takes: asked for with `--format`, or read off the name of the file
//! it goes to.

use std::path::Path;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::failure::Failure;

/// All forms; each command takes some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Text for people.
    Table,
    /// For programs.
    Json,
    /// A gzip'd profile, for any pprof tool.
    Pprof,
    /// Collapsed stacks, one `root;...;leaf value` per line.
    Folded,
    /// An interactive picture, for browsers.
    Svg,
    /// For a comment on a pull request.
    Markdown,
    /// For pipelines, in which each limit is a test.
    Junit,
}

impl Format {
    /// The form that a file's name asks for.
    pub(crate) fn of_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        [
            (".pb.gz", Self::Pprof),
            (".folded", Self::Folded),
            (".svg", Self::Svg),
            (".json", Self::Json),
            (".txt", Self::Table),
            (".md", Self::Markdown),
            (".xml", Self::Junit),
        ]
        .into_iter()
        // A name that is nothing but the extension has no extension.
        .find(|(extension, _)| name.len() > extension.len() && name.ends_with(extension))
        .map(|(_, format)| format)
    }

    /// The name in `--format`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::Pprof => "pprof",
            Self::Folded => "folded",
            Self::Svg => "svg",
            Self::Markdown => "markdown",
            Self::Junit => "junit",
        }
    }

    /// What `--format` or else the output's name asks for, or else a table. It must be one
    /// of `known`.
    pub(crate) fn choose(
        asked: Option<Self>,
        output: Option<&Path>,
        known: &[Self],
    ) -> Result<Self, Failure> {
        let output = output.filter(|path| *path != Path::new("-"));
        let names = || known.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
        let format = match (asked, output) {
            (Some(format), _) => format,
            (None, None) => Self::Table,
            // Devices have no extension, and no need for one.
            (None, Some(path)) if path.exists() && !path.is_file() => Self::Table,
            (None, Some(path)) => Self::of_file(path).ok_or_else(|| {
                Failure::usage(format!(
                    "{} does not say what to write; end it in .pb.gz, .folded, .svg, .json or \
                     .txt, or give --format ({})",
                    path.display(),
                    names()
                ))
            })?,
        };
        if known.contains(&format) {
            Ok(format)
        } else {
            Err(Failure::usage(format!(
                "this command does not write {}; it writes {}",
                format.name(),
                names()
            )))
        }
    }
}

/// What other tools call a table.
const TEXT: &str = "text";

/// Takes the forms that a command writes, and no others.
pub(crate) fn one_of(known: &'static [Format]) -> impl TypedValueParser<Value = Format> {
    let values = known.iter().map(|format| match format {
        Format::Table => PossibleValue::new(format.name()).alias(TEXT),
        _ => PossibleValue::new(format.name()),
    });
    PossibleValuesParser::new(values).try_map(|name| {
        // clap has checked that it is one of them.
        let name = if name == TEXT { Format::Table.name() } else { &name };
        known.iter().copied().find(|format| format.name() == name).ok_or("unknown format")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_tells_the_form() {
        let form = |name: &str| Format::of_file(Path::new(name));
        assert_eq!(form("a/f.pb.gz"), Some(Format::Pprof));
        assert_eq!(form("f.v1.svg"), Some(Format::Svg));
        assert_eq!(form("f.folded"), Some(Format::Folded));
        for name in ["f", "f.gz", "f.pb", ".svg", "f.SVG", "svg", "f.svg/", "..", ""] {
            let expected = (name == "f.svg/").then_some(Format::Svg);
            assert_eq!(form(name), expected, "{name}");
        }
    }

    #[test]
    fn asking_wins_over_the_name() {
        let known = [Format::Table, Format::Json];
        let choose = |asked, output: &str| {
            Format::choose(asked, Some(Path::new(output)), &known).map_err(|e| e.to_string())
        };
        assert_eq!(choose(Some(Format::Json), "f.txt"), Ok(Format::Json));
        assert_eq!(choose(None, "f.json"), Ok(Format::Json));
        assert_eq!(choose(None, "-"), Ok(Format::Table));
        assert_eq!(choose(None, "/dev/null"), Ok(Format::Table));
        assert_eq!(
            choose(None, "f.svg"),
            Err("this command does not write svg; it writes table, json".to_owned())
        );
        assert!(choose(None, "f.xyz").unwrap_err().contains("f.xyz does not say what to write"));
    }
}
