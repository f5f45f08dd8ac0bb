//! What the committer asks of a catalog: a pointer to metadata that moves by compare-and-swap.
//!
//! Planning, looking after a lost answer and retrying are the committer's (`commit.rs`), never a catalog's.

mod rest;
mod routed;
mod s3_tables;
mod sqlite;

use std::iter::successors;
use std::sync::Arc;

use async_trait::async_trait;
use iceberg::spec::{SnapshotRef, TableMetadata, TableMetadataBuilder};
use iceberg::{MetadataLocation, TableCreation, TableUpdate};

use crate::error::Problem;
use crate::schema::TableName;
use crate::storage::{Storage, iceberg_problem};

pub use rest::{RestCatalog, RestConfig};
pub use routed::{Route, RoutedCatalog};
pub use s3_tables::{ManagedJobs, ManagedTables, S3TablesCatalog};
pub use sqlite::SqliteCatalog;

/// How a compressed metadata file begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// One state of a table, and the token that the catalog compares at the swap (protocol "Token").
#[derive(Clone, Debug)]
pub struct LoadedTable {
    pub name: TableName,
    pub metadata: Arc<TableMetadata>,
    /// Where the metadata file stands.
    pub metadata_location: String,
    /// Length of its text.
    pub metadata_bytes: u64,
    pub token: String,
}

impl LoadedTable {
    pub fn property(&self, key: &str) -> Option<&str> {
        self.metadata.properties().get(key).map(String::as_str)
    }

    /// The current snapshot's id; `None` for a table without commits.
    pub fn snapshot_id(&self) -> Option<i64> {
        self.metadata.current_snapshot_id()
    }

    /// The current snapshot and those that it has come from, newest first, as far as they are kept.
    pub fn ancestry(&self) -> impl Iterator<Item = &SnapshotRef> {
        let parent = |snapshot: &&SnapshotRef| self.metadata.snapshot_by_id(snapshot.parent_snapshot_id()?);
        // A line longer than all snapshots is a circle, which no table has.
        successors(self.metadata.current_snapshot(), parent).take(self.metadata.snapshots().len())
    }
}

/// What is known after one attempt to commit (protocol B6). An `Err` beside it means that nothing was sent.
#[derive(Debug)]
pub enum Swap {
    Landed(LoadedTable),
    /// The catalog said no: the table has moved.
    Rejected,
    /// No answer, or none that can be understood. It may have landed, or may land later.
    Unknown(String),
}

#[async_trait]
pub trait Catalog: Send + Sync {
    /// All tables of a namespace, sorted; of the whole catalog when `namespace` is `None`.
    async fn list(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Problem>;

    /// The table as it stands. `known` spares reading metadata that has not moved. `None` if there is no such table.
    async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem>;

    /// Creates the table, or returns the one that another process has created meanwhile.
    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem>;

    /// One attempt with the token of `base`, sent once (protocol B4, B5).
    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem>;

    /// Refuses a name that the catalog would refuse, before anything is asked.
    fn check_name(&self, _: &TableName) -> Result<(), Problem> {
        Ok(())
    }

    /// True where the service alone lists and removes files, and refuses both to everybody else.
    fn removes_files(&self) -> bool {
        false
    }

    /// Refuses a table that somebody else's managed jobs would commit to beside us (protocol D, `MAINTENANCE_OWNER`).
    async fn check_owner(&self, _: &TableName) -> Result<(), Problem> {
        Ok(())
    }
}

/// A metadata file that is durable.
struct MetadataFile {
    metadata: Arc<TableMetadata>,
    location: String,
    bytes: u64,
}

impl MetadataFile {
    async fn read(storage: &Storage, location: &str) -> Result<Self, Problem> {
        let failed = |error: iceberg::Error| iceberg_problem(location, "read", &error);
        let text = storage.io().new_input(location).map_err(failed)?.read().await.map_err(failed)?;
        let metadata = match text.starts_with(&GZIP) {
            // Another engine's: the library unpacks it.
            true => TableMetadata::read_from(storage.io(), location).await.map_err(failed)?,
            false => serde_json::from_slice(&text).map_err(|error| failed(error.into()))?,
        };
        Ok(Self { metadata: Arc::new(metadata), location: location.to_owned(), bytes: text.len() as u64 })
    }

    /// The first metadata of a new table, under `location`.
    async fn first(
        storage: &Storage,
        name: &TableName,
        location: String,
        creation: TableCreation,
    ) -> Result<Self, Problem> {
        let creation = TableCreation { location: Some(location.clone()), ..creation };
        let built = TableMetadataBuilder::from_table_creation(creation).and_then(TableMetadataBuilder::build);
        let metadata = built.map_err(|error| iceberg_problem(&name.to_string(), "built", &error))?.metadata;
        let file = MetadataLocation::new_with_metadata(&location, &metadata);
        Self::write(storage, name, metadata, &file).await
    }

    /// Applies `updates` to `base`, and writes what comes of it: all of a commit but the swap.
    async fn next(storage: &Storage, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Self, Problem> {
        let subject = base.name.to_string();
        let invalid = |error: iceberg::Error| iceberg_problem(&subject, "built", &error);
        let mut builder = TableMetadata::clone(&base.metadata).into_builder(Some(base.metadata_location.clone()));
        for update in updates {
            builder = update.apply(builder).map_err(invalid)?;
        }
        let metadata = builder.build().map_err(invalid)?.metadata;
        let previous: MetadataLocation = base.metadata_location.parse().map_err(invalid)?;
        let location = previous.with_next_version().with_new_metadata(&metadata);
        Self::write(storage, &base.name, metadata, &location).await
    }

    async fn write(
        storage: &Storage,
        name: &TableName,
        metadata: TableMetadata,
        location: &MetadataLocation,
    ) -> Result<Self, Problem> {
        let failed = |error: iceberg::Error| iceberg_problem(&name.to_string(), "written", &error);
        let text = metadata_text(&metadata).map_err(|error| failed(error.into()))?;
        let (location, bytes) = (location.to_string(), text.len() as u64);
        storage.io().new_output(&location).map_err(failed)?.write(text.into()).await.map_err(failed)?;
        storage.make_durable(vec![location.clone()]).await?;
        Ok(Self { metadata: Arc::new(metadata), location, bytes })
    }

    fn table(self, name: &TableName, token: String) -> LoadedTable {
        LoadedTable {
            name: name.clone(),
            metadata: self.metadata,
            metadata_location: self.location,
            metadata_bytes: self.bytes,
            token,
        }
    }
}

/// The metadata as JSON. A table without snapshots has the current one -1, as some engines insist (files W9); the library
/// leaves it out.
fn metadata_text(metadata: &TableMetadata) -> serde_json::Result<Vec<u8>> {
    if metadata.current_snapshot_id().is_some() {
        return serde_json::to_vec(metadata);
    }
    let mut text = serde_json::to_value(metadata)?;
    text["current-snapshot-id"] = (-1).into();
    serde_json::to_vec(&text)
}
