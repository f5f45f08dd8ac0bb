//! What to do about an error: the only thing the retry loop looks at.

/// What now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// One table cannot go on and leaves the cut; the others go on (protocol C8).
    HaltTable,
    /// Resume from the cut, with back-off.
    Retry,
    /// A person decides; the message says what.
    Halt,
}

/// An error as operators and scripts see it: what happened, to what, what to do now.
#[derive(Debug, Clone, serde::Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Stable, `UPPER_SNAKE_CASE` (`design/interface.md` section 1).
    pub code: &'static str,
    pub message: String,
    /// The table, pipeline, file or key it happened to.
    pub subject: String,
    pub remedy: String,
    #[serde(skip)]
    pub reaction: Reaction,
}

impl Problem {
    /// A person must act.
    pub fn halt(
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { code, message: message.into(), subject: subject.into(), remedy: remedy.into(), reaction: Reaction::Halt }
    }

    /// Time heals it: the pipeline resumes from its cut by itself.
    pub fn retry(code: &'static str, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            subject: subject.into(),
            remedy: "nothing: the pipeline resumes by itself; see the log if it repeats".into(),
            reaction: Reaction::Retry,
        }
    }

    /// One table stops, the others go on.
    pub fn halt_table(
        code: &'static str,
        table: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { reaction: Reaction::HaltTable, ..Self::halt(code, table, message, remedy) }
    }
}
