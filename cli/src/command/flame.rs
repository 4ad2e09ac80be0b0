//! `everflame flame`: which functions call which, as a tree, a picture or stacks.

use std::fmt::Write as _;

use everflame_profile::{FlameNode, FlameTree, encode_gz, flame};

use super::{json, load, no_data};
use crate::args::FlameArgs;
use crate::failure::Failure;
use crate::format::Format;
use crate::output::Destination;
use crate::svg;
use crate::table::{fit, printable, terminal_width};
use crate::units::{percent, share, value};

pub(crate) const FORMATS: &[Format] =
    &[Format::Table, Format::Json, Format::Pprof, Format::Folded, Format::Svg];

pub(crate) fn run(args: FlameArgs) -> Result<(), Failure> {
    let output = args.output.as_deref();
    let format = Format::choose(args.format, output, FORMATS)?;
    let destination = Destination::new(output, format == Format::Pprof)?;
    let (profile, index) = load(&args.source)?;
    let tree = flame(&profile, index);
    if tree.root.total_value == 0 {
        if format == Format::Json {
            destination.write(&json(&tree))?;
        }
        return Err(no_data(&args.source));
    }
    let bytes = match format {
        Format::Json => json(&tree),
        Format::Pprof => encode_gz(&profile),
        Format::Folded => svg::folded(&profile, index).into_bytes(),
        Format::Svg => svg::draw(&profile, index)?,
        _ => text(&tree, args.min_percent, terminal_width().filter(|_| output.is_none()))
            .into_bytes(),
    };
    Ok(destination.write(&bytes)?)
}

fn text(tree: &FlameTree, min_percent: f64, width: Option<usize>) -> String {
    let mut out = format!(
        "{}: {} in total\n TOTAL%       TOTAL   SELF%  FUNCTION\n",
        printable(&tree.sample_type),
        value(tree.root.total_value, &tree.unit)
    );
    let whole = tree.root.total_value;
    let is_shown = |node: &FlameNode| share(node.total_value, whole).abs() * 100.0 >= min_percent;
    let mut hidden = 0_usize;
    // Depth first, the next one to print on top.
    let mut pending: Vec<(usize, &FlameNode)> =
        tree.root.children.iter().rev().map(|node| (0, node)).collect();
    while let Some((depth, node)) = pending.pop() {
        if !is_shown(node) {
            hidden += 1;
            continue;
        }
        let mut line = format!(
            "{:>7}  {:>10}  {:>6}  ",
            percent(share(node.total_value, whole)),
            value(node.total_value, &tree.unit),
            percent(share(node.self_value, whole)),
        );
        let _ = write!(line, "{:1$}{2}", "", depth * 2, printable(&node.name));
        out.push_str(fit(&line, width).trim_end());
        out.push('\n');
        pending.extend(node.children.iter().rev().map(|child| (depth + 1, child)));
    }
    if hidden > 0 {
        let _ =
            writeln!(out, "... and {hidden} more below {min_percent}%; --min-percent 0 shows all");
    }
    out
}
