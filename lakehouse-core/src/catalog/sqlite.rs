//! The embedded catalog: one SQLite file in the schema of Iceberg's JDBC catalog, so that PyIceberg, Spark and Java
//! open it as it is, and a warehouse on the local file system.
//!
//! The swap is `UPDATE … WHERE metadata_location = old`: SQLite compares the whole metadata, so property-only commits
//! are protected too (protocol "Token strength").

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use iceberg::{TableCreation, TableUpdate};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::{Catalog, LoadedTable, MetadataFile, Swap};
use crate::error::Problem;
use crate::schema::TableName;
use crate::storage::{Storage, file_problem, local_path, location_of};

/// The `catalog_name` column of every row of ours (`design/interface.md` section 3).
const CATALOG_NAME: &str = "lakehouse";

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct SqliteCatalog {
    connection: Arc<Mutex<Connection>>,
    path: String,
    /// Location under which tables get their folders.
    warehouse: String,
    storage: Storage,
}

impl SqliteCatalog {
    /// The same as [`Self::open_at`] with a folder, given by its absolute path, as the warehouse.
    pub fn open(path: &Path, warehouse: &Path, storage: Storage) -> Result<Self, Problem> {
        Self::open_at(path, location_of(warehouse), storage)
    }

    /// Opens the file at `path`, or creates it with an empty catalog; tables get their places under `warehouse`.
    pub fn open_at(path: &Path, warehouse: String, storage: Storage) -> Result<Self, Problem> {
        let subject = path.display().to_string();
        let folder = local_path(&warehouse).ok();
        for folder in path.parent().into_iter().chain(folder.as_deref()) {
            let failed = |error| file_problem(&folder.display().to_string(), "created", &error);
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let connection = Connection::open(path).and_then(|connection| {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            set_up(&connection)?;
            Ok(connection)
        });
        let connection = connection.map_err(|error| sqlite_problem(&subject, &error))?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), path: subject, warehouse, storage })
    }

    /// Opens an existing catalog without creating or changing anything.
    pub fn open_existing(path: &Path, warehouse: String, storage: Storage) -> Result<Self, Problem> {
        if !path.exists() {
            let remedy = "start a pipeline first, or correct `path` in [catalog]";
            return Err(Problem::halt("CATALOG_MISSING", path.display().to_string(), "no catalog here", remedy));
        }
        Self::open_at(path, warehouse, storage)
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<rusqlite::Result<T>, Problem> {
        let connection = Arc::clone(&self.connection);
        // A statement that panicked left no transaction open: each is its own.
        let task =
            tokio::task::spawn_blocking(move || work(&connection.lock().unwrap_or_else(PoisonError::into_inner)));
        task.await.map_err(|_| Problem::retry("CATALOG", &self.path, "the catalog call was interrupted"))
    }

    async fn query<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        self.with(work).await?.map_err(|error| sqlite_problem(&self.path, &error))
    }
}

/// Of two that make the file at the same moment SQLite refuses one at once, whatever the timeout: the journal's mode is
/// changed under a lock that it does not wait for.
fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    const PAUSE: Duration = Duration::from_millis(10);
    let begun = Instant::now();
    loop {
        match connection.execute_batch(SETUP) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begun.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

const SETUP: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS iceberg_tables (
        catalog_name VARCHAR(255) NOT NULL,
        table_namespace VARCHAR(255) NOT NULL,
        table_name VARCHAR(255) NOT NULL,
        metadata_location VARCHAR(1000),
        previous_metadata_location VARCHAR(1000),
        iceberg_type VARCHAR(5),
        PRIMARY KEY (catalog_name, table_namespace, table_name));
    CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
        catalog_name VARCHAR(255) NOT NULL,
        namespace VARCHAR(255) NOT NULL,
        property_key VARCHAR(255),
        property_value VARCHAR(1000),
        PRIMARY KEY (catalog_name, namespace, property_key));";

#[async_trait]
impl Catalog for SqliteCatalog {
    async fn list(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Problem> {
        let namespace = namespace.map(str::to_owned);
        self.query(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT table_namespace, table_name FROM iceberg_tables
                 WHERE catalog_name = ?1 AND (?2 IS NULL OR table_namespace = ?2)
                   AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)
                 ORDER BY 1, 2",
            )?;
            let row = |row: &rusqlite::Row<'_>| Ok(TableName { namespace: row.get(0)?, name: row.get(1)? });
            statement.query_map(params![CATALOG_NAME, namespace], row)?.collect()
        })
        .await
    }

    async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem> {
        let wanted = name.clone();
        let location: Option<Option<String>> = self
            .query(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT metadata_location FROM iceberg_tables
                     WHERE catalog_name = ?1 AND table_namespace = ?2 AND table_name = ?3",
                )?;
                statement.query_row(params![CATALOG_NAME, wanted.namespace, wanted.name], |row| row.get(0)).optional()
            })
            .await?;
        match location.flatten() {
            None => Ok(None),
            Some(location) => match known {
                Some(known) if known.metadata_location == location => Ok(Some(known.clone())),
                _ => Ok(Some(MetadataFile::read(&self.storage, &location).await?.table(name, location))),
            },
        }
    }

    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem> {
        let subject = name.to_string();
        let location = format!("{}/{}/{}", self.warehouse, name.namespace, name.name);
        let file = MetadataFile::first(&self.storage, name, location, creation).await?;
        let (wanted, pointer) = (name.clone(), file.location.clone());
        let inserted = self
            .query(move |connection| {
                connection.execute(
                    "INSERT OR IGNORE INTO iceberg_namespace_properties VALUES (?1, ?2, 'exists', 'true')",
                    params![CATALOG_NAME, wanted.namespace],
                )?;
                connection.execute(
                    "INSERT OR IGNORE INTO iceberg_tables
                       (catalog_name, table_namespace, table_name, metadata_location, iceberg_type)
                     VALUES (?1, ?2, ?3, ?4, 'TABLE')",
                    params![CATALOG_NAME, wanted.namespace, wanted.name, pointer],
                )
            })
            .await?;
        if inserted == 1 {
            let token = file.location.clone();
            return Ok(file.table(name, token));
        }
        let existing = self.load(name, None).await?;
        existing.ok_or_else(|| Problem::retry("CATALOG", subject, "the table was dropped while it was created"))
    }

    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem> {
        let next = MetadataFile::next(&self.storage, base, updates).await?;
        let (name, old, new) = (base.name.clone(), base.token.clone(), next.location.clone());
        let swapped = self
            .with(move |connection| {
                let mut statement = connection.prepare_cached(
                    "UPDATE iceberg_tables SET metadata_location = ?4, previous_metadata_location = ?5
                     WHERE catalog_name = ?1 AND table_namespace = ?2 AND table_name = ?3 AND metadata_location = ?5",
                )?;
                statement.execute(params![CATALOG_NAME, name.namespace, name.name, new, old])
            })
            .await;
        Ok(match swapped {
            Ok(Ok(1)) => {
                let token = next.location.clone();
                Swap::Landed(next.table(&base.name, token))
            }
            Ok(Ok(_)) => Swap::Rejected,
            // Locked or full: the statement did not begin, or was rolled back as a whole.
            Ok(Err(error)) if before_effect(&error) => return Err(sqlite_problem(&self.path, &error)),
            Ok(Err(error)) => Swap::Unknown(error.to_string()),
            Err(problem) => Swap::Unknown(problem.message),
        })
    }
}

fn before_effect(error: &rusqlite::Error) -> bool {
    use ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, ReadOnly};
    let code = error.sqlite_error_code();
    code.is_some_and(|code| matches!(code, DatabaseBusy | DatabaseLocked | DiskFull | ReadOnly | CannotOpen))
}

fn sqlite_problem(path: &str, error: &rusqlite::Error) -> Problem {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Problem::retry("DISK_FULL", path, "the catalog's disk is full"),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            let remedy = "let the service's user read and write the file and its folder";
            Problem::halt("CATALOG_NOT_WRITABLE", path, format!("the catalog cannot be opened: {error}"), remedy)
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            let remedy = "restore the file from a backup, or correct `path` in [catalog]";
            Problem::halt("CATALOG_DAMAGED", path, format!("the file is not a sound SQLite catalog: {error}"), remedy)
        }
        _ => Problem::retry("CATALOG", path, format!("the catalog does not answer: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_many_make_at_the_same_moment_is_made_once_and_opens_for_all() {
        for _ in 0..40 {
            let folder = tempfile::tempdir().unwrap();
            let open = || {
                let (file, warehouse) = (folder.path().join("catalog.db"), folder.path().join("warehouse"));
                SqliteCatalog::open(&file, &warehouse, Storage::local()).map(drop)
            };
            std::thread::scope(|scope| {
                let openers: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
                openers.into_iter().for_each(|opener| opener.join().unwrap().unwrap());
            });
        }
    }
}
