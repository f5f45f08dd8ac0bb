//! How a verb ends: the exit codes, and the error that a person or a script sees.
//!
//! What a code means to the retry loop is the core's `Reaction`; here is only what leaves the process.

use std::io::{self, Write};
use std::process::ExitCode;

use lakehouse_core::error::Problem;
use serde_json::json;

/// The exit codes (`design/interface.md` section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done and right.
    Done,
    /// Failed.
    Failed,
    /// Usage or configuration.
    Usage,
    /// A precondition has moved; nothing was changed.
    Moved,
    /// Halted; the code is in the message.
    Halted,
    /// Compared and found different.
    Different,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Moved => 3,
            Exit::Halted => 4,
            Exit::Different => 5,
        })
    }
}

/// Why a verb has no answer.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) problem: Problem,
    pub(crate) exit: Exit,
}

/// The reader of our output has gone; nobody is left to tell.
const OUTPUT_CLOSED: &str = "OUTPUT_CLOSED";

impl Failure {
    /// The command line or the configuration is wrong; nothing was begun.
    pub(crate) fn usage(
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { problem: Problem::halt(code, subject, message, remedy), exit: Exit::Usage }
    }

    /// The verb could not do what it was asked.
    pub(crate) fn failed(
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { problem: Problem::halt(code, subject, message, remedy), exit: Exit::Failed }
    }

    /// What the verb was asked for stands on something that has changed; nothing was changed by it.
    pub(crate) fn moved(
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { problem: Problem::halt(code, subject, message, remedy), exit: Exit::Moved }
    }

    /// What is asked for is planned, and this release does not have it.
    pub(crate) fn not_yet(subject: impl Into<String>, message: &str, remedy: impl Into<String>) -> Self {
        Self::usage("NOT_YET", subject, message, remedy)
    }

    /// A pipeline has stopped for good.
    pub(crate) fn halted(problem: Problem) -> Self {
        Self { problem, exit: Exit::Halted }
    }

    /// True if the reader of our output went away, as `head` does: not an error.
    pub(crate) fn is_closed_output(&self) -> bool {
        self.problem.code == OUTPUT_CLOSED
    }

    /// Three lines on standard error; as a JSON object on standard output, where the answer would have been.
    pub(crate) fn print(&self, as_json: bool) {
        let Problem { code, message, subject, remedy, .. } = &self.problem;
        // An output that is gone cannot be told that it is gone.
        let _ = if as_json {
            let object = json!({"code": code, "message": message, "subject": subject, "remedy": remedy});
            writeln!(io::stdout().lock(), "{object}")
        } else {
            let line = |text: &str| text.trim_end().replace('\n', "\n    ");
            let (message, subject, remedy) = (line(message), line(subject), line(remedy));
            writeln!(io::stderr().lock(), "error {code}: {message}\n  at: {subject}\n  do: {remedy}")
        };
    }
}

/// A problem that ended a verb which was asked once; only a pipeline's worker halts.
impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, exit: Exit::Failed }
    }
}

/// Standard output did not take the answer.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::BrokenPipe { OUTPUT_CLOSED } else { "OUTPUT" };
        let message = format!("the answer cannot be written: {error}");
        Self::failed(code, "standard output", message, "look at where the output goes")
    }
}
