//! The audit trail: who has asked for what, over HTTP or by an operator's verb, and what became of it (S5, A-12).
//!
//! An entry is a line of one file, and each line holds the hash of the one before it (`audit/entry.rs`). What changes
//! something is an *intent* first, durable before anything is done, and has its *outcome* behind it, under the same
//! request's id; a *read* of rows has one in the same way. Without its entry nothing is changed and no row is shown.
//! Who is *refused* leaves an entry, too, as far as a flood does not drown the rest (`audit/refusals.rs`).
//!
//! An intent without an outcome says that nobody was left to tell how it went: the process died, or the client left.
//!
//! Not here: shipping the file off the host, which is what shows that its end was cut off, and rotation: a file that is
//! moved away ends its chain, and the next entry begins a new one.

mod entry;
mod page;
mod refusals;
#[cfg(test)]
mod tests;
mod trail;
mod verify;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tracing::error;

use crate::config::AuditConfig;
use crate::failure::Failure;
use entry::Entry;
pub(crate) use page::{Mark, Page, Recorded};
use refusals::Refusals;
pub(crate) use verify::{Expected, Report, verify};

/// The detail that counts refused calls without an entry of their own.
const LEFT_OUT: &str = "refusals_left_out";

/// Which way calls come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Via {
    Http,
    CommandLine,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Something is going to be changed.
    Intent,
    /// What became of an intent or a read.
    Outcome,
    /// A call ended before it began.
    Refused,
    /// Rows are going to be shown.
    Read,
}

/// What somebody wants done, or shown.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    /// In one word: the verb, or what is read.
    pub(crate) action: &'static str,
    /// Over HTTP the token's name, else the system's user; empty where nobody is known.
    pub(crate) principal: String,
    /// A table, a pipeline, or the id of an operation.
    pub(crate) subject: String,
    /// The HTTP request's, else a fresh one; ties an outcome to what it is of.
    pub(crate) request_id: String,
    pub(crate) reason: Option<String>,
    /// An object. Never a secret, a token, or a value of a row: a condition on rows goes in as its [`crate::digest::sha256`].
    pub(crate) detail: Value,
}

/// The trail of one process. Clones share it. Without `[audit]` there is none: everything is let through and nothing kept.
#[derive(Clone)]
pub(crate) struct Audit(Option<Arc<Trail>>);

struct Trail {
    file: PathBuf,
    /// Reads have entries.
    rows: bool,
    via: Via,
    /// Entries that this process has written.
    entries: Counter,
    /// Held while an entry is written: threads of one process wait in memory, and only one of them for the file's lock.
    writing: Mutex<()>,
    /// Never held while anything waits.
    refusals: Mutex<Refusals>,
}

/// What has an entry, and no outcome yet.
#[must_use = "an intent without an outcome says that nobody was left to tell it"]
pub(crate) struct Intent(Option<(Arc<Trail>, Act)>);

impl Audit {
    pub(crate) fn new(config: Option<&AuditConfig>, via: Via) -> Self {
        Self(config.map(|AuditConfig { file, rows }| {
            Arc::new(Trail {
                file: file.clone(),
                rows: *rows,
                via,
                entries: Counter::default(),
                writing: Mutex::default(),
                refusals: Mutex::default(),
            })
        }))
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Counts the entries that this process writes.
    pub(crate) fn entries(&self) -> Counter {
        self.0.as_ref().map(|trail| trail.entries.clone()).unwrap_or_default()
    }

    /// Whether an entry could be written now.
    ///
    /// # Errors
    /// `AUDIT_UNWRITABLE`, `AUDIT_DAMAGED`.
    pub(crate) async fn check(&self) -> Result<(), Failure> {
        match self.0.clone() {
            Some(trail) => blocking(move || trail::check(&trail.file, trail::deadline())).await,
            None => Ok(()),
        }
    }

    /// Some entries, the newest first; `None` where the trail has no such mark any more.
    ///
    /// # Errors
    /// `AUDIT_UNREADABLE`, `AUDIT_DAMAGED`.
    pub(crate) async fn page(&self, from: Option<Mark>, most: usize) -> Result<Option<Page>, Failure> {
        match self.0.clone() {
            Some(trail) => blocking(move || page::read(&trail.file, from, most)).await,
            None => Ok(from.is_none().then(Page::default)),
        }
    }

    /// Writes down what is going to be changed. Nothing may be changed before this returns, nor if it fails.
    ///
    /// # Errors
    /// `AUDIT_UNWRITABLE`, `AUDIT_DAMAGED`.
    pub(crate) async fn intent(&self, act: Act) -> Result<Intent, Failure> {
        begin(self.0.clone(), Kind::Intent, act).await
    }

    /// Writes down which rows are going to be shown, unless the configuration leaves reads out. No row may be shown before
    /// this returns, nor if it fails.
    ///
    /// # Errors
    /// As of [`Audit::intent`].
    pub(crate) async fn read(&self, act: Act) -> Result<Intent, Failure> {
        begin(self.0.clone().filter(|trail| trail.rows), Kind::Read, act).await
    }

    /// Writes down that somebody was refused. The refusal stands, whether that can be written or not.
    pub(crate) async fn refused(&self, act: Act) {
        let Some(trail) = self.0.clone() else { return };
        if !locked(&trail.refusals).take(Instant::now()) {
            return;
        }
        let written = blocking(move || trail.write(Kind::Refused, &act, act.detail.clone())).await;
        written.unwrap_or_else(|failure| missing(Kind::Refused, &failure));
    }
}

async fn begin(trail: Option<Arc<Trail>>, kind: Kind, act: Act) -> Result<Intent, Failure> {
    let Some(trail) = trail else { return Ok(Intent(None)) };
    blocking(move || {
        trail.write(kind, &act, act.detail.clone())?;
        Ok(Intent(Some((trail, act))))
    })
    .await
}

impl Intent {
    /// False without a trail: then nobody reads what an outcome would say.
    pub(crate) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Writes down what became of it, with the code of a failure, and gives that back: what has happened has happened,
    /// whether it can be written or not.
    pub(crate) async fn outcome<T>(self, ended: Result<T, Failure>, detail: Value) -> Result<T, Failure> {
        self.ended(code(&ended), detail).await;
        ended
    }

    /// As [`Intent::outcome`], with the code of a failure that is answered in another form.
    pub(crate) async fn ended(self, code: Option<&'static str>, detail: Value) {
        let written = blocking(move || {
            self.end(code, detail);
            Ok(())
        });
        written.await.unwrap_or_else(|failure| missing(Kind::Outcome, &failure));
    }

    /// As [`Intent::outcome`], for work that may wait for a disk.
    pub(crate) fn outcome_now<T>(self, ended: &Result<T, Failure>, detail: Value) {
        self.end(code(ended), detail);
    }

    fn end(self, code: Option<&'static str>, detail: Value) {
        let Some((trail, act)) = self.0 else { return };
        let mut detail = object(detail);
        detail.insert("code".to_owned(), json!(code));
        // The reason stands in the intent.
        let act = Act { reason: None, ..act };
        let written = trail.write(Kind::Outcome, &act, Value::Object(detail));
        written.unwrap_or_else(|failure| missing(Kind::Outcome, &failure));
    }
}

impl Trail {
    fn write(&self, kind: Kind, act: &Act, detail: Value) -> Result<(), Failure> {
        let deadline = trail::deadline();
        let _writing = locked(&self.writing);
        let left_out = locked(&self.refusals).left_out();
        let mut detail = object(detail);
        if left_out > 0 {
            detail.insert(LEFT_OUT.to_owned(), json!(left_out));
        }
        let Act { action, principal, subject, request_id, reason, .. } = act;
        trail::append(&self.file, deadline, |head| {
            let reason = reason.as_deref();
            let entry = Entry { kind, via: self.via, action, principal, subject, request_id, reason, detail: &detail };
            entry.seal(head)
        })?;
        locked(&self.refusals).told(left_out);
        self.entries.inc();
        Ok(())
    }
}

/// What is behind these locks is sound at every moment, so a thread that died with one leaves nothing half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn object(detail: Value) -> Map<String, Value> {
    match detail {
        Value::Object(map) => map,
        Value::Null => Map::new(),
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

fn code<T>(ended: &Result<T, Failure>) -> Option<&'static str> {
    ended.as_ref().err().map(|failure| failure.problem.code)
}

/// Work that waits for a disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(trail::unwritable("the audit trail", format!("the process is ending: {error}"))))
}

/// Of entries that nothing waits for.
fn missing(kind: Kind, Failure { problem, .. }: &Failure) {
    error!(
        ?kind,
        code = problem.code,
        subject = problem.subject,
        reason = problem.message,
        remedy = problem.remedy,
        "an entry is missing in the audit trail"
    );
}
