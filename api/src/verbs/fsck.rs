//! `fsck`: the structure of tables, checked by the core; here is only what is asked and how it is told.

use lakehouse_core::fsck::{FsckReport, Verdict, fsck};
use lakehouse_core::schema::TableName;

use super::Context;
use crate::answer;
use crate::failure::{Exit, Failure};
use crate::lake::Lake;

pub(super) async fn run(context: &Context, tables: &[TableName]) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    for table in tables {
        lake.table(table).await?;
    }
    let wanted = Some(tables).filter(|tables| !tables.is_empty());
    let report = fsck(&*lake.catalog, &lake.storage, wanted).await?;
    match context.json {
        true => answer::json(&report)?,
        false => print(&report)?,
    }
    Ok(match report.verdict {
        Verdict::Sound => Exit::Done,
        Verdict::Unsound => Exit::Different,
    })
}

fn print(report: &FsckReport) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for table in &report.tables {
        for check in &table.checks {
            let result = if check.ok { "ok" } else { "WRONG" };
            rows.push([table.table.clone(), check.name.to_string(), result.to_owned(), check.detail.clone()]);
        }
    }
    answer::table(["TABLE", "CHECK", "RESULT", "DETAIL"], &rows)?;
    answer::line(match report.verdict {
        Verdict::Sound => "verdict: sound",
        Verdict::Unsound => "verdict: unsound",
    })
}
