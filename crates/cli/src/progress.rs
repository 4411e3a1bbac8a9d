//! Progress of preparing: bars on a terminal, plain lines otherwise, on stderr.

use crate::show;
use aerogel_data::{Progress, Unit};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between two plain lines of a stage.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows stages, and passes a request to stop on.
pub struct Stages {
    stop: Arc<AtomicBool>,
    quiet: bool,
    terminal: bool,
    bar: Option<ProgressBar>,
    stage: String,
    unit: Unit,
    done: u64,
    total: u64,
    told: Instant,
}

impl Stages {
    /// Nothing is shown before the first stage.
    pub fn new(stop: Arc<AtomicBool>, quiet: bool) -> Stages {
        Stages {
            stop,
            quiet,
            terminal: std::io::stderr().is_terminal(),
            bar: None,
            stage: String::new(),
            unit: Unit::Bytes,
            done: 0,
            total: 0,
            told: Instant::now(),
        }
    }

    /// Clears the bar.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn amount(&self, n: u64) -> String {
        match self.unit {
            Unit::Bytes => show::bytes(n),
            Unit::Images => format!("{} images", show::count(n)),
        }
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Progress for Stages {
    fn start(&mut self, stage: &str, total: u64, unit: Unit) {
        self.finish();
        (self.stage, self.unit, self.done, self.total) = (stage.to_owned(), unit, 0, total);
        self.told = Instant::now();
        if self.quiet {
            return;
        }
        if !self.terminal {
            eprintln!("{stage}: {}", self.amount(total));
            return;
        }
        let template = match unit {
            Unit::Bytes => "{msg:>12} {wide_bar} {bytes}/{total_bytes} {eta}",
            Unit::Images => "{msg:>12} {wide_bar} {human_pos}/{human_len} images {eta}",
        };
        let style = ProgressStyle::with_template(template).expect("the template is a constant");
        self.bar = Some(ProgressBar::new(total).with_style(style).with_message(self.stage.clone()));
    }

    fn tick(&mut self, done: u64) {
        self.done += done;
        if let Some(bar) = &self.bar {
            bar.inc(done);
        } else if !self.quiet && self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            eprintln!("{}: {} of {}", self.stage, self.amount(self.done), self.amount(self.total));
        }
    }

    fn message(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
