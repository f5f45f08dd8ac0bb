//! `[maintenance]`: who has which duty of which table, how often we look, and by which measures.
//!
//! A table's section is read over the general one, so what stands here is whole: nobody looks in two places.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lakehouse_core::catalog::{ManagedJobs, ManagedTables};
use lakehouse_core::schema::TableName;
use maintenance::budget::{Budget, Budgets};
use maintenance::clean;
use maintenance::expire::Retention;
use maintenance::plan::{Order, Targets};
use maintenance::run::Settings;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::layers::Section;
use super::units::{Bytes, Span};
use crate::failure::Failure;

/// A read that is under way may need its snapshot for so long (`maintenance.md` M-6).
const LEAST_WINDOW: Duration = Duration::from_secs(3_600);

#[derive(Clone, Debug, Serialize)]
pub(crate) struct MaintenanceConfig {
    pub(crate) every: Span,
    pub(crate) local_state: PathBuf,
    pub(crate) spark: SparkConfig,
    /// Of tables without a section of their own.
    #[serde(flatten)]
    general: TableMaintenance,
    #[serde(serialize_with = "by_name")]
    tables: BTreeMap<TableName, TableMaintenance>,
}

/// How one table is maintained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct TableMaintenance {
    pub(crate) owner: Owners,
    target_file_size: Bytes,
    small_files: u64,
    deleted_share: f64,
    read_cost_share: f64,
    quiet_after: Span,
    cold_after: Span,
    /// Columns by which rows are sorted, or along whose Z-curve; of a table's section only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sort_by: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    zorder_by: Vec<String>,
    dense_window: Span,
    min_snapshots: u64,
    hourly_tags: Span,
    daily_tags: Span,
    orphan_age: Span,
    /// What compaction may read in an hour; without a bound where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_hour: Option<Bytes>,
    /// And of it, for readers' sake alone.
    read_cost_bytes_per_hour: Bytes,
}

/// Who has each duty of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Owners {
    pub(crate) compact: Owner,
    pub(crate) expire: Owner,
    pub(crate) clean: Owner,
}

/// An engine that may have a duty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Owner {
    #[serde(rename = "self")]
    Ours,
    S3Tables,
    Spark,
    None,
}

/// How statements reach Spark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct SparkConfig {
    /// What Spark calls our catalog.
    pub(crate) catalog: String,
    /// A program and its arguments; a file with the statements is added. Empty: statements are only printed.
    pub(crate) command: Vec<String>,
    /// The longest that it may take.
    pub(crate) timeout: Span,
}

const OWNERS: [(&str, Owner); 4] =
    [("self", Owner::Ours), ("s3-tables", Owner::S3Tables), ("spark", Owner::Spark), ("none", Owner::None)];

impl Owner {
    pub(crate) fn as_str(self) -> &'static str {
        OWNERS.iter().find(|(_, owner)| *owner == self).map_or("none", |(word, _)| word)
    }
}

impl Owners {
    fn all(owner: Owner) -> Self {
        Self { compact: owner, expire: owner, clean: owner }
    }

    pub(crate) fn has(self, owner: Owner) -> bool {
        [self.compact, self.expire, self.clean].contains(&owner)
    }
}

impl MaintenanceConfig {
    /// How a table is maintained.
    pub(crate) fn of(&self, table: &TableName) -> &TableMaintenance {
        self.tables.get(table).unwrap_or(&self.general)
    }

    /// Tables that have a section with a bound on what compaction reads in an hour.
    pub(crate) fn own_budgets(&self) -> impl Iterator<Item = (&TableName, Budgets)> {
        let general = &self.general;
        let own = self.tables.iter().filter(|(_, table)| {
            table.bytes_per_hour.is_some() || table.read_cost_bytes_per_hour != general.read_cost_bytes_per_hour
        });
        own.map(|(name, table)| (name, table.budgets(table.bytes_per_hour.or(general.bytes_per_hour))))
    }

    /// What compaction of all other tables may read.
    pub(crate) fn budgets(&self) -> Budgets {
        self.general.budgets(self.general.bytes_per_hour)
    }

    /// Somebody has a duty that we do, give away or watch.
    pub(crate) fn is_wanted(&self) -> bool {
        let idle = Owners::all(Owner::None);
        self.all().any(|table| table.owner != idle)
    }

    /// The duties that S3 Tables' own jobs have.
    pub(crate) fn managed(&self) -> ManagedTables {
        let tables = self.tables.iter().map(|(name, table)| (name.clone(), table.owner.managed()));
        ManagedTables { jobs: self.general.owner.managed(), tables: tables.collect() }
    }

    /// Some duty is S3 Tables' own jobs'.
    pub(super) fn uses_managed_jobs(&self) -> bool {
        self.all().any(|table| table.owner.has(Owner::S3Tables))
    }

    fn all(&self) -> impl Iterator<Item = &TableMaintenance> {
        self.tables.values().chain([&self.general])
    }
}

impl Owners {
    fn managed(self) -> ManagedJobs {
        ManagedJobs { compaction: self.compact == Owner::S3Tables, snapshots: self.expire == Owner::S3Tables }
    }
}

impl TableMaintenance {
    pub(crate) fn quiet_after(&self) -> Duration {
        self.quiet_after.0
    }

    fn budgets(&self, all: Option<Bytes>) -> Budgets {
        Budgets {
            all: Budget::per_hour(all.map(|bytes| bytes.0)),
            read_cost: Budget::per_hour(Some(self.read_cost_bytes_per_hour.0)),
        }
    }

    /// The duties of one owner, and by which measures. Checkpoints are tagged by us for whoever expires.
    pub(crate) fn settings(&self, owner: Owner) -> Settings {
        let tags = |expires: Owner| matches!(expires, Owner::S3Tables | Owner::Spark);
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Settings {
            compact: self.owner.compact == owner,
            // The service's job leaves them behind.
            drop_dangling: owner == Owner::Ours && matches!(self.owner.compact, Owner::Ours | Owner::S3Tables),
            by_position: owner == Owner::Ours && self.owner.compact != Owner::None,
            expire: self.owner.expire == owner,
            tag: owner == Owner::Ours && tags(self.owner.expire),
            clean: self.owner.clean == owner,
            targets: Targets {
                file_bytes: self.target_file_size.0,
                fan: count(self.small_files),
                deleted_share: self.deleted_share,
                // A job of another engine for so little would cost more than it saves.
                read_cost_share: if owner == Owner::Ours { self.read_cost_share } else { 1.0 },
                quiet_after: self.quiet_after.0,
                cold_after: self.cold_after.0,
                order: self.order(),
            },
            retention: Retention {
                dense: self.dense_window.0,
                min_snapshots: count(self.min_snapshots),
                hourly: self.hourly_tags.0,
                daily: self.daily_tags.0,
            },
            orphan_age: self.orphan_age.0,
        }
    }
}

impl TableMaintenance {
    fn order(&self) -> Order {
        match (self.sort_by.is_empty(), self.zorder_by.is_empty()) {
            (false, _) => Order::Sorted(self.sort_by.clone()),
            (true, false) => Order::ZOrder(self.zorder_by.clone()),
            (true, true) => Order::AsWritten,
        }
    }
}

/// What counts where nothing is said.
fn defaults() -> TableMaintenance {
    let Settings { targets, retention, orphan_age, .. } = Settings::default();
    TableMaintenance {
        owner: Owners::all(Owner::Ours),
        target_file_size: Bytes(targets.file_bytes),
        small_files: targets.fan as u64,
        deleted_share: targets.deleted_share,
        read_cost_share: targets.read_cost_share,
        quiet_after: Span(targets.quiet_after),
        cold_after: Span(targets.cold_after),
        sort_by: Vec::new(),
        zorder_by: Vec::new(),
        dense_window: Span(retention.dense),
        min_snapshots: retention.min_snapshots as u64,
        hourly_tags: Span(retention.hourly),
        daily_tags: Span(retention.daily),
        orphan_age: Span(orphan_age),
        bytes_per_hour: None,
        read_cost_bytes_per_hour: Bytes(10 << 30),
    }
}

/// Reads the section; `{root}.maintenance` may be absent.
pub(super) fn maintenance(root: &Section<'_>) -> Result<MaintenanceConfig, Failure> {
    let section = root.section("maintenance")?;
    let general = table(&section, &defaults())?;
    let every = section.parsed("every")?.unwrap_or(Span(Duration::from_secs(60)));
    let local_state = section.path("local_state")?.unwrap_or_else(|| section.resolved("state"));
    let spark = spark(&section.section("spark")?)?;
    let mut tables = BTreeMap::new();
    for (name, own) in section.sections("tables")? {
        let over = TableMaintenance { bytes_per_hour: None, ..general.clone() };
        let sort_by = own.list("sort_by")?.unwrap_or_default();
        let zorder_by = own.list("zorder_by")?.unwrap_or_default();
        if !sort_by.is_empty() && !zorder_by.is_empty() {
            return Err(own.invalid("zorder_by", "rows cannot have two orders", "keep sort_by or zorder_by"));
        }
        let read = TableMaintenance { sort_by, zorder_by, ..table(&own, &over)? };
        own.finish()?;
        let wrong = |_| own.wrong_name("write namespace.table, as `lakehouse tables` lists it");
        tables.insert(name.parse::<TableName>().map_err(wrong)?, read);
    }
    section.finish()?;
    if every.0.is_zero() {
        return Err(section.invalid("every", "no time between runs", "choose 1s or more"));
    }
    Ok(MaintenanceConfig { every, local_state, spark, general, tables })
}

/// The keys of a table, over what counts without them.
fn table(section: &Section<'_>, over: &TableMaintenance) -> Result<TableMaintenance, Failure> {
    let read = TableMaintenance {
        owner: owners(section, over.owner)?,
        target_file_size: section.parsed("target_file_size")?.unwrap_or(over.target_file_size),
        small_files: section.number_within("small_files", 2, 10_000)?.unwrap_or(over.small_files),
        deleted_share: section.share("deleted_share")?.unwrap_or(over.deleted_share),
        read_cost_share: section.share("read_cost_share")?.unwrap_or(over.read_cost_share),
        quiet_after: section.parsed("quiet_after")?.unwrap_or(over.quiet_after),
        cold_after: section.parsed("cold_after")?.unwrap_or(over.cold_after),
        dense_window: section.parsed("dense_window")?.unwrap_or(over.dense_window),
        min_snapshots: section.number_within("min_snapshots", 1, 100_000)?.unwrap_or(over.min_snapshots),
        hourly_tags: section.parsed("hourly_tags")?.unwrap_or(over.hourly_tags),
        daily_tags: section.parsed("daily_tags")?.unwrap_or(over.daily_tags),
        orphan_age: section.parsed("orphan_age")?.unwrap_or(over.orphan_age),
        bytes_per_hour: section.parsed("bytes_per_hour")?.or(over.bytes_per_hour),
        read_cost_bytes_per_hour: section.parsed("read_cost_bytes_per_hour")?.unwrap_or(over.read_cost_bytes_per_hour),
        ..over.clone()
    };
    let size = read.target_file_size;
    if !(1 << 20..=4 << 30).contains(&size.0) {
        return Err(section.invalid("target_file_size", format!("{size} is out of range"), "choose from 1MiB to 4GiB"));
    }
    if read.dense_window.0 < LEAST_WINDOW {
        let message = format!("{} is less than a running read may need", read.dense_window);
        return Err(section.invalid("dense_window", message, "choose 1h or more"));
    }
    if read.orphan_age.0 < clean::FLOOR {
        let message = format!("{}: a file so young may still be committed", read.orphan_age);
        return Err(section.invalid("orphan_age", message, "choose 24h or more"));
    }
    if read.bytes_per_hour.is_some_and(|bytes| bytes.0 < 1 << 20) {
        let remedy = "allow 1MiB or more; `owner = { compact = \"none\" }` switches compaction off";
        return Err(section.invalid("bytes_per_hour", "too little to compact anything", remedy));
    }
    if read.read_cost_bytes_per_hour.0 < 1 << 20 {
        let remedy = "allow 1MiB or more; `read_cost_share = 1` compacts nothing for readers' sake alone";
        return Err(section.invalid("read_cost_bytes_per_hour", "too little to compact anything", remedy));
    }
    Ok(read)
}

/// One word for all duties, or one for each.
fn owners(section: &Section<'_>, over: Owners) -> Result<Owners, Failure> {
    match section.section("owner") {
        Ok(duties) if section.has("owner") => {
            let owners = Owners {
                compact: duties.word("compact", &OWNERS)?.unwrap_or(over.compact),
                expire: duties.word("expire", &OWNERS)?.unwrap_or(over.expire),
                clean: duties.word("clean", &OWNERS)?.unwrap_or(over.clean),
            };
            duties.finish()?;
            Ok(owners)
        }
        _ => Ok(section.word("owner", &OWNERS)?.map_or(over, Owners::all)),
    }
}

fn spark(section: &Section<'_>) -> Result<SparkConfig, Failure> {
    let catalog = section.text("catalog")?.unwrap_or_else(|| "lakehouse".to_owned());
    let command = section.list("command")?.unwrap_or_default();
    let timeout = section.parsed("timeout")?.unwrap_or(Span(Duration::from_secs(3_600)));
    section.finish()?;
    if command.first().is_some_and(|program| program.trim().is_empty()) {
        let remedy = "write a program and its arguments, such as [\"spark-sql\", \"-f\"]";
        return Err(section.invalid("command", "the program has no name", remedy));
    }
    if timeout.0.is_zero() {
        return Err(section.invalid("timeout", "no time to run", "choose 1s or more"));
    }
    Ok(SparkConfig { catalog, command, timeout })
}

fn by_name<S: Serializer>(tables: &BTreeMap<TableName, TableMaintenance>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(tables.iter().map(|(name, table)| (name.to_string(), table)))
}
