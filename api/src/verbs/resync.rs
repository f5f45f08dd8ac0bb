//! `resync`: tables are copied anew beside what stands there, and take its place in one commit. Here it is only asked for,
//! in the pipeline's control table; the pipeline does it, now or at its next start.

use std::collections::BTreeMap;

use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{Control, Cut, properties};
use lakehouse_core::schema::TableName;
use serde_json::{Value, json};

use super::Context;
use super::confirm::confirm;
use super::control::on_control;
use crate::answer::{self, or_dash};
use crate::cli::Resync;
use crate::failure::{Exit, Failure};
use crate::lake::Lake;

pub(super) async fn run(context: &Context, arguments: &Resync) -> Result<Exit, Failure> {
    let (name, config) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let lake = Lake::open(&context.config).await?;
    let no_cut = || {
        let remedy = "start the pipeline: its first start copies every table";
        Failure::failed("NO_CUT", name, "the pipeline has no cut yet", remedy)
    };
    let (control, _) = lake.control(name).await?.ok_or_else(no_cut)?;
    let cut = control.cut.ok_or_else(no_cut)?;
    let captured = lake.captured(&config.namespace, &cut.source).await?;
    let mut wanted = BTreeMap::new();
    let mut plan = Vec::new();
    for table in &arguments.tables {
        let found = lake.named(&captured, table, name).await?;
        let source = found.property(properties::SOURCE_TABLE).expect("a captured table says whose it is");
        plan.push(Planned::of(found, lake.rows(found).await, source, &cut));
        wanted.insert(source.to_owned(), vec![table.clone(), table.history(), table.quarantine()]);
    }
    if !context.json {
        print(&plan)?;
    }
    confirm("resync", arguments.yes)?;
    let request = async |control: &mut Control| control.request_resync(&wanted, &arguments.reason).await;
    let tables: Vec<_> = plan.iter().map(Planned::json).collect();
    let intent = context.intent("resync", name, Some(&arguments.reason), json!({"tables": &tables})).await?;
    let ended = on_control(&lake, name, request).await;
    intent.outcome(ended, Value::Null).await?;
    match context.json {
        true => {
            answer::json(&json!({"pipeline": name, "requested": true, "tables": tables}))?;
        }
        false => answer::line(&format!(
            "asked for: pipeline {name} copies them at once if it is running, else when it starts; see `lakehouse status`"
        ))?,
    }
    Ok(Exit::Done)
}

/// What is going to happen to one table.
struct Planned {
    table: TableName,
    source: String,
    rows: Option<u64>,
    snapshot: Option<i64>,
    /// Why it has left the cut, if it has.
    code: Option<String>,
}

impl Planned {
    fn of(table: &LoadedTable, rows: Option<u64>, source: &str, cut: &Cut) -> Self {
        let code = cut.left.get(source).map(|left| left.code.clone());
        Self { table: table.name.clone(), source: source.to_owned(), rows, snapshot: table.snapshot_id(), code }
    }

    fn json(&self) -> serde_json::Value {
        let snapshot = self.snapshot.map(|id| id.to_string());
        json!({"table": self.table.to_string(), "source": self.source, "rows": self.rows, "snapshot_id": snapshot,
               "code": self.code})
    }
}

fn print(plan: &[Planned]) -> Result<(), Failure> {
    let row = |planned: &Planned| {
        let Planned { table, source, rows, snapshot, code } = planned;
        [table.to_string(), source.clone(), or_dash(*rows), or_dash(*snapshot), or_dash(code.clone())]
    };
    let rows: Vec<_> = plan.iter().map(row).collect();
    answer::table(["TABLE", "SOURCE", "ROWS NOW", "SNAPSHOT NOW", "CODE"], &rows)?;
    answer::line(
        "Each is copied anew from its source. Readers see it as it stands until one commit replaces all of its rows; it is not\n\
         in the cut meanwhile. Older snapshots stay. Its history begins anew there: what happened in between is in none.",
    )
}
