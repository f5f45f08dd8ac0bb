//! The replication slot: what it is, and whether it still holds everything behind the cut.
//!
//! The server moves a start position below the slot's confirmed one forward without a word (V1), so the comparison is
//! made here, and again after the stream has started (protocol D).

use lakehouse_core::error::Problem;
use lakehouse_core::position::Position;
use tokio_postgres::Client;

use crate::config::PostgresSource;
use crate::problem::sql_problem;

/// A slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) plugin: Option<String>,
    pub(crate) database: Option<String>,
    pub(crate) temporary: bool,
    pub(crate) confirmed: Option<Position>,
    pub(crate) wal_status: Option<String>,
}

impl Slot {
    pub(crate) async fn find(client: &Client, source: &PostgresSource) -> Result<Option<Self>, Problem> {
        let row = client.query_opt(SLOT, &[&source.slot]).await;
        let row = row.map_err(|error| sql_problem(&source.slot, &error))?;
        Ok(row.map(|row| Self {
            plugin: row.get("plugin"),
            database: row.get("database"),
            temporary: row.get("temporary"),
            confirmed: row.get::<_, Option<String>>("confirmed").and_then(|text| text.parse().ok()),
            wal_status: row.get("wal_status"),
        }))
    }

    /// A slot of the wrong kind is never used (R21).
    pub(crate) fn check_kind(&self, source: &PostgresSource) -> Result<(), Problem> {
        let wrong = |code, message: String| {
            let remedy = "give the pipeline another slot name, or drop this slot if nobody needs it";
            Err(Problem::halt(code, &source.slot, message, remedy))
        };
        if self.plugin.as_deref() != Some("pgoutput") {
            let plugin = self.plugin.as_deref().unwrap_or("none (physical)");
            return wrong("SLOT_PLUGIN", format!("the slot's plugin is {plugin}, not pgoutput"));
        }
        if self.database.as_deref() != Some(&source.connection.database) {
            let database = self.database.as_deref().unwrap_or_default();
            return wrong("SLOT_DB", format!("the slot belongs to database {database}"));
        }
        if self.temporary {
            return wrong("SLOT_TEMP", "the slot is temporary".to_owned());
        }
        Ok(())
    }

    /// The slot still holds everything behind the cut (protocol D: SLOT_LOST, GAP).
    pub(crate) fn check_holds(&self, source: &PostgresSource, cut: Position) -> Result<(), Problem> {
        let confirmed = match (self.confirmed, self.wal_status.as_deref()) {
            (Some(confirmed), status) if status != Some("lost") => confirmed,
            _ => {
                return Err(slot_lost(source, "the server has removed WAL that the slot still needed"));
            }
        };
        if confirmed > cut {
            let message = format!("the slot has moved to {confirmed}, the lake has changes up to {cut} only");
            let remedy = "what lies between is gone from the slot: resync the pipeline; nothing was written";
            return Err(Problem::halt("GAP", &source.slot, message, remedy));
        }
        Ok(())
    }
}

pub(crate) fn slot_lost(source: &PostgresSource, message: &str) -> Problem {
    let remedy =
        "resync the pipeline with a new slot; nothing was written. Raise max_slot_wal_keep_size if it was the cause";
    Problem::halt("SLOT_LOST", &source.slot, message, remedy)
}

const SLOT: &str = "
    SELECT plugin::text, database::text, temporary, confirmed_flush_lsn::text AS confirmed, wal_status
    FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
