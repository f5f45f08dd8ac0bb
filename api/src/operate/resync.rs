//! Tables are copied anew beside what stands there, and take its place in one commit. Here it is only asked for, in the
//! pipeline's control table; the pipeline does it, now or at its next start.

use std::collections::BTreeMap;

use futures::FutureExt;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{Cut, properties};
use lakehouse_core::schema::TableName;
use serde::Serialize;
use utoipa::ToSchema;

use super::control::on_control;
use crate::config::PipelineConfig;
use crate::failure::Failure;
use crate::lake::Lake;

/// What is going to be asked for.
pub(crate) struct Resync {
    pipeline: String,
    /// By names at the source: the tables of the lake that leave the cut.
    wanted: BTreeMap<String, Vec<TableName>>,
    pub(crate) tables: Vec<Planned>,
}

impl Resync {
    /// # Errors
    /// `NO_CUT`; `TABLE_UNKNOWN` for what is no mirror of the pipeline.
    pub(crate) async fn plan(
        lake: &Lake,
        pipeline: &str,
        config: &PipelineConfig,
        names: &[TableName],
    ) -> Result<Self, Failure> {
        let cut = super::cut(lake, pipeline).await?;
        let captured = lake.captured(&config.namespace, &cut.source).await?;
        let mut wanted = BTreeMap::new();
        let mut tables = Vec::new();
        for name in names {
            let found = lake.named(&captured, name, pipeline).await?;
            let source = found.property(properties::SOURCE_TABLE).expect("a captured table says whose it is");
            tables.push(Planned::of(found, lake.rows(found).await, source, &cut));
            wanted.insert(source.to_owned(), vec![name.clone(), name.history(), name.quarantine()]);
        }
        Ok(Self { pipeline: pipeline.to_owned(), wanted, tables })
    }

    pub(crate) async fn request(&self, lake: &Lake, reason: &str) -> Result<(), Failure> {
        let wanted = (&self.wanted, reason);
        on_control(lake, &self.pipeline, wanted, |control, (tables, reason)| {
            control.request_resync(tables, reason).boxed()
        })
        .await
    }

    /// What was asked for.
    pub(crate) fn answer(&self) -> Requested {
        let tables = self.tables.iter().map(Planned::answer).collect();
        Requested { pipeline: self.pipeline.clone(), requested: true, tables }
    }
}

/// Tables that will be copied anew.
#[derive(Serialize, ToSchema)]
#[schema(as = Resync)]
pub(crate) struct Requested {
    pipeline: String,
    requested: bool,
    tables: Vec<RequestedTable>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ResyncTable)]
struct RequestedTable {
    table: String,
    /// Name at the source.
    source: String,
    rows: Option<u64>,
    /// What stands there until it is replaced.
    snapshot_id: Option<String>,
    /// Why it had left the cut, if it had.
    code: Option<String>,
}

/// What is going to happen to one table.
pub(crate) struct Planned {
    pub(crate) table: TableName,
    pub(crate) source: String,
    pub(crate) rows: Option<u64>,
    pub(crate) snapshot: Option<i64>,
    /// Why it has left the cut, if it has.
    pub(crate) code: Option<String>,
}

impl Planned {
    fn of(table: &LoadedTable, rows: Option<u64>, source: &str, cut: &Cut) -> Self {
        let code = cut.left.get(source).map(|left| left.code.clone());
        Self { table: table.name.clone(), source: source.to_owned(), rows, snapshot: table.snapshot_id(), code }
    }

    fn answer(&self) -> RequestedTable {
        let Self { table, source, rows, snapshot, code } = self;
        RequestedTable {
            table: table.to_string(),
            source: source.clone(),
            rows: *rows,
            snapshot_id: snapshot.map(|id| id.to_string()),
            code: code.clone(),
        }
    }
}
