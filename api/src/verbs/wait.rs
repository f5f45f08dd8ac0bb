//! `wait`: returns when all tables of a pipeline hold a position. The control table is polled: that works from any
//! machine, and costs one question to the catalog each time.

use std::time::Duration;

use lakehouse_core::commit::{CONTROL_NAMESPACE, ControlState, Cut, properties};
use lakehouse_core::schema::TableName;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Context;
use crate::answer;
use crate::cli::Wait;
use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure};
use crate::lake::{self, Lake};
use crate::source::End;
use crate::worker_state::{Phase, WorkerState};

/// Pace of the questions.
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn run(context: &Context, arguments: &Wait) -> Result<Exit, Failure> {
    let deadline = Instant::now() + arguments.timeout.0;
    let (name, config) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let target = match arguments.until.position {
        Some(position) => End::At(position),
        None => config.source(name)?.end().await?,
    };
    let (mut lake, mut control, mut cut) = (None, None, None);
    loop {
        if lake.is_none() {
            lake = Lake::open_if_there(&context.config).await?;
        }
        if let Some(lake) = &lake {
            control = lake.catalog.load(&TableName::new(CONTROL_NAMESPACE, name), control.as_ref()).await?;
            cut = control.as_ref().map(ControlState::of).transpose()?.and_then(|state| state.cut);
            if let Some(cut) = &cut
                && target.is_in(cut)
                && holds_every_table(lake, cut, config).await?
            {
                report(context, name, target, cut)?;
                return Ok(Exit::Done);
            }
        }
        if Instant::now() >= deadline {
            return Err(timed_out(name, config, target, cut.as_ref()));
        }
        sleep(POLL.min(deadline - Instant::now())).await;
    }
}

/// A pipeline's first cut comes before its copies, and so before its tables.
async fn holds_every_table(lake: &Lake, cut: &Cut, config: &PipelineConfig) -> Result<bool, Failure> {
    let mut all = !(cut.tables.is_empty() && cut.left.is_empty());
    for table in lake.captured(&config.namespace, &cut.source).await? {
        let has_left = table.property(properties::SOURCE_TABLE).is_some_and(|source| cut.left.contains_key(source));
        all &= has_left || lake::table_state(&table)?.position.is_some();
    }
    Ok(all)
}

fn report(context: &Context, name: &str, target: End, cut: &Cut) -> Result<(), Failure> {
    let committed_at = answer::time(cut.committed_at);
    if context.json {
        let cut = json!({"position": cut.position, "committed_at": committed_at});
        return answer::json(&json!({"pipeline": name, "position": target.to_string(), "cut": cut}));
    }
    answer::line(&format!("{name} holds {target}: cut {} of {committed_at}", cut.position))
}

fn timed_out(name: &str, config: &PipelineConfig, target: End, cut: Option<&Cut>) -> Failure {
    let stands = match cut {
        None => "the pipeline has no cut yet".to_owned(),
        Some(cut) if target.is_in(cut) => "a table is still being copied".to_owned(),
        Some(cut) => format!("the newest cut is {}", cut.position),
    };
    let worker = WorkerState::read(&config.local_state, name).and_then(|worker| match worker.state {
        Phase::Halted => Some(format!("; the pipeline is halted with {}", worker.code.unwrap_or_default())),
        Phase::Retrying => Some(format!("; the pipeline retries after {}", worker.code.unwrap_or_default())),
        Phase::Running | Phase::Stopped => None,
    });
    let message = format!("{target} was not reached in time: {stands}{}", worker.unwrap_or_default());
    let remedy = format!("see `lakehouse status --pipeline {name}`, or allow more time with --timeout");
    Failure::failed("WAIT_TIMEOUT", name, message, remedy)
}
