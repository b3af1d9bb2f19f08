//! What a person sees while it takes its time, on standard error.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

/// Tells how far the demo is: by a bar on a terminal, by a line per step elsewhere, or not at all.
#[derive(Debug)]
pub struct Progress {
    mode: Mode,
    bar: ProgressBar,
}

#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Silent,
    Lines,
    Bar,
}

impl Progress {
    /// Nothing is told.
    pub fn silent() -> Progress {
        Progress { mode: Mode::Silent, bar: ProgressBar::hidden() }
    }

    /// For a person, on standard error.
    pub fn on_standard_error() -> Progress {
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::no_length();
            bar.enable_steady_tick(Duration::from_millis(200));
            Progress { mode: Mode::Bar, bar }
        } else {
            Progress { mode: Mode::Lines, bar: ProgressBar::hidden() }
        }
    }

    /// Something of unknown length begins.
    pub fn step(&self, message: &str) {
        self.begin(message, None, "{spinner} {msg}");
    }

    /// Something of `length` parts begins.
    pub fn start(&self, message: &str, length: usize) {
        self.begin(message, Some(length), "{spinner} {msg} {wide_bar} {pos}/{len} {eta}");
    }

    fn begin(&self, message: &str, length: Option<usize>, template: &str) {
        // The template has been tried: it is one of the two above.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message(message.to_owned());
        match length {
            Some(length) => self.bar.set_length(length as u64),
            None => self.bar.unset_length(),
        }
        self.bar.reset();
        if self.mode == Mode::Lines {
            eprintln!("demo: {message}");
        }
    }

    /// Some parts are done.
    pub fn inc(&self, parts: usize) {
        self.bar.inc(parts as u64);
    }

    /// Says something that stays.
    pub fn note(&self, text: &str) {
        if self.mode != Mode::Silent {
            self.bar.suspend(|| eprintln!("demo: {text}"));
        }
    }
}

/// Clears the bar away, also where the demo was broken off.
impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
