//! How far a recording is, on terminals; nothing elsewhere.

use std::time::Duration;

use everflame_agent::session::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// A line on stderr that rewrites itself.
pub(crate) struct ProgressLine {
    bar: ProgressBar,
}

impl ProgressLine {
    /// Fills up over `duration`, or only counts if it is not known.
    pub(crate) fn new(duration: Option<Duration>) -> Self {
        let length = duration.map(milliseconds);
        // Draws on stderr, and not at all where that is no terminal.
        let bar = match length {
            Some(length) => ProgressBar::new(length),
            None => ProgressBar::no_length(),
        };
        let template = match length {
            Some(_) => "recording [{bar:30}] {msg}",
            None => "recording {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }

    pub(crate) fn show(&self, elapsed: Duration, progress: &Progress) {
        self.bar.set_position(milliseconds(elapsed));
        let lost = match progress.lost {
            0 => String::new(),
            lost => format!(", {lost} lost"),
        };
        let seconds = elapsed.as_secs_f64();
        self.bar.set_message(format!("{seconds:.1} s, {} samples{lost}", progress.samples));
    }

    pub(crate) fn symbolising(&self) {
        self.bar.set_message("looking up functions ...");
    }

    /// Leaves the line empty for what comes after.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
