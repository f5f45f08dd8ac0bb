//! What one pipeline knows of its tables: already parsed, already checked for form. The file format is the binary's.

use std::collections::BTreeMap;
use std::time::Duration;

use lakehouse_core::aws::AwsConfig;
use lakehouse_core::schema::PartitionBy;

use crate::items::Mismatch;

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
    pub pace: Pace,
}

/// How often the service is asked.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Pause after a page without records; it doubles up to the longest (D24).
    pub first_idle: Duration,
    pub longest_idle: Duration,
    /// Between two listings of a stream's shards when nothing calls for one (D18).
    pub listing: Duration,
    /// The same after a shard has ended, until its children are found.
    pub eager_listing: Duration,
    /// Between two calls of DescribeStream, over all tables: the account has ten a second (D18).
    pub describing: Duration,
    /// How long a listing may lag behind the shards that it lists (D14, D17).
    pub listing_lag: Duration,
    /// How long records wait for company before they go on.
    pub linger: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_idle: Duration::from_millis(250),
            longest_idle: Duration::from_secs(5),
            listing: Duration::from_secs(30),
            eager_listing: Duration::from_secs(2),
            describing: Duration::from_millis(150),
            listing_lag: Duration::from_secs(60),
            // A quarter of the shortest commit interval.
            linger: Duration::from_millis(250),
        }
    }
}

/// What the configuration says of one table.
#[derive(Clone, Debug, Default)]
pub struct TableOptions {
    /// Another name in the lake.
    pub name: Option<String>,
    pub partition: Vec<PartitionBy>,
    pub history: Option<bool>,
    /// The key as the user knows it; another than the table has is refused (D3).
    pub key: Option<Vec<String>>,
    /// Declared columns by attribute: their type as the configuration writes it.
    pub columns: BTreeMap<String, String>,
    /// What to do with values that are not of their column's type, by attribute.
    pub mismatch: BTreeMap<String, Mismatch>,
    /// Other names in the lake, by attribute.
    pub column_names: BTreeMap<String, String>,
}
