//! `operations`: what people have done to a pipeline's tables, newest last.

use lakehouse_core::commit::{Journal, recorded_operations};

use super::Context;
use crate::answer;
use crate::cli::Operations;
use crate::failure::{Exit, Failure};
use crate::lake::Lake;

pub(super) async fn run(context: &Context, arguments: &Operations) -> Result<Exit, Failure> {
    let (name, _) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let lake = Lake::open(&context.config).await?;
    let known = match &arguments.operation {
        Some(id) => vec![find(&lake, name, id).await?],
        None => known(&lake, name).await?,
    };
    if context.json {
        answer::json(&serde_json::json!({"pipeline": name, "operations": known}))?;
        return Ok(Exit::Done);
    }
    let row = |journal: &Journal| {
        let tables: Vec<&str> = journal.tables.keys().map(String::as_str).collect();
        [
            journal.id.clone(),
            answer::time(journal.begun_at),
            journal.stage.as_str().to_owned(),
            journal.by.clone(),
            tables.join(", "),
            journal.reason.clone(),
        ]
    };
    let rows: Vec<_> = known.iter().map(row).collect();
    answer::table(["OPERATION", "BEGUN", "STAGE", "BY", "TABLES", "REASON"], &rows)?;
    Ok(Exit::Done)
}

/// Oldest first; none before the pipeline's first start.
async fn known(lake: &Lake, pipeline: &str) -> Result<Vec<Journal>, Failure> {
    Ok(lake.control(pipeline).await?.map(|(_, table)| recorded_operations(&table)).unwrap_or_default())
}

/// # Errors
/// `OPERATION_UNKNOWN`, with those that are known.
pub(super) async fn find(lake: &Lake, pipeline: &str, id: &str) -> Result<Journal, Failure> {
    let known = known(lake, pipeline).await?;
    known.iter().find(|journal| journal.id == id).cloned().ok_or_else(|| {
        let ids: Vec<&str> = known.iter().map(|journal| journal.id.as_str()).collect();
        let remedy = format!("known are: {}", if ids.is_empty() { "none".to_owned() } else { ids.join(", ") });
        Failure::failed("OPERATION_UNKNOWN", id, "the pipeline knows no such operation", remedy)
    })
}
