//! What operators ask for, written down before it is done, and what came of it: in the log, and in the audit trail where one
//! is kept.

use std::future::Future;

use serde_json::Value;
use tracing::info;

use super::Service;
use super::auth::Principal;
use super::problem::HttpProblem;
use crate::audit::{Act, Intent};

impl Service {
    /// `subject` is the table, pipeline, plan or operation that it is asked of. Nothing may be done before this returns.
    ///
    /// # Errors
    /// `AUDIT_UNWRITABLE`, `AUDIT_DAMAGED`: then nothing may be done at all.
    pub(super) async fn intent(
        &self,
        principal: &Principal,
        verb: &'static str,
        subject: &str,
        reason: &str,
        detail: Value,
    ) -> Result<Intent, HttpProblem> {
        info!(principal = &*principal.name, verb, subject, reason, "an operator asks");
        let reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
        Ok(self.audit.intent(Act { reason, ..principal.asks(verb, subject.to_owned(), detail) }).await?)
    }

    /// Does what has come to its end with its answer.
    pub(super) async fn noted<T>(
        &self,
        principal: &Principal,
        verb: &'static str,
        subject: &str,
        reason: &str,
        doing: impl Future<Output = Result<T, HttpProblem>>,
    ) -> Result<T, HttpProblem> {
        self.noted_with(principal, verb, subject, reason, Value::Null, doing).await
    }

    /// The same, where more is to be told than who and why.
    pub(super) async fn noted_with<T>(
        &self,
        principal: &Principal,
        verb: &'static str,
        subject: &str,
        reason: &str,
        detail: Value,
        doing: impl Future<Output = Result<T, HttpProblem>>,
    ) -> Result<T, HttpProblem> {
        let intent = self.intent(principal, verb, subject, reason, detail).await?;
        let done = doing.await;
        let code = done.as_ref().err().map(HttpProblem::code);
        info!(principal = &*principal.name, verb, subject, code, "an operator is answered");
        intent.ended(code, Value::Null).await;
        done
    }
}
