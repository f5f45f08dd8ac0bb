//! What one pipeline knows of its tables: already parsed, already checked for form. The file format is the binary's.

use std::collections::BTreeMap;

use lakehouse_core::aws::AwsConfig;
use lakehouse_core::schema::PartitionBy;

/// DynamoDB tables of one region as the source of one pipeline.
#[derive(Clone, Debug)]
pub struct DynamodbSource {
    pub pipeline: String,
    /// Iceberg namespace of the pipeline's tables.
    pub namespace: String,
    /// Region, credentials, and where DynamoDB is if it is not Amazon's (`endpoint`).
    pub aws: AwsConfig,
    pub tables: Vec<String>,
    /// By the table's name.
    pub options: BTreeMap<String, TableOptions>,
    /// Keep histories, where a table does not say otherwise.
    pub history: bool,
    /// Segments that are scanned at the same time.
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
    /// Declared columns by attribute: their type as the configuration writes it.
    pub columns: BTreeMap<String, String>,
    /// Other names in the lake, by attribute.
    pub column_names: BTreeMap<String, String>,
}
