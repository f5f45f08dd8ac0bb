//! The publications of a pipeline: found, created, extended, checked.
//!
//! Tables with a usable identity are published with all operations. A table without one would make the application's
//! own UPDATE and DELETE fail (V3), so it goes into a second publication that carries inserts and truncates only.

use std::collections::{BTreeMap, BTreeSet};

use lakehouse_core::error::Problem;
use tokio_postgres::Client;
use tracing::info;

use crate::config::PostgresSource;
use crate::problem::sql_problem;
use crate::tables::{Identity, SourceTable, quote};

/// Name of the second publication.
pub(crate) fn append_publication(source: &PostgresSource) -> String {
    format!("{}_append", source.publication)
}

/// What the server has under the pipeline's two names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Publications {
    pub(crate) changes: Option<Publication>,
    pub(crate) appends: Option<Publication>,
}

#[derive(Clone, Debug)]
pub(crate) struct Publication {
    pub(crate) owned: bool,
    pub(crate) inserts: bool,
    pub(crate) updates: bool,
    pub(crate) deletes: bool,
    pub(crate) truncates: bool,
    pub(crate) via_root: bool,
    /// By `schema.table`.
    pub(crate) tables: BTreeMap<String, PublishedTable>,
}

/// What a publication says of one table (R49).
#[derive(Clone, Debug, Default)]
pub(crate) struct PublishedTable {
    /// Published columns; `None` before PostgreSQL 15, which has all.
    pub(crate) columns: Option<Vec<String>>,
    pub(crate) row_filter: Option<String>,
}

impl Publications {
    pub(crate) async fn find(client: &Client, source: &PostgresSource) -> Result<Self, Problem> {
        Ok(Self {
            changes: find(client, &source.publication).await?,
            appends: find(client, &append_publication(source)).await?,
        })
    }

    /// How a table is published, if it is.
    pub(crate) fn of(&self, table: &SourceTable) -> Option<&PublishedTable> {
        let publications = [self.changes.as_ref(), self.appends.as_ref()];
        publications.into_iter().flatten().find_map(|publication| publication.tables.get(&table.full_name()))
    }

    /// Names to stream from.
    pub(crate) fn names(&self, source: &PostgresSource) -> Vec<String> {
        let changes = self.changes.as_ref().map(|_| source.publication.clone());
        let appends = self.appends.as_ref().map(|_| append_publication(source));
        changes.into_iter().chain(appends).collect()
    }

    /// Statements that make the publications fit: what `ensure` runs, and what validation prints.
    pub(crate) fn missing(&self, source: &PostgresSource, tables: &[SourceTable]) -> Vec<String> {
        let (keyed, keyless): (Vec<_>, Vec<_>) = tables
            .iter()
            .filter(|table| !table.unlogged && self.of(table).is_none())
            .partition(|table| can_publish_changes(table));
        let all = "insert, update, delete, truncate";
        let mut statements = Vec::new();
        statements.extend(statement(self.changes.as_ref(), &source.publication, all, &keyed, true));
        let append = append_publication(source);
        // Made with the other one, before the slot: made later, it would be unknown to changes that the slot holds (V2).
        let even_empty = self.changes.is_none();
        statements.extend(statement(self.appends.as_ref(), &append, "insert, truncate", &keyless, even_empty));
        statements
    }

    /// Creates or extends what is missing, where the role may.
    pub(crate) async fn ensure(
        client: &Client,
        source: &PostgresSource,
        tables: &[SourceTable],
    ) -> Result<Self, Problem> {
        let found = Self::find(client, source).await?;
        let missing = found.missing(source, tables);
        for statement in &missing {
            info!(statement, "publication is made to fit");
            client.batch_execute(statement).await.map_err(|error| {
                let refused = error.code().is_some_and(|code| code.code() == "42501");
                match refused {
                    true => Problem::halt(
                        "PUBLICATION_TABLES",
                        &source.publication,
                        "the publication lacks captured tables, and this role may not change it",
                        format!("run as the tables' owner: {}", missing.join("; ")),
                    ),
                    false => sql_problem(&source.publication, &error),
                }
            })?;
        }
        if missing.is_empty() { Ok(found) } else { Self::find(client, source).await }
    }
}

/// UPDATE and DELETE of this table can be published without making them fail.
pub(crate) fn can_publish_changes(table: &SourceTable) -> bool {
    match table.identity {
        Identity::Full => true,
        Identity::Key => table.columns.iter().any(|column| column.key),
        Identity::Nothing => false,
    }
}

fn statement(
    publication: Option<&Publication>,
    name: &str,
    operations: &str,
    tables: &[&SourceTable],
    even_empty: bool,
) -> Option<String> {
    let names: BTreeSet<String> = tables.iter().map(|table| table.quoted()).collect();
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    let name = quote(name);
    let options = format!("WITH (publish = '{operations}', publish_via_partition_root = true)");
    match publication {
        None if names.is_empty() && !even_empty => None,
        None if names.is_empty() => Some(format!("CREATE PUBLICATION {name} {options}")),
        None => Some(format!("CREATE PUBLICATION {name} FOR TABLE {names} {options}")),
        Some(_) if names.is_empty() => None,
        Some(_) => Some(format!("ALTER PUBLICATION {name} ADD TABLE {names}")),
    }
}

async fn find(client: &Client, name: &str) -> Result<Option<Publication>, Problem> {
    let failed = |error: tokio_postgres::Error| sql_problem(name, &error);
    let Some(row) = client.query_opt(PUBLICATION, &[&name]).await.map_err(failed)? else {
        return Ok(None);
    };
    let version: i32 = row.get("version");
    let sql = if version >= 150_000 { TABLES } else { TABLES_BEFORE_15 };
    let rows = client.query(sql, &[&name]).await.map_err(failed)?;
    let table = |row: tokio_postgres::Row| {
        let published = PublishedTable { columns: row.get("columns"), row_filter: row.get("row_filter") };
        (row.get("full_name"), published)
    };
    Ok(Some(Publication {
        owned: row.get("owned"),
        inserts: row.get("inserts"),
        updates: row.get("updates"),
        deletes: row.get("deletes"),
        truncates: row.get("truncates"),
        via_root: row.get("via_root"),
        tables: rows.into_iter().map(table).collect(),
    }))
}

const PUBLICATION: &str = "
    SELECT pg_catalog.pg_has_role(pubowner, 'USAGE') AS owned, pubinsert AS inserts,
           pubupdate AS updates, pubdelete AS deletes, pubtruncate AS truncates, pubviaroot AS via_root,
           current_setting('server_version_num')::int AS version
    FROM pg_catalog.pg_publication WHERE pubname = $1";

const TABLES: &str = "
    SELECT schemaname || '.' || tablename AS full_name, attnames::text[] AS columns, rowfilter AS row_filter
    FROM pg_catalog.pg_publication_tables WHERE pubname = $1";

const TABLES_BEFORE_15: &str = "
    SELECT schemaname || '.' || tablename AS full_name, NULL::text[] AS columns, NULL::text AS row_filter
    FROM pg_catalog.pg_publication_tables WHERE pubname = $1";
