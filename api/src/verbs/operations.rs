//! `operations`: what people have done to a pipeline's tables, newest last.

use lakehouse_core::commit::Journal;

use super::Context;
use crate::answer;
use crate::cli::Operations;
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::operate::operations::{find, known};

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
