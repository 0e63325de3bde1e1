//! What is printed: results on standard output, everything else on standard error.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// An error of a command.
pub type Failure = Box<dyn Error>;

/// Prints a result, as one line of JSON or as text.
pub fn result(json: bool, result: &impl Serialize, text: &dyn fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(result)?)?;
    } else {
        writeln!(out, "{text}")?;
    }
    Ok(out.flush()?)
}

/// Prints something worth knowing.
pub fn note(text: impl fmt::Display) {
    // Nobody may be listening; the result does not depend on it.
    let _ = writeln!(io::stderr(), "note: {text}");
}

/// Prints an error with its causes.
pub fn error(error: &dyn Error, json: bool) {
    let text = with_causes(error);
    let _ = if json {
        writeln!(io::stderr(), "{}", serde_json::json!({ "error": text }))
    } else {
        writeln!(io::stderr(), "error: {text}")
    };
}

/// An error and its causes, in one line.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors repeat their cause in their own words.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// A bar on the terminal for work that takes longer than a second.
pub struct Progress {
    start: Instant,
    total: u64,
    what: &'static str,
    bar: Option<ProgressBar>,
}

const SHOWN_AFTER: Duration = Duration::from_secs(1);

impl Progress {
    /// Nothing done yet of `total`.
    pub fn new(what: &'static str, total: u64) -> Self {
        Progress { start: Instant::now(), total, what, bar: None }
    }

    /// `done` of the total are done.
    pub fn set(&mut self, done: u64, message: impl fmt::Display) {
        if self.bar.is_none() && self.start.elapsed() >= SHOWN_AFTER {
            let style = ProgressStyle::with_template("{prefix} [{bar:32}] {pos}/{len}, {eta} left  {msg}")
                .expect("the template is valid")
                .progress_chars("=> ");
            // Draws on standard error, and only on a terminal.
            let bar = ProgressBar::new(self.total).with_style(style).with_elapsed(self.start.elapsed());
            bar.set_prefix(self.what);
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_string());
            bar.set_position(done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
