//! What the server is and allows: read in one place, by validation and by every start.

use lakehouse_core::error::Problem;
use lakehouse_core::position::Position;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::config::PostgresSource;
use crate::problem::sql_problem;

/// The server and the role, as one query shows them.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) version: i32,
    pub(crate) wal_level: String,
    pub(crate) system_id: String,
    pub(crate) timeline: i32,
    pub(crate) in_recovery: bool,
    /// End of the flushed WAL (V12).
    pub(crate) end_of_wal: Position,
    pub(crate) encoding: String,
    pub(crate) superuser: bool,
    pub(crate) replication: bool,
    pub(crate) bypass_rls: bool,
    pub(crate) may_create: bool,
    pub(crate) max_slots: i32,
    pub(crate) used_slots: i64,
    pub(crate) max_senders: i32,
    pub(crate) used_senders: i64,
    pub(crate) sender_timeout_ms: i32,
    /// In MiB; −1: without bound.
    pub(crate) max_slot_wal_keep_mb: i32,
}

impl Server {
    pub(crate) async fn read(client: &Client, source: &PostgresSource) -> Result<Self, Problem> {
        let row = client.query_one(SERVER, &[]).await;
        let row = row.map_err(|error| sql_problem(&source.connection.database, &error))?;
        let end: String = row.get("end_of_wal");
        let invalid =
            |_| Problem::halt("PROTOCOL", &source.connection.host, "the server sent no position", "report this");
        Ok(Self {
            version: row.get("version"),
            wal_level: row.get("wal_level"),
            system_id: row.get("system_id"),
            timeline: row.get("timeline"),
            in_recovery: row.get("in_recovery"),
            end_of_wal: end.parse().map_err(invalid)?,
            encoding: row.get("encoding"),
            superuser: row.get("superuser"),
            replication: row.get("replication"),
            bypass_rls: row.get("bypass_rls"),
            may_create: row.get("may_create"),
            max_slots: row.get("max_slots"),
            used_slots: row.get("used_slots"),
            max_senders: row.get("max_senders"),
            used_senders: row.get("used_senders"),
            sender_timeout_ms: row.get("sender_timeout_ms"),
            max_slot_wal_keep_mb: row.get("max_slot_wal_keep_mb"),
        })
    }
}

const SERVER: &str = "
    SELECT current_setting('server_version_num')::int AS version, current_setting('wal_level') AS wal_level,
           (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_id,
           (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()) AS timeline,
           pg_catalog.pg_is_in_recovery() AS in_recovery,
           (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                 ELSE pg_catalog.pg_current_wal_flush_lsn() END)::text AS end_of_wal,
           current_setting('server_encoding') AS encoding, r.rolsuper AS superuser,
           r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'rds_replication'
               AND pg_catalog.pg_has_role(g.oid, 'MEMBER')) AS replication,
           r.rolbypassrls OR r.rolsuper AS bypass_rls,
           pg_catalog.has_database_privilege(current_database(), 'CREATE') AS may_create,
           current_setting('max_replication_slots')::int AS max_slots,
           (SELECT count(*) FROM pg_catalog.pg_replication_slots) AS used_slots,
           current_setting('max_wal_senders')::int AS max_senders,
           (SELECT count(*) FROM pg_catalog.pg_stat_replication) AS used_senders,
           (SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout') AS sender_timeout_ms,
           (SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size') AS max_slot_wal_keep_mb
    FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";

/// What tells this source from every other (protocol D, IDENTITY). Kept as text in the lake and compared as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) kind: String,
    pub(crate) system_id: String,
    pub(crate) timeline: i32,
    pub(crate) database: String,
    pub(crate) slot: String,
    /// The slot's consistent point when we created it: another slot of this name has another.
    pub(crate) generation: Position,
    pub(crate) publication: String,
}

impl Identity {
    pub(crate) fn new(server: &Server, source: &PostgresSource, generation: Position) -> Self {
        Self {
            kind: "postgres".to_owned(),
            system_id: server.system_id.clone(),
            timeline: server.timeline,
            database: source.connection.database.clone(),
            slot: source.slot.clone(),
            generation,
            publication: source.publication.clone(),
        }
    }

    pub(crate) fn text(&self) -> String {
        serde_json::to_string(self).expect("an identity is plain data")
    }

    /// The first part in which the stored identity differs from the server in front of us; the generation stays.
    pub(crate) fn difference(&self, now: &Identity) -> Option<String> {
        let timeline = (self.timeline.to_string(), now.timeline.to_string());
        let parts = [
            ("kind of source", &self.kind, &now.kind),
            ("system identifier", &self.system_id, &now.system_id),
            ("timeline", &timeline.0, &timeline.1),
            ("database", &self.database, &now.database),
            ("slot", &self.slot, &now.slot),
            ("publication", &self.publication, &now.publication),
        ];
        let changed = parts.into_iter().find(|(_, stored, found)| stored != found);
        changed.map(|(part, stored, found)| format!("{part} is {found}, the lake follows {stored}"))
    }
}
