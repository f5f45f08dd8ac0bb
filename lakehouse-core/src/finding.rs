//! What `validate` finds before a start: the same for every source.

use std::fmt;

use serde::Serialize;

use crate::error::Problem;

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A pipeline cannot start.
    Error,
    /// It can, with the effect that the message tells.
    Warning,
}

/// One thing that validation found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub code: &'static str,
    pub severity: Severity,
    pub subject: String,
    pub message: String,
    /// The statement or command that mends it.
    pub fix: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.code, self.subject, self.message)
    }
}

impl Finding {
    pub fn error(code: &'static str, subject: &str, message: impl Into<String>, fix: Option<String>) -> Self {
        Self { code, severity: Severity::Error, subject: subject.to_owned(), message: message.into(), fix }
    }

    pub fn warning(code: &'static str, subject: &str, message: impl Into<String>, fix: Option<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, subject, message, fix) }
    }

    /// The same as a reason not to start.
    pub fn into_problem(self) -> Problem {
        let remedy = self.fix.unwrap_or_else(|| "run `lakehouse validate` for all findings".to_owned());
        Problem::halt(self.code, self.subject, self.message, remedy)
    }
}

impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        Self::error(problem.code, &problem.subject, problem.message, Some(problem.remedy))
    }
}
