//! `pause` and `resume`: a pipeline stands still, and goes on from its cut. Nothing is lost meanwhile; the source holds
//! what it has not been told to forget.

use lakehouse_core::commit::Control;
use serde_json::{Value, json};

use super::Context;
use super::control::on_control;
use crate::answer;
use crate::cli::{Pause, Resume};
use crate::failure::{Exit, Failure};
use crate::lake::Lake;

pub(super) async fn pause(context: &Context, arguments: &Pause) -> Result<Exit, Failure> {
    set(context, arguments.pipeline.as_deref(), Some(arguments.reason.clone())).await
}

pub(super) async fn resume(context: &Context, arguments: &Resume) -> Result<Exit, Failure> {
    set(context, arguments.pipeline.as_deref(), None).await
}

async fn set(context: &Context, pipeline: Option<&str>, reason: Option<String>) -> Result<Exit, Failure> {
    let (name, _) = context.config.choose_one(pipeline)?;
    let lake = Lake::open(&context.config).await?;
    let paused = reason.is_some();
    let action = if paused { "pause" } else { "resume" };
    let intent = context.intent(action, name, reason.as_deref(), Value::Null).await?;
    let ended = on_control(&lake, name, async |control: &mut Control| control.pause(reason.clone()).await).await;
    intent.outcome(ended, Value::Null).await?;
    match (context.json, paused) {
        (true, _) => answer::json(&json!({"pipeline": name, "paused": paused}))?,
        (false, true) => answer::line(&format!(
            "pipeline {name} stands still from its next cut on; its source keeps what it has not been told to forget"
        ))?,
        (false, false) => answer::line(&format!("pipeline {name} goes on within a minute"))?,
    }
    Ok(Exit::Done)
}
