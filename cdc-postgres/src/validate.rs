//! Validation before a start: every finding with its code and the exact statement that mends it. Writes nothing.

use std::collections::BTreeSet;

use lakehouse_core::catalog::Catalog;
use lakehouse_core::error::Problem;
use lakehouse_core::finding::Finding;
use lakehouse_core::schema::TableName;
use tokio_postgres::Client;

use crate::config::PostgresSource;
use crate::connection::connect_sql;
use crate::problem::{connect_problem, sql_problem};
use crate::publication::{Publications, can_publish_changes};
use crate::server::Server;
use crate::slot::Slot;
use crate::tables::{Identity, SourceTable, captured_tables, qualified, quote};
use crate::walsender::Walsender;

/// Everything that stands between the configuration and a start, names that `catalog` does not take among it. Errors are
/// what makes validation itself impossible.
pub async fn validate(source: &PostgresSource, catalog: Option<&dyn Catalog>) -> Result<Vec<Finding>, Problem> {
    let client = connect(source).await?;
    let server = Server::read(&client, source).await?;
    let tables = captured_tables(&client, source).await?;
    let mut findings = findings(&client, source, &server, &tables).await?;
    for table in &tables {
        let name = TableName::new(&source.namespace, table.lake_name());
        if let Some(Err(problem)) = catalog.map(|catalog| catalog.check_name(&name)) {
            findings.push(problem.into());
        }
    }
    if let Err(problem) = Walsender::connect(&source.connection).await {
        let problem = connect_problem(&source.connection.host, &problem);
        if findings.iter().all(|finding| finding.code != problem.code) {
            findings.push(problem.into());
        }
    }
    Ok(findings)
}

pub(crate) async fn connect(source: &PostgresSource) -> Result<Client, Problem> {
    let address = format!("{}:{}", source.connection.host, source.connection.port);
    connect_sql(&source.connection).await.map_err(|error| connect_problem(&address, &error))
}

pub(crate) async fn findings(
    client: &Client,
    source: &PostgresSource,
    server: &Server,
    tables: &[SourceTable],
) -> Result<Vec<Finding>, Problem> {
    let slot = Slot::find(client, source).await?;
    let publications = Publications::find(client, source).await?;
    let mut all = Vec::new();
    check_server(source, server, slot.is_some(), &mut all);
    if let Some(slot) = &slot
        && let Err(problem) = slot.check_kind(source)
    {
        all.push(Finding::error(problem.code, &source.slot, problem.message, Some(problem.remedy)));
    }
    check_publications(source, server, tables, &publications, slot.is_some(), &mut all);
    for table in tables {
        check_table(source, server, table, &publications, &mut all);
    }
    if tables.is_empty() {
        let message = format!("no table matches {:?}", source.tables);
        all.push(Finding::error("NO_TABLES", &source.pipeline, message, None));
    }
    if slot.is_none() {
        all.extend(open_transactions(client, source).await?);
    }
    Ok(all)
}

fn check_server(source: &PostgresSource, server: &Server, has_slot: bool, all: &mut Vec<Finding>) {
    let host = source.connection.host.as_str();
    let user = quote(&source.connection.user);
    let mut error = |code, message: String, fix: Option<String>| all.push(Finding::error(code, host, message, fix));
    if server.version < 140_000 {
        error("VERSION", format!("the server is version {}; 14 or newer is needed", server.version / 10_000), None);
    }
    if server.wal_level != "logical" {
        let fix =
            "ALTER SYSTEM SET wal_level = logical; -- and restart (on RDS: rds.logical_replication = 1 and reboot)";
        error("WAL_LEVEL", format!("wal_level is {}, not logical", server.wal_level), Some(fix.into()));
    }
    if server.in_recovery && server.version < 160_000 {
        error("STANDBY", "the server is a standby; logical decoding there needs version 16".into(), None);
    }
    if !server.replication {
        error("ROLE_REPLICATION", "the role lacks REPLICATION".into(), Some(format!("ALTER ROLE {user} REPLICATION")));
    }
    if !matches!(server.encoding.as_str(), "UTF8" | "LATIN1" | "LATIN9" | "WIN1252" | "EUC_JP" | "SQL_ASCII") {
        let message = format!("values in {} are converted to UTF-8 by the server", server.encoding);
        all.push(Finding::warning("ENCODING", host, message, None));
    } else if server.encoding == "SQL_ASCII" {
        let message = "the database has no encoding, so its text may not be UTF-8";
        all.push(Finding::error("ENCODING", host, message, None));
    }
    let free_slots = i64::from(server.max_slots) - server.used_slots;
    if !has_slot && free_slots < 1 {
        let message = format!("all {} replication slots are in use", server.max_slots);
        let fix = "ALTER SYSTEM SET max_replication_slots = …; -- and restart, or drop a slot that nobody needs";
        all.push(Finding::error("SLOTS", host, message, Some(fix.into())));
    }
    if i64::from(server.max_senders) - server.used_senders < 1 {
        let message = format!("all {} WAL senders are in use", server.max_senders);
        let fix = "ALTER SYSTEM SET max_wal_senders = …; -- and restart";
        all.push(Finding::error("SLOTS", host, message, Some(fix.into())));
    }
    let mut warning = |code, message: String, fix: Option<String>| all.push(Finding::warning(code, host, message, fix));
    if server.superuser {
        warning("SUPERUSER", "the role is a superuser; REPLICATION and SELECT are enough".into(), None);
    }
    if server.max_slot_wal_keep_mb < 0 {
        let message = "max_slot_wal_keep_size is unlimited: a pipeline that stands still fills the server's disk";
        warning("WAL_KEEP", message.into(), Some("ALTER SYSTEM SET max_slot_wal_keep_size = '…GB'".into()));
    }
    if (1..2_000).contains(&server.sender_timeout_ms) {
        warning("TIMEOUT", format!("wal_sender_timeout of {} ms is short", server.sender_timeout_ms), None);
    }
}

fn check_publications(
    source: &PostgresSource,
    server: &Server,
    tables: &[SourceTable],
    found: &Publications,
    has_slot: bool,
    all: &mut Vec<Finding>,
) {
    let missing = found.missing(source, tables);
    let fix = (!missing.is_empty()).then(|| missing.join("; "));
    let Some(changes) = &found.changes else {
        // A publication made after the slot is not seen by changes that the slot already holds (V2).
        if has_slot {
            let message = "the slot is older than the publication can be: its changes would be refused for ever";
            let fix =
                format!("create the publication, then SELECT pg_drop_replication_slot('{}') and resync", source.slot);
            all.push(Finding::error("PUBLICATION_MISSING", &source.publication, message, Some(fix)));
        } else if !server.may_create {
            let message = "the publication is missing and the role may not create it";
            all.push(Finding::error("PUBLICATION_MISSING", &source.publication, message, fix));
        }
        return;
    };
    if !missing.is_empty() && !changes.owned {
        let message = "captured tables are missing from the publication";
        all.push(Finding::error("PUBLICATION_TABLES", &source.publication, message, fix));
    }
    if !(changes.inserts && changes.updates && changes.deletes && changes.truncates) {
        let message = "the publication leaves out operations, so the mirror would go wrong";
        let fix = format!(
            "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
            quote(&source.publication)
        );
        all.push(Finding::error("PUBLICATION_OPERATIONS", &source.publication, message, Some(fix)));
    }
    if !changes.via_root && tables.iter().any(|table| table.partitioned) {
        let message = "a partitioned table is captured by its root, but the publication names its partitions";
        let fix = format!("ALTER PUBLICATION {} SET (publish_via_partition_root = true)", quote(&source.publication));
        all.push(Finding::error("PUBLICATION_ROOT", &source.publication, message, Some(fix)));
    }
}

fn check_table(
    source: &PostgresSource,
    server: &Server,
    table: &SourceTable,
    found: &Publications,
    all: &mut Vec<Finding>,
) {
    let name = table.full_name();
    let user = quote(&source.connection.user);
    let mut warning =
        |code, message: String, fix: Option<String>| all.push(Finding::warning(code, &name, message, fix));
    if table.unlogged {
        warning("UNLOGGED", "an unlogged table has no WAL and is not captured".into(), None);
        return;
    }
    for column in &table.generated {
        warning("GENERATED", format!("generated column {column:?} is not part of the stream and left out"), None);
    }
    for column in &table.columns {
        if let Some(unknown) = column.column_type.warning() {
            warning("TYPE", format!("column {:?}: {unknown}", column.name), None);
        }
    }
    let partitions = if table.partitioned { "; -- and each of its partitions likewise" } else { "" };
    let alter = format!("ALTER TABLE {} REPLICA IDENTITY FULL{partitions}", table.quoted());
    if !can_publish_changes(table) {
        let message = "the table has no key and no replica identity: only its inserts are captured, in a history";
        warning("NO_IDENTITY", message.into(), Some(alter));
    } else if table.identity == Identity::Full {
        warning(
            "IDENTITY_FULL",
            "every update and delete carries the whole old row: more WAL, exact history".into(),
            None,
        );
    }
    if table.row_security && !server.bypass_rls {
        let message = "row security would hide rows from the copy";
        all.push(Finding::error("RLS", &name, message, Some(format!("ALTER ROLE {user} BYPASSRLS"))));
    }
    if !table.unreadable.is_empty() {
        let schemas: BTreeSet<String> = table.unreadable.iter().map(|(schema, _)| quote(schema)).collect();
        let schemas = Vec::from_iter(schemas).join(", ");
        let tables: Vec<String> = table.unreadable.iter().map(|(schema, name)| qualified(schema, name)).collect();
        let fix =
            format!("GRANT USAGE ON SCHEMA {schemas} TO {user}; GRANT SELECT ON TABLE {} TO {user}", tables.join(", "));
        let message = match table.partitioned {
            true => "the role may not SELECT from the table and all its partitions, each of which is copied by itself",
            false => "the role may not SELECT from the table",
        };
        all.push(Finding::error("PERM", &name, message, Some(fix)));
    }
    let published = found.changes.as_ref().and_then(|changes| changes.tables.get(&name));
    if published.is_some() && !can_publish_changes(table) {
        let message = "the publication makes the application's own UPDATE and DELETE on this table fail";
        let fix = format!("ALTER PUBLICATION {} DROP TABLE {}", quote(&source.publication), table.quoted());
        all.push(Finding::error("NO_IDENTITY_PUBLISHED", &name, message, Some(fix)));
    }
    if let Err(problem) = table.table_schema(source).and_then(|schema| {
        let iceberg = schema.mirror_schema()?;
        schema.partition_spec(&iceberg).map(drop)
    }) {
        all.push(Finding::error(problem.code, &problem.subject, problem.message, Some(problem.remedy)));
    }
}

/// Transactions that a slot's creation would wait for (R22).
async fn open_transactions(client: &Client, source: &PostgresSource) -> Result<Option<Finding>, Problem> {
    let row = client.query_opt(OLD_TRANSACTION, &[]).await;
    let row = row.map_err(|error| sql_problem(&source.connection.database, &error))?;
    Ok(row.map(|row| {
        let (pid, minutes, application): (i32, f64, String) = (row.get(0), row.get(1), row.get(2));
        let message = format!(
            "a transaction of process {pid} ({application}) is open for {minutes:.0} min; the slot waits for it"
        );
        let fix = format!("SELECT pg_terminate_backend({pid})");
        Finding::warning("OLD_XACT", &source.slot, message, Some(fix))
    }))
}

const OLD_TRANSACTION: &str = "
    SELECT pid, (extract(epoch FROM now() - xact_start) / 60)::float8, application_name
    FROM pg_catalog.pg_stat_activity
    WHERE backend_xid IS NOT NULL AND xact_start < now() - interval '1 minute' AND pid <> pg_catalog.pg_backend_pid()
    ORDER BY xact_start LIMIT 1";
