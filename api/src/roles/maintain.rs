//! The role that maintains tables: one pass after the other, until it is stopped.

use lakehouse_core::error::Reaction;
use lakehouse_core::schema::TableName;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::watch_signals;
use crate::config::{Config, Span};
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::upkeep::{TableReport, Upkeep, When};

/// Maintains the named tables, or all, until a signal, or until somebody else's job is found on one of them.
pub(crate) async fn maintain(config: &Config, wanted: &[TableName]) -> Result<Exit, Failure> {
    let lake = Lake::create(config).await?;
    let mut upkeep = Upkeep::open(&config.maintenance, lake, wanted).await?;
    let stop = CancellationToken::new();
    watch_signals(stop.clone())?;
    while let Some(ended) = unless(&stop, upkeep.pass(When::Due)).await {
        if let Some(drifted) = drifted(told(ended)?) {
            return Err(Failure::halted(drifted));
        }
        unless(&stop, sleep(config.maintenance.every.0)).await;
    }
    Ok(Exit::Done)
}

/// The same beside replication, which goes on whatever is found here: a table that drifts is left alone until it is right
/// again.
pub(super) async fn beside(mut upkeep: Upkeep, every: Span, stop: CancellationToken) {
    while let Some(ended) = unless(&stop, upkeep.pass(When::Due)).await {
        if let Err(Failure { problem, .. }) = told(ended) {
            error!(
                code = problem.code,
                subject = problem.subject,
                reason = problem.message,
                remedy = problem.remedy,
                "tables cannot be maintained"
            );
        }
        unless(&stop, sleep(every.0)).await;
    }
    info!("maintenance has stopped");
}

/// What comes of it; `None` if a stop comes first. What is dropped then is as after a crash: files that nothing names, which
/// a later pass removes.
async fn unless<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    // Biased: a stop is not kept waiting.
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        done = work => Some(done),
    }
}

/// A pass that time heals is tried again with the next one.
fn told(ended: Result<Vec<TableReport>, Failure>) -> Result<Vec<TableReport>, Failure> {
    match ended {
        Err(Failure { problem, .. }) if problem.reaction == Reaction::Retry => {
            warn!(code = problem.code, subject = problem.subject, reason = problem.message, "a pass has failed");
            Ok(Vec::new())
        }
        other => other,
    }
}

fn drifted(reports: Vec<TableReport>) -> Option<lakehouse_core::error::Problem> {
    reports.into_iter().find(TableReport::has_drifted).and_then(|report| report.problem)
}
