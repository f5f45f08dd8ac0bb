//! `pause` and `resume`: a pipeline stands still, and goes on from its cut. Nothing is lost meanwhile; the source holds
//! what it has not been told to forget.

use serde_json::{Value, json};

use super::Context;
use crate::answer;
use crate::cli::{Pause, Resume};
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::operate;

pub(super) async fn pause(context: &Context, arguments: &Pause) -> Result<Exit, Failure> {
    set(context, arguments.pipeline.as_deref(), Some(&arguments.reason)).await
}

pub(super) async fn resume(context: &Context, arguments: &Resume) -> Result<Exit, Failure> {
    set(context, arguments.pipeline.as_deref(), None).await
}

async fn set(context: &Context, pipeline: Option<&str>, reason: Option<&str>) -> Result<Exit, Failure> {
    let (name, _) = context.config.choose_one(pipeline)?;
    let lake = Lake::open(&context.config).await?;
    let paused = reason.is_some();
    let action = if paused { "pause" } else { "resume" };
    let intent = context.intent(action, name, reason, Value::Null).await?;
    intent.outcome(operate::pause::set(&lake, name, reason).await, Value::Null).await?;
    match (context.json, paused) {
        (true, _) => answer::json(&json!({"pipeline": name, "paused": paused}))?,
        (false, true) => answer::line(&format!(
            "pipeline {name} stands still from its next cut on; its source keeps what it has not been told to forget"
        ))?,
        (false, false) => answer::line(&format!("pipeline {name} goes on within a minute"))?,
    }
    Ok(Exit::Done)
}
