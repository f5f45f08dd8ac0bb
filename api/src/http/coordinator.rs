//! Operations between the request that opens them and their ends: tasks that the server owns. A client that leaves stops
//! nothing half-way, and an answer does not wait for every table.
//!
//! Nothing relies on a task being ended: an operation that is left open is gone on with by whoever comes next, a worker of
//! its pipeline or a repeated request (protocol E7).

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lakehouse_core::error::Problem;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tracing::{error, warn};

use super::operations::Operation;
use super::problem::HttpProblem;
use crate::audit::Intent;
use crate::failure::Failure;
use crate::lake::Lake;
use crate::operate;

/// Operations of all pipelines under way at a time. Each pipeline has one that is open; more would only wait for each other.
const AT_ONCE: usize = 16;

pub(super) struct Coordinator {
    lake: Lake,
    permits: Arc<Semaphore>,
    tasks: Mutex<JoinSet<()>>,
}

impl Coordinator {
    pub(super) fn new(lake: Lake) -> Self {
        Self { lake, permits: Arc::new(Semaphore::new(AT_ONCE)), tasks: Mutex::default() }
    }

    /// Does what opens an operation or turns it back, answers, and brings it to its end behind the answer. The intent has
    /// its outcome when that is reached.
    pub(super) async fn run(
        &self,
        intent: Intent,
        opening: impl Future<Output = Result<Operation, HttpProblem>> + Send + 'static,
    ) -> Result<Operation, HttpProblem> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        let (tell, told) = oneshot::channel();
        let lake = self.lake.clone();
        self.spawn(async move {
            let opened = opening.await;
            // Who has left is told nothing, and the operation goes on.
            let _ = tell.send(opened.clone());
            match opened {
                Ok(operation) => finish(&lake, intent, operation).await,
                Err(problem) => intent.ended(Some(problem.code()), Value::Null).await,
            }
            drop(permit);
        });
        told.await.unwrap_or_else(|_| {
            let message = "the task that opens an operation has ended without a word";
            Err(Problem::halt("INTERNAL", "the HTTP service", message, "look at `lakehouse operations`").into())
        })
    }

    /// Waits for what is under way, and then no longer.
    pub(super) async fn end(&self, grace: Duration) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                note(ended);
            }
        };
        if timeout(grace, all).await.is_err() {
            warn!("operations under way are left open; whoever comes next goes on with them");
        }
    }

    /// Work that no answer waits for.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while let Some(ended) = tasks.try_join_next() {
            note(ended);
        }
        tasks.spawn(work);
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn finish(lake: &Lake, intent: Intent, operation: Operation) {
    let Operation { id, pipeline, mut stage, tables, .. } = operation;
    let mut failed = None;
    if stage.is_open() {
        match operate::rollback::finish(lake, &pipeline, &id).await {
            Ok(journal) => stage = journal.stage,
            Err(Failure { problem: Problem { code, subject, message, .. }, .. }) => {
                let remedy = "nothing, if the pipeline's worker runs: it goes on; else repeat the request, or abort the operation";
                error!(operation = id, code, subject, reason = message, remedy, "an operation stays open");
                failed = Some(code);
            }
        }
    }
    let snapshots = operate::heads(&intent, lake, tables.keys()).await;
    let detail = json!({"operation": id, "pipeline": pipeline, "stage": stage, "snapshots": snapshots});
    intent.ended(failed, detail).await;
}

fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "an operation's task has died");
    }
}
