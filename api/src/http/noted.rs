//! What operators ask for, in the log: before it is done, and what came of it. No audit trail: nobody can prove that a log is
//! whole.

use std::future::Future;

use tracing::info;

use super::auth::Principal;
use super::problem::HttpProblem;

/// `subject` is the pipeline, plan or operation that it is asked of.
pub(super) async fn noted<T>(
    principal: &Principal,
    verb: &'static str,
    subject: &str,
    reason: &str,
    doing: impl Future<Output = Result<T, HttpProblem>>,
) -> Result<T, HttpProblem> {
    let principal = &*principal.name;
    info!(principal, verb, subject, reason, "an operator asks");
    let done = doing.await;
    match &done {
        Ok(_) => info!(principal, verb, subject, "an operator is answered"),
        Err(problem) => info!(principal, verb, subject, code = problem.code(), "an operator is refused"),
    }
    done
}
