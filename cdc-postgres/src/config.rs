//! What one pipeline knows of its database: already parsed, already checked for form. The file format is the binary's.

use std::collections::BTreeMap;

use lakehouse_core::schema::PartitionBy;

use crate::connection::ConnectionSettings;

/// A PostgreSQL database as the source of one pipeline.
#[derive(Clone, Debug)]
pub struct PostgresSource {
    pub pipeline: String,
    /// Iceberg namespace of the pipeline's tables.
    pub namespace: String,
    pub connection: ConnectionSettings,
    pub slot: String,
    pub publication: String,
    /// Patterns `schema.table`, `*` for any run of characters.
    pub tables: Vec<String>,
    pub exclude: Vec<String>,
    /// By the table's name at the source, `schema.table`.
    pub options: BTreeMap<String, TableOptions>,
    /// Keep histories, where a table does not say otherwise.
    pub history: bool,
    /// Connections that copy at the same time.
    pub copy_workers: usize,
    /// Bound of the pipeline's buffers, in bytes.
    pub memory: usize,
}

/// What the configuration says of one table.
#[derive(Clone, Debug, Default)]
pub struct TableOptions {
    /// Another name in the lake.
    pub name: Option<String>,
    pub partition: Vec<PartitionBy>,
    pub history: Option<bool>,
    /// Key columns, by their names at the source, instead of the replica identity's.
    pub key: Option<Vec<String>>,
    /// `time` columns as text, for engines that cannot read the type (files W12).
    pub time_as_string: bool,
    /// Other names in the lake, by the column's name at the source.
    pub column_names: BTreeMap<String, String>,
}
