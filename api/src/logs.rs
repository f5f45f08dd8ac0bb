//! Logs on standard error: text on a terminal, JSON lines otherwise. `RUST_LOG` decides what is said.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::progress;

/// Starts logging. A role tells of its state changes; a verb that answers only of trouble.
pub(crate) fn start(is_role: bool) {
    let level = if is_role { "info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AroundBars);
    // Whoever has set a subscriber before us keeps it.
    let _ = match io::stderr().is_terminal() {
        true => logs.with_target(false).try_init(),
        false => logs.json().flatten_event(true).try_init(),
    };
}

/// Standard error, with the progress bars taken away while a line is written.
#[derive(Clone, Copy)]
struct AroundBars;

impl Write for AroundBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        progress::bars().suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for AroundBars {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}
