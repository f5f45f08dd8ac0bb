//! What stands in a table's quarantine and can be mapped by now is applied. Here it is only asked for, in the pipeline's
//! control table; the pipeline does it, now or at its next start.

use futures::FutureExt;
use lakehouse_core::commit::properties;
use lakehouse_core::schema::TableName;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::control::on_control;
use crate::config::PipelineConfig;
use crate::failure::Failure;
use crate::lake::Lake;

/// What is going to be asked for.
pub(crate) struct Replay {
    pipeline: String,
    pub(crate) table: TableName,
    pub(crate) quarantine: TableName,
    source: String,
    pub(crate) rows: Option<u64>,
}

impl Replay {
    /// # Errors
    /// `NO_CUT`; `TABLE_UNKNOWN` for what is no mirror of the pipeline, or has no quarantine; `NO_HISTORY`.
    pub(crate) async fn plan(
        lake: &Lake,
        pipeline: &str,
        config: &PipelineConfig,
        name: &TableName,
    ) -> Result<Self, Failure> {
        let cut = super::cut(lake, pipeline).await?;
        let captured = lake.captured(&config.namespace, &cut.source).await?;
        let mirror = lake.named(&captured, name, pipeline).await?;
        let Some(quarantine) = lake.quarantine(mirror).await? else {
            let remedy = "one comes with a column whose policy is mismatch = \"quarantine\"";
            return Err(Failure::failed("TABLE_UNKNOWN", name.quarantine().to_string(), "no such quarantine", remedy));
        };
        if lake.catalog.load(&name.history(), None).await?.is_none() {
            let message = "only a history tells which keys have been written since";
            return Err(Failure::failed("NO_HISTORY", name.to_string(), message, "resync the table instead"));
        }
        let source = mirror.property(properties::SOURCE_TABLE).expect("a captured table says whose it is").to_owned();
        Ok(Self {
            pipeline: pipeline.to_owned(),
            table: name.clone(),
            rows: lake.rows(&quarantine).await,
            quarantine: quarantine.name,
            source,
        })
    }

    /// The name of the changes in the history: their `_cdc_lane` is `replay/` and this. Where one was asked for and is not
    /// done it is that one's: asking again is no other replay.
    pub(crate) async fn request(&self, lake: &Lake, reason: &str) -> Result<String, Failure> {
        let id = Uuid::now_v7().to_string();
        on_control(lake, &self.pipeline, (&self.source, id, reason), |control, (source, id, reason)| {
            control.request_replay(source, id, reason).boxed()
        })
        .await
    }

    /// What is asked for, for the audit trail.
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({"pipeline": self.pipeline, "table": self.table.to_string(), "quarantine": self.quarantine.to_string(),
               "rows": self.rows})
    }

    /// What was asked for, under this name.
    pub(crate) fn answer(&self, id: String) -> Requested {
        let (pipeline, table, quarantine) =
            (self.pipeline.clone(), self.table.to_string(), self.quarantine.to_string());
        Requested { pipeline, table, quarantine, rows: self.rows, requested: true, id }
    }
}

/// Rows of a quarantine that will be applied where they fit.
#[derive(Serialize, ToSchema)]
#[schema(as = QuarantineReplay)]
pub(crate) struct Requested {
    pipeline: String,
    table: String,
    quarantine: String,
    /// All rows that stand there.
    rows: Option<u64>,
    requested: bool,
    /// In the history their `_cdc_lane` is `replay/` and this.
    id: String,
}
