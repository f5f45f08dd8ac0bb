//! `tables`: what stands in the catalog, other products' tables included; control tables are not for readers.

use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::properties;
use lakehouse_core::position::Position;
use serde::Serialize;
use utoipa::ToSchema;

use super::Context;
use crate::answer::{self, or_dash};
use crate::failure::{Exit, Failure};
use crate::lake::{self, Kind, Lake};
use crate::shapes;

#[derive(Serialize)]
struct Answer {
    tables: Vec<Table>,
}

/// How a table stands.
#[derive(Serialize, ToSchema)]
pub(crate) struct Table {
    table: String,
    kind: Kind,
    /// Name at the source.
    source: Option<String>,
    rows: Option<u64>,
    data_files: Option<u64>,
    delete_files: Option<u64>,
    bytes: Option<u64>,
    snapshot_id: Option<String>,
    committed_at: Option<String>,
    #[schema(value_type = Option<shapes::Position>)]
    position: Option<Position>,
}

impl Table {
    pub(crate) async fn of(lake: &Lake, table: &LoadedTable) -> Result<Self, Failure> {
        let snapshot = table.metadata.current_snapshot();
        let total = |key| snapshot.and_then(|snapshot| lake::summary_number(snapshot, key));
        Ok(Self {
            kind: lake::kind(table),
            source: table.property(properties::SOURCE_TABLE).map(str::to_owned),
            rows: lake.rows(table).await,
            data_files: total("total-data-files"),
            delete_files: total("total-delete-files"),
            bytes: total("total-files-size"),
            snapshot_id: table.snapshot_id().map(|id| id.to_string()),
            committed_at: snapshot.map(|snapshot| answer::time(snapshot.timestamp_ms())),
            position: lake::table_state(table)?.position,
            table: table.name.to_string(),
        })
    }
}

pub(super) async fn run(context: &Context) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    let mut tables = Vec::new();
    for table in lake.tables(None).await? {
        tables.push(Table::of(&lake, &table).await?);
    }
    match context.json {
        true => answer::json(&Answer { tables })?,
        false => print(&tables)?,
    }
    Ok(Exit::Done)
}

fn print(tables: &[Table]) -> Result<(), Failure> {
    let row = |table: &Table| {
        [
            table.table.clone(),
            table.kind.as_str().to_owned(),
            or_dash(table.rows),
            or_dash(table.data_files),
            or_dash(table.delete_files),
            or_dash(table.position),
            or_dash(table.committed_at.clone()),
        ]
    };
    let rows: Vec<_> = tables.iter().map(row).collect();
    answer::table(["TABLE", "KIND", "ROWS", "DATA FILES", "DELETE FILES", "POSITION", "COMMITTED"], &rows)
}
