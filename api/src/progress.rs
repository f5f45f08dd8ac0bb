//! How far copies have come: bars with rate and remaining time on a terminal, log lines otherwise.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use lakehouse_core::copy::CopyObserver;
use tracing::info;

/// Pace of log lines about one table.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// All bars of the process.
pub(crate) fn bars() -> &'static MultiProgress {
    static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
    &BARS
}

/// What watches the copies of one pipeline.
pub(crate) fn copy_observer(pipeline: &str) -> Arc<dyn CopyObserver> {
    match io::stderr().is_terminal() {
        true => Arc::new(Bars { pipeline: pipeline.to_owned(), open: Mutex::default() }),
        false => Arc::new(Lines { pipeline: pipeline.to_owned(), open: Mutex::default() }),
    }
}

struct Bars {
    pipeline: String,
    open: Mutex<HashMap<String, TableBar>>,
}

struct TableBar {
    bar: ProgressBar,
    rows: u64,
}

impl CopyObserver for Bars {
    fn begin(&self, table: &str, bytes_estimated: u64) {
        let style = "{msg:32!} {wide_bar} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4} left {prefix}";
        let style = ProgressStyle::with_template(style).expect("the template is a constant");
        let bar = bars().add(ProgressBar::new(bytes_estimated)).with_style(style);
        bar.set_message(format!("{} {table}", self.pipeline));
        let before = self.lock().insert(table.to_owned(), TableBar { bar, rows: 0 });
        // A copy that begins anew leaves no bar of the attempt before.
        before.iter().for_each(|before| before.bar.finish_and_clear());
    }

    fn advance(&self, table: &str, rows: u64, bytes: u64) {
        if let Some(open) = self.lock().get_mut(table) {
            open.rows += rows;
            open.bar.set_prefix(format!("{} rows", open.rows));
            open.bar.inc(bytes);
            // The size was an estimate.
            if open.bar.length().is_some_and(|length| open.bar.position() > length) {
                open.bar.set_length(open.bar.position());
            }
        }
    }

    fn done(&self, table: &str) {
        if let Some(open) = self.lock().remove(table) {
            open.bar.finish_and_clear();
            info!(pipeline = self.pipeline, table, rows = open.rows, "table is copied");
        }
    }
}

impl Bars {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, TableBar>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lines {
    pipeline: String,
    open: Mutex<HashMap<String, TableLine>>,
}

struct TableLine {
    estimated: u64,
    rows: u64,
    bytes: u64,
    begun: Instant,
    told: Instant,
}

impl CopyObserver for Lines {
    fn begin(&self, table: &str, bytes_estimated: u64) {
        info!(pipeline = self.pipeline, table, bytes_estimated, "copy of the table begins");
        let now = Instant::now();
        let line = TableLine { estimated: bytes_estimated, rows: 0, bytes: 0, begun: now, told: now };
        self.lock().insert(table.to_owned(), line);
    }

    fn advance(&self, table: &str, rows: u64, bytes: u64) {
        if let Some(open) = self.lock().get_mut(table) {
            open.rows += rows;
            open.bytes += bytes;
            if open.told.elapsed() >= LOG_EVERY {
                open.told = Instant::now();
                let rate = format!("{}/s", HumanBytes(rate(open.bytes, open.begun.elapsed())));
                let left = remaining(open.bytes, open.estimated, open.begun.elapsed());
                let left = HumanDuration(left).to_string();
                info!(pipeline = self.pipeline, table, rows = open.rows, bytes = open.bytes, rate, left, "copying");
            }
        }
    }

    fn done(&self, table: &str) {
        if let Some(open) = self.lock().remove(table) {
            let seconds = open.begun.elapsed().as_secs();
            info!(pipeline = self.pipeline, table, rows = open.rows, bytes = open.bytes, seconds, "table is copied");
        }
    }
}

impl Lines {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, TableLine>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes per second.
fn rate(bytes: u64, elapsed: Duration) -> u64 {
    let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1_000) / milliseconds
}

/// At the rate so far.
fn remaining(bytes: u64, estimated: u64, elapsed: Duration) -> Duration {
    Duration::from_secs(estimated.saturating_sub(bytes) / rate(bytes, elapsed).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remaining_time_follows_the_rate() {
        assert_eq!(remaining(50, 100, Duration::from_secs(5)), Duration::from_secs(5));
        assert_eq!(remaining(200, 100, Duration::from_secs(5)), Duration::ZERO);
        assert_eq!(rate(u64::MAX, Duration::ZERO), u64::MAX);
    }
}
