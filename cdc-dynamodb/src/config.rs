//! What one pipeline knows of its tables: already parsed, already checked for form. The file format is the binary's.

use std::collections::BTreeMap;
use std::time::Duration;

use lakehouse_core::aws::AwsConfig;
use lakehouse_core::quarantine::QuarantineLimit;
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
    pub settings: Settings,
}

/// What a pipeline may say and need not.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What to do about changes that a stream no longer has, where a table does not say otherwise.
    pub on_gap: OnGap,
    /// How tables are copied, where they do not say otherwise.
    pub copy: CopyRoad,
    /// Where exports go; needed by whoever asks for one.
    pub exports: Option<ExportPlace>,
    /// Workers take turns by leases in a table.
    pub lease: Option<LeaseSettings>,
    /// Read capacity units a second that the copies of the pipeline may take.
    pub copy_read_units: Option<u32>,
}

/// What to do about changes that a stream no longer has (D28).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnGap {
    /// The table leaves the cut and waits for a person.
    #[default]
    Fail,
    /// An incremental export of point-in-time recovery closes the gap.
    IncrementalExport,
    /// The table is copied again.
    Resync,
}

/// What a deletion by time to live does to the mirror. The history has it in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TtlDeletes {
    /// What a client's does.
    #[default]
    Delete,
    /// Nothing: the row stays as it last was.
    Keep,
}

/// How a table is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyRoad {
    /// By a scan in parallel segments.
    #[default]
    Scan,
    /// By an export of point-in-time recovery, which costs the table no read capacity.
    Export,
}

/// Where exports go, and how they are waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportPlace {
    pub bucket: String,
    /// Of the keys, without a slash at its end.
    pub prefix: Option<String>,
    /// How far this machine's clock may be behind the service's: an export reaches so much further than the clock says.
    pub margin: Duration,
    /// Between two looks at an export that runs.
    pub poll: Duration,
}

impl ExportPlace {
    pub fn new(bucket: impl Into<String>, prefix: Option<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix,
            // A request that is signed by a clock further off is refused.
            margin: Duration::from_secs(300),
            poll: Duration::from_secs(15),
        }
    }
}

/// The table of the leases, which exists, with the hash key `lease` of type S.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSettings {
    pub table: String,
    /// A lease that is not renewed for so long is taken over.
    pub duration: Duration,
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
    /// How long a segment of a copy is scanned before what it has brought is committed: what a crash costs (D6).
    pub copy_chunk: Duration,
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
            copy_chunk: Duration::from_secs(300),
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
    /// What to do with values that are not of their column's type, by attribute; and where no attribute says.
    pub mismatch: BTreeMap<String, Mismatch>,
    pub default_mismatch: Mismatch,
    /// What the quarantine takes, where values send items there.
    pub quarantine_limit: QuarantineLimit,
    /// Other names in the lake, by attribute.
    pub column_names: BTreeMap<String, String>,
    pub on_gap: Option<OnGap>,
    pub copy: Option<CopyRoad>,
    /// Items that the service deletes because their time has come (D42).
    pub ttl_deletes: TtlDeletes,
    /// Declare columns from what the first so many items hold (D54).
    pub infer_items: Option<u32>,
}

impl DynamodbSource {
    /// What to do about a gap of a table.
    pub(crate) fn on_gap(&self, table: &str) -> OnGap {
        self.options.get(table).and_then(|options| options.on_gap).unwrap_or(self.settings.on_gap)
    }

    /// Whether the mirror keeps what has outlived its time at the source.
    pub(crate) fn keeps_expired(&self, table: &str) -> bool {
        self.options.get(table).is_some_and(|options| options.ttl_deletes == TtlDeletes::Keep)
    }

    /// How a table is copied.
    pub(crate) fn copy_road(&self, table: &str) -> CopyRoad {
        self.options.get(table).and_then(|options| options.copy).unwrap_or(self.settings.copy)
    }
}
