//! Runs that somebody has asked for, to be looked at: passes of maintenance, and verifications. They are kept in memory, and
//! a service that is started anew knows none of them; what a pass has done stands in the history of maintenance.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use axum::response::Response;
use chrono::Utc;
use lakehouse_core::error::Problem;
use lakehouse_core::schema::TableName;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::error;
use utoipa::ToSchema;

use super::auth::Principal;
use super::operations::accepted;
use super::problem::HttpProblem;
use crate::answer;
use crate::audit::Intent;
use crate::failure::Failure;

/// Runs kept at a time; of those that have ended the oldest goes first. Each names every table that it was for.
const KEPT: usize = 16;

/// How far one has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = RunState)]
enum State {
    Running,
    Done,
    Failed,
}

/// What each run shows of itself.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Run)]
pub(super) struct Head {
    id: String,
    state: State,
    /// Of one that has failed as a whole.
    code: Option<&'static str>,
    /// What to do about that.
    remedy: Option<String>,
    by: String,
    /// Null where none was given.
    reason: Option<String>,
    /// RFC 3339.
    begun_at: String,
    ended_at: Option<String>,
}

/// One run.
#[derive(Debug)]
pub(super) struct Run<T> {
    pub(super) head: Head,
    /// What no other run may be at work on meanwhile.
    pub(super) subject: String,
    /// Who may not see all of these sees nothing of it.
    tables: Vec<TableName>,
    /// What has come of it; nothing while it is at work, and where it has failed.
    pub(super) outcome: Option<T>,
}

/// The answer to who has asked for one.
#[derive(Serialize, ToSchema)]
#[schema(as = RunBegun)]
pub(super) struct Begun {
    id: String,
    state: State,
}

/// All of one kind.
pub(super) struct Runs<T> {
    /// Below which each has its own.
    address: &'static str,
    /// The code of a run that another one is in the way of.
    running: &'static str,
    kept: Mutex<Kept<T>>,
}

/// Oldest first.
struct Kept<T>(VecDeque<Run<T>>);

impl<T> Run<T> {
    /// One that begins now.
    pub(super) fn new(id: &str, subject: &str, by: &str, reason: &str, tables: &[TableName]) -> Self {
        let head = Head {
            id: id.to_owned(),
            state: State::Running,
            code: None,
            remedy: None,
            by: by.to_owned(),
            reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
            begun_at: answer::time(Utc::now().timestamp_millis()),
            ended_at: None,
        };
        Self { head, subject: subject.to_owned(), tables: tables.to_vec(), outcome: None }
    }

    fn is_running(&self) -> bool {
        self.head.state == State::Running
    }
}

impl<T> Runs<T> {
    pub(super) fn new(address: &'static str, running: &'static str) -> Self {
        Self { address, running, kept: Mutex::new(Kept(VecDeque::new())) }
    }

    /// Keeps a run that is about to begin; its intent goes to [`Runs::end`], the answer to the client.
    ///
    /// # Errors
    /// That another one is at work on the same subject. The intent has its outcome then.
    pub(super) async fn begin(&self, run: Run<T>, intent: Intent) -> Result<(Intent, Response), HttpProblem> {
        let begun = Begun { id: run.head.id.clone(), state: run.head.state };
        let kept = self.kept().begin(run);
        match kept {
            Ok(()) => Ok((intent, accepted(&self.address_of(&begun.id), &begun))),
            Err(other) => {
                intent.ended(Some(self.running), json!({"running": other})).await;
                let detail = format!("{} is at work; come again when it has ended", self.address_of(&other));
                Err(HttpProblem::new(StatusCode::CONFLICT, self.running, detail))
            }
        }
    }

    /// Tells what has come of one: the log why it has failed, the audit trail what `told` makes of its outcome, and then who
    /// looks at it.
    pub(super) async fn end(
        &self,
        id: &str,
        intent: Intent,
        ended: Result<T, Failure>,
        told: impl FnOnce(&T) -> Value,
    ) {
        let (detail, code) = match &ended {
            Ok(outcome) => (told(outcome), None),
            Err(Failure { problem: Problem { code, subject, message, remedy, .. }, .. }) => {
                error!(run = self.address_of(id), code, subject, reason = message, remedy, "a run has failed");
                (Value::Null, Some(*code))
            }
        };
        intent.ended(code, detail).await;
        self.kept().end(id, ended, Utc::now().timestamp_millis());
    }

    /// What `shown` makes of one; it may find that there is more in it than the caller may see.
    ///
    /// # Errors
    /// `RUN_UNKNOWN`.
    pub(super) fn show(
        &self,
        id: &str,
        principal: &Principal,
        shown: impl FnOnce(&Run<T>) -> Option<Response>,
    ) -> Result<Response, HttpProblem> {
        let kept = self.kept();
        let run = kept.find(id).filter(|run| run.tables.iter().all(|table| principal.may_see(table)));
        run.and_then(shown).ok_or_else(|| {
            let detail = "this service has no such run, or has forgotten it";
            HttpProblem::new(StatusCode::NOT_FOUND, "RUN_UNKNOWN", detail)
        })
    }

    fn address_of(&self, id: &str) -> String {
        format!("{}/{id}", self.address)
    }

    fn kept(&self) -> MutexGuard<'_, Kept<T>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Kept<T> {
    /// # Errors
    /// The id of another one that is at work on the same subject.
    fn begin(&mut self, run: Run<T>) -> Result<(), String> {
        let Self(runs) = self;
        if let Some(other) = runs.iter().find(|other| other.is_running() && other.subject == run.subject) {
            return Err(other.head.id.clone());
        }
        if runs.len() >= KEPT
            && let Some(oldest) = runs.iter().position(|run| !run.is_running())
        {
            runs.remove(oldest);
        }
        runs.push_back(run);
        Ok(())
    }

    fn end(&mut self, id: &str, ended: Result<T, Failure>, now: i64) {
        let Some(run) = self.0.iter_mut().find(|run| run.head.id == id) else { return };
        run.head.ended_at = Some(answer::time(now));
        match ended {
            Ok(outcome) => (run.head.state, run.outcome) = (State::Done, Some(outcome)),
            Err(Failure { problem: Problem { code, remedy, .. }, .. }) => {
                run.head.state = State::Failed;
                (run.head.code, run.head.remedy) = (Some(code), Some(remedy));
            }
        }
    }

    fn find(&self, id: &str) -> Option<&Run<T>> {
        self.0.iter().find(|run| run.head.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(kept: &mut Kept<u8>, id: usize, subject: &str) -> Result<(), String> {
        kept.begin(Run::new(&id.to_string(), subject, "ann", "x", &[]))
    }

    #[test]
    fn one_is_at_work_on_a_subject_at_a_time_and_the_oldest_are_forgotten() {
        let mut kept = Kept(VecDeque::new());
        assert_eq!(begin(&mut kept, 0, "app"), Ok(()));
        assert_eq!(begin(&mut kept, 1, "app"), Err("0".to_owned()));
        kept.end("0", Err(Problem::halt("CATALOG", "app", "it is away", "start it").into()), 1);
        let failed = &kept.find("0").expect("kept").head;
        assert_eq!(
            (failed.state, failed.code, failed.remedy.as_deref()),
            (State::Failed, Some("CATALOG"), Some("start it"))
        );
        for id in 1..=KEPT {
            assert_eq!(begin(&mut kept, id, "app"), Ok(()), "{id}");
            kept.end(&id.to_string(), Ok(7), 1);
        }
        assert_eq!(kept.0.len(), KEPT);
        assert!(kept.find("0").is_none());
        let kept = kept.find("1").expect("kept");
        assert_eq!((kept.head.state, kept.outcome), (State::Done, Some(7)));
    }

    #[test]
    fn what_is_at_work_is_never_forgotten() {
        let mut kept = Kept(VecDeque::new());
        for id in 0..=KEPT {
            assert_eq!(begin(&mut kept, id, &format!("pipeline {id}")), Ok(()));
        }
        assert_eq!(kept.0.len(), KEPT + 1);
        kept.end("3", Ok(7), 1);
        assert_eq!(begin(&mut kept, 99, "app"), Ok(()));
        assert!(kept.find("3").is_none() && kept.find("0").is_some());
    }
}
