//! The configuration (`design/interface.md` section 3): what each key means, its default and its bounds.
//!
//! Parsed once, as a whole, into values that cannot be wrong; what a verb needs of them it gets as settings of the core
//! or of a source. Layers and key names are `config/layers.rs`. Secrets are references until the moment of use.

mod api;
mod audit;
mod grant;
mod layers;
mod maintenance;
mod oidc;
mod secret;
mod tls;
mod units;

use std::collections::BTreeMap;
use std::path::PathBuf;

use cdc_dynamodb::config::{CopyRoad, DynamodbSource, ExportPlace, LeaseSettings, OnGap, Pace, Settings, TtlDeletes};
use cdc_dynamodb::items::Mismatch;
use cdc_postgres::config::{PostgresSource, TableOptions};
use cdc_postgres::connection::{ChannelBinding, ConnectionSettings, Secret, Tls};
use lakehouse_core::aws::AwsConfig;
use lakehouse_core::commit::{CONTROL_NAMESPACE, RUNS_TABLE};
use lakehouse_core::lakehouse::ROLLBACK_TAGS;
use lakehouse_core::pipeline::Limits;
use lakehouse_core::planted::Planted;
use lakehouse_core::quarantine::QuarantineLimit;
use lakehouse_core::schema::{PartitionBy, lake_name};
use serde::Serialize;
use std::time::Duration;

pub(crate) use self::api::{ApiConfig, TokenConfig};
pub(crate) use self::audit::AuditConfig;
pub(crate) use self::grant::{Grant, Role, Scope};
pub(crate) use self::maintenance::{MaintenanceConfig, Owner, Owners, SparkConfig};
pub(crate) use self::oidc::OidcConfig;
pub(crate) use self::tls::TlsConfig;
use crate::failure::Failure;
use crate::nearest::nearest;
use crate::source::Source;
pub(crate) use layers::Sources;
use layers::{Entry, Layers, Section, check_name};
pub(crate) use secret::SecretReference;
use units::Bytes;
pub(crate) use units::Span;

/// Pace of cuts when only the source's position moves (protocol C9).
const IDLE_CUTS: Duration = Duration::from_secs(10);
/// The same for DynamoDB.
const IDLE_DYNAMODB_CUTS: Duration = Duration::from_secs(60);
/// Parts of a pipeline's memory: a batch being collected, one being written, and two for the source and its decoding.
const MEMORY_PARTS: usize = 4;

/// A whole configuration, sound in itself. Printing it shows references to secrets, never secrets.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Config {
    pub(crate) catalog: CatalogConfig,
    pub(crate) pipelines: BTreeMap<String, PipelineConfig>,
    pub(crate) maintenance: MaintenanceConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api: Option<ApiConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit: Option<AuditConfig>,
}

/// Which catalog, and what its clients need.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum CatalogConfig {
    Sqlite {
        path: PathBuf,
        warehouse: String,
        endpoints: Endpoints,
    },
    S3Tables {
        table_bucket: Option<String>,
        endpoints: Endpoints,
    },
    Rest {
        uri: String,
        warehouse: Option<String>,
        credential: Option<SecretReference>,
        sigv4: bool,
        endpoints: Endpoints,
    },
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Endpoints {
    region: Option<String>,
    endpoint: Option<String>,
    s3_endpoint: Option<String>,
}

/// One pipeline: where its tables go, and how.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PipelineConfig {
    pub(crate) namespace: String,
    commit_interval_seconds: u64,
    history: bool,
    pub(crate) local_state: PathBuf,
    memory: Bytes,
    /// How long a table keeps the tags of a rollback that holds it no more.
    pub(crate) rollback_tags: Span,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) table_bucket: Option<String>,
    #[serde(flatten)]
    pub(crate) source: SourceConfig,
    tables: BTreeMap<String, TableConfig>,
}

/// Which source, and what its connection needs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SourceConfig {
    Postgres(PostgresConfig),
    Dynamodb(DynamodbConfig),
}

impl SourceConfig {
    /// The word that scripts see.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Dynamodb(_) => "dynamodb",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct PostgresConfig {
    host: String,
    port: u16,
    database: String,
    user: String,
    password: Option<SecretReference>,
    tls: TlsMode,
    root_certificate: Option<PathBuf>,
    channel_binding: Binding,
    connect_timeout: Span,
    slot: String,
    publication: String,
    tables: Vec<String>,
    exclude: Vec<String>,
    copy_workers: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum TlsMode {
    VerifyFull,
    VerifyCa,
    Disable,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Binding {
    Prefer,
    Require,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct DynamodbConfig {
    region: Option<String>,
    endpoint: Option<String>,
    tables: Vec<String>,
    copy_workers: u64,
    idle_cut_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    s3_endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    export_bucket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    export_prefix: Option<String>,
    copy: Copying,
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_read_units: Option<u64>,
    on_gap: GapPolicy,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_table: Option<String>,
    lease_seconds: u64,
}

/// How a DynamoDB table is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Copying {
    Scan,
    Export,
}

const COPYING: [(&str, Copying); 2] = [("scan", Copying::Scan), ("export", Copying::Export)];

/// What to do about changes that a stream no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum GapPolicy {
    Fail,
    IncrementalExport,
    Resync,
}

const GAP_POLICIES: [(&str, GapPolicy); 3] =
    [("fail", GapPolicy::Fail), ("incremental_export", GapPolicy::IncrementalExport), ("resync", GapPolicy::Resync)];

/// What a deletion by time to live does to the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Expiry {
    Keep,
    Delete,
}

/// What to do with a value that is not of its column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum MismatchPolicy {
    Rest,
    Fail,
    Quarantine,
}

const MISMATCHES: [(&str, MismatchPolicy); 3] =
    [("rest", MismatchPolicy::Rest), ("fail", MismatchPolicy::Fail), ("quarantine", MismatchPolicy::Quarantine)];

/// What the configuration says of one source table.
#[derive(Clone, Debug, Serialize)]
struct TableConfig {
    name: Option<String>,
    /// Checked; kept as it was written.
    partition: Vec<String>,
    key: Option<Vec<String>>,
    history: Option<bool>,
    time_as_string: bool,
    #[serde(flatten)]
    items: ItemsConfig,
    columns: BTreeMap<String, ColumnConfig>,
}

/// What the configuration says of a DynamoDB table alone.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct ItemsConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<Copying>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_gap: Option<GapPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mismatch: Option<MismatchPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantine_rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantine_percent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_deletes: Option<Expiry>,
    /// Items that columns are inferred from, where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    infer_items: Option<u32>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct ColumnConfig {
    name: Option<String>,
    #[serde(rename = "type")]
    data_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mismatch: Option<MismatchPolicy>,
    policy: Option<Policy>,
    key: Option<SecretReference>,
}

/// What happens to personal data before it is written anywhere.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Policy {
    Drop,
    Hash,
    Mask,
    Tokenise,
    Encrypt,
}

impl Endpoints {
    pub(crate) fn aws(&self) -> AwsConfig {
        let Self { region, endpoint, s3_endpoint } = self.clone();
        AwsConfig { region, endpoint, s3_endpoint, credentials: None }
    }
}

impl Config {
    /// Reads and checks everything. Nothing outside the file is looked at: no secret, no network.
    ///
    /// # Errors
    /// Codes that begin with `CONFIG_`, all of them usage.
    pub(crate) fn load(sources: &Sources<'_>) -> Result<Self, Failure> {
        let layers = Layers::read(sources)?;
        let root = layers.root();
        let catalog = catalog(&root.section("catalog")?)?;
        let mut pipelines = BTreeMap::new();
        for (name, section) in root.sections("pipelines")? {
            check_name(&name, || section.here())?;
            check_pipeline_name(&name, &section)?;
            pipelines.insert(name.clone(), pipeline(&name, &section)?);
        }
        let maintenance = self::maintenance::maintenance(&root)?;
        let api = if root.has("api") { Some(self::api::api(&root.section("api")?, &catalog)?) } else { None };
        let audit = if root.has("audit") { Some(self::audit::audit(&root.section("audit")?)?) } else { None };
        root.finish()?;
        one_worker_per_slot(&root, &pipelines)?;
        managed_jobs_have_a_service(&root, &catalog, &maintenance)?;
        Ok(Self { catalog, pipelines, maintenance, api, audit })
    }

    /// A pipeline by name.
    ///
    /// # Errors
    /// `PIPELINE_UNKNOWN`, with the nearest name.
    pub(crate) fn pipeline(&self, name: &str) -> Result<&PipelineConfig, Failure> {
        self.pipelines.get(name).ok_or_else(|| {
            let remedy = match nearest(name, self.pipelines.keys().map(String::as_str)) {
                Some(known) => format!("the nearest one is {known}; `lakehouse status` lists all"),
                None => "add [pipelines.NAME] to the configuration".to_owned(),
            };
            Failure::usage("PIPELINE_UNKNOWN", name, "no such pipeline in the configuration", remedy)
        })
    }

    /// The names in `wanted`, or all; at least one.
    ///
    /// # Errors
    /// `PIPELINE_UNKNOWN`; `CONFIG_NO_PIPELINE` if there is none at all.
    pub(crate) fn choose(&self, wanted: &[String]) -> Result<BTreeMap<&str, &PipelineConfig>, Failure> {
        let mut chosen = BTreeMap::new();
        for name in wanted {
            self.pipeline(name)?;
        }
        let all = self.pipelines.iter().map(|(name, pipeline)| (name.as_str(), pipeline));
        chosen.extend(all.filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name)));
        match chosen.is_empty() {
            true => {
                let remedy = "add [pipelines.NAME] with a source to the configuration";
                Err(Failure::usage("CONFIG_NO_PIPELINE", "pipelines", "no pipeline is configured", remedy))
            }
            false => Ok(chosen),
        }
    }

    /// The pipeline that is meant: the named one, or the only one.
    ///
    /// # Errors
    /// As [`Config::choose`], and `PIPELINE_AMBIGUOUS`.
    pub(crate) fn choose_one(&self, wanted: Option<&str>) -> Result<(&str, &PipelineConfig), Failure> {
        let wanted: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
        let mut chosen = self.choose(&wanted)?;
        match (chosen.pop_first(), chosen.is_empty()) {
            (Some(one), true) => Ok(one),
            _ => {
                let names = self.pipelines.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let remedy = format!("name one of {names} with --pipeline");
                Err(Failure::usage("PIPELINE_AMBIGUOUS", "--pipeline", "more than one pipeline is configured", remedy))
            }
        }
    }
}

impl PipelineConfig {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            interval: Duration::from_secs(self.commit_interval_seconds),
            bytes: self.memory() / MEMORY_PARTS,
            idle_interval: match &self.source {
                SourceConfig::Postgres(_) => IDLE_CUTS,
                SourceConfig::Dynamodb(dynamodb) => Duration::from_secs(dynamodb.idle_cut_seconds),
            },
            planted: Planted::none(),
        }
    }

    fn memory(&self) -> usize {
        usize::try_from(self.memory.0).unwrap_or(usize::MAX)
    }

    /// The source with its secrets as they stand now.
    ///
    /// # Errors
    /// `NOT_YET`, `SECRET_UNREADABLE`, `SECRET_UNSUPPORTED`.
    pub(crate) fn source(&self, name: &str) -> Result<Source, Failure> {
        match &self.source {
            SourceConfig::Postgres(postgres) => self.postgres_source(name, postgres).map(Source::Postgres),
            SourceConfig::Dynamodb(dynamodb) => self.dynamodb_source(name, dynamodb).map(Source::Dynamodb),
        }
    }

    fn dynamodb_source(&self, name: &str, dynamodb: &DynamodbConfig) -> Result<DynamodbSource, Failure> {
        let options = self.tables.iter().map(|(name, table)| Ok((name.clone(), table.item_options(name)?)));
        Ok(DynamodbSource {
            pipeline: name.to_owned(),
            namespace: self.namespace.clone(),
            aws: AwsConfig {
                region: dynamodb.region.clone(),
                endpoint: dynamodb.endpoint.clone(),
                s3_endpoint: dynamodb.s3_endpoint.clone(),
                credentials: None,
            },
            tables: dynamodb.tables.clone(),
            options: options.collect::<Result<_, Failure>>()?,
            history: self.history,
            copy_workers: usize::try_from(dynamodb.copy_workers).unwrap_or(1),
            memory: self.memory(),
            pace: Pace::default(),
            settings: dynamodb.settings(),
        })
    }

    fn postgres_source(&self, name: &str, postgres: &PostgresConfig) -> Result<PostgresSource, Failure> {
        Ok(PostgresSource {
            pipeline: name.to_owned(),
            namespace: self.namespace.clone(),
            connection: postgres.connection()?,
            slot: postgres.slot.clone(),
            publication: postgres.publication.clone(),
            tables: postgres.tables.clone(),
            exclude: postgres.exclude.clone(),
            options: self.table_options()?,
            history: self.history,
            copy_workers: usize::try_from(postgres.copy_workers).unwrap_or(1),
            memory: self.memory(),
        })
    }

    fn table_options(&self) -> Result<BTreeMap<String, TableOptions>, Failure> {
        let options = self.tables.iter().map(|(name, table)| Ok((name.clone(), table.options(name)?)));
        options.collect()
    }
}

impl DynamodbConfig {
    fn settings(&self) -> Settings {
        let place = |bucket: &String| ExportPlace::new(bucket, self.export_prefix.clone());
        let lease =
            |table: &String| LeaseSettings { table: table.clone(), duration: Duration::from_secs(self.lease_seconds) };
        Settings {
            on_gap: self.on_gap.into(),
            copy: self.copy.into(),
            exports: self.export_bucket.as_ref().map(place),
            lease: self.lease_table.as_ref().map(lease),
            copy_read_units: self.copy_read_units.and_then(|units| u32::try_from(units).ok()),
        }
    }
}

impl From<Copying> for CopyRoad {
    fn from(copying: Copying) -> Self {
        match copying {
            Copying::Scan => CopyRoad::Scan,
            Copying::Export => CopyRoad::Export,
        }
    }
}

impl From<GapPolicy> for OnGap {
    fn from(policy: GapPolicy) -> Self {
        match policy {
            GapPolicy::Fail => OnGap::Fail,
            GapPolicy::IncrementalExport => OnGap::IncrementalExport,
            GapPolicy::Resync => OnGap::Resync,
        }
    }
}

impl From<MismatchPolicy> for Mismatch {
    fn from(policy: MismatchPolicy) -> Self {
        match policy {
            MismatchPolicy::Rest => Mismatch::Rest,
            MismatchPolicy::Fail => Mismatch::Fail,
            MismatchPolicy::Quarantine => Mismatch::Quarantine,
        }
    }
}

impl PostgresConfig {
    fn connection(&self) -> Result<ConnectionSettings, Failure> {
        let password = match &self.password {
            Some(reference) => {
                reference.read().map_err(|problem| Failure { exit: crate::failure::Exit::Usage, problem })?
            }
            // Trust and peer authentication ask for none.
            None => Secret::new(String::new()),
        };
        let root = self.root_certificate.clone();
        Ok(ConnectionSettings {
            port: self.port,
            tls: match self.tls {
                TlsMode::VerifyFull => Tls::VerifyFull { root },
                TlsMode::VerifyCa => Tls::VerifyCa { root },
                TlsMode::Disable => Tls::Disable,
            },
            channel_binding: match self.channel_binding {
                Binding::Prefer => ChannelBinding::Prefer,
                Binding::Require => ChannelBinding::Require,
            },
            connect_timeout: self.connect_timeout.0,
            ..ConnectionSettings::new(&self.host, &self.database, &self.user, password)
        })
    }
}

impl TableConfig {
    fn options(&self, table: &str) -> Result<TableOptions, Failure> {
        Ok(TableOptions {
            name: self.name.clone(),
            partition: self.partition_by()?,
            history: self.history,
            key: self.key.clone(),
            time_as_string: self.time_as_string,
            column_names: self.column_names(table)?,
        })
    }

    fn item_options(&self, table: &str) -> Result<cdc_dynamodb::config::TableOptions, Failure> {
        let declared = self.columns.iter().filter_map(|(name, column)| Some((name.clone(), column.data_type.clone()?)));
        Ok(cdc_dynamodb::config::TableOptions {
            name: self.name.clone(),
            partition: self.partition_by()?,
            history: self.history,
            key: self.key.clone(),
            columns: declared.collect(),
            mismatch: self.mismatches(),
            default_mismatch: self.items.mismatch.map(Mismatch::from).unwrap_or_default(),
            quarantine_limit: self.items.quarantine_limit(),
            column_names: self.column_names(table)?,
            on_gap: self.items.on_gap.map(OnGap::from),
            copy: self.items.copy.map(CopyRoad::from),
            ttl_deletes: match self.items.ttl_deletes {
                Some(Expiry::Keep) => TtlDeletes::Keep,
                Some(Expiry::Delete) | None => TtlDeletes::Delete,
            },
            infer_items: self.items.infer_items,
        })
    }

    fn partition_by(&self) -> Result<Vec<PartitionBy>, Failure> {
        Ok(self.partition.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
    }

    fn mismatches(&self) -> BTreeMap<String, Mismatch> {
        let of_columns = self.columns.iter().filter_map(|(column, config)| Some((column, config.mismatch?)));
        of_columns.map(|(column, policy)| (column.clone(), policy.into())).collect()
    }

    fn column_names(&self, table: &str) -> Result<BTreeMap<String, String>, Failure> {
        let mut names = BTreeMap::new();
        for (column, config) in &self.columns {
            if config.policy.is_some() {
                // Going on without it would write what was to be hidden.
                let message = "this release does not apply column policies";
                let remedy = "exclude the table, or leave the column out of the publication";
                return Err(Failure::not_yet(format!("{table}.{column}"), message, remedy));
            }
            names.extend(config.name.clone().map(|name| (column.clone(), name)));
        }
        Ok(names)
    }
}

impl ItemsConfig {
    fn quarantine_limit(&self) -> QuarantineLimit {
        let default = QuarantineLimit::default();
        QuarantineLimit {
            rows: self.quarantine_rows.unwrap_or(default.rows),
            percent: self.quarantine_percent.unwrap_or(default.percent),
        }
    }
}

fn catalog(section: &Section<'_>) -> Result<CatalogConfig, Failure> {
    #[derive(Clone, Copy)]
    enum Kind {
        Sqlite,
        S3Tables,
        Rest,
    }
    let kinds = [("sqlite", Kind::Sqlite), ("s3-tables", Kind::S3Tables), ("rest", Kind::Rest)];
    let kind = section.word("kind", &kinds)?.unwrap_or(Kind::Sqlite);
    let path = section.path("path")?;
    let warehouse = section.text("warehouse")?;
    let table_bucket = section.text("table_bucket")?;
    let uri = section.text("uri")?;
    let credential = section.secret("credential")?;
    let sigv4 = section.boolean("sigv4")?.unwrap_or(false);
    let endpoints = Endpoints {
        region: section.text("region")?,
        endpoint: section.text("endpoint")?,
        s3_endpoint: section.text("s3_endpoint")?,
    };
    section.finish()?;
    Ok(match kind {
        Kind::Sqlite => {
            let warehouse = warehouse.unwrap_or_else(|| "lake/warehouse".to_owned());
            CatalogConfig::Sqlite {
                path: path.unwrap_or_else(|| section.resolved("lake/catalog.db")),
                warehouse: match warehouse.contains(':') {
                    true => warehouse,
                    false => section.resolved(&warehouse).display().to_string(),
                },
                endpoints,
            }
        }
        Kind::S3Tables => CatalogConfig::S3Tables { table_bucket, endpoints },
        Kind::Rest => {
            let uri = uri.ok_or_else(|| section.missing("uri"))?;
            CatalogConfig::Rest { uri, warehouse, credential, sigv4, endpoints }
        }
    })
}

fn pipeline(name: &str, section: &Section<'_>) -> Result<PipelineConfig, Failure> {
    let namespace = section.name("namespace")?;
    let commit_interval_seconds = section.number_within("commit_interval_seconds", 1, 600)?.unwrap_or(5);
    let history = section.boolean("history")?.unwrap_or(true);
    let local_state = section.path("local_state")?.unwrap_or_else(|| section.resolved("state"));
    let memory = section.parsed("memory")?.unwrap_or(Bytes(512 << 20));
    let rollback_tags = section.parsed("rollback_tags")?.unwrap_or(Span(ROLLBACK_TAGS));
    let table_bucket = section.text("table_bucket")?;
    let source = match (section.has("postgres"), section.has("dynamodb")) {
        (true, false) => Some(SourceConfig::Postgres(postgres(name, &section.section("postgres")?)?)),
        (false, true) => Some(SourceConfig::Dynamodb(dynamodb(&section.section("dynamodb")?)?)),
        _ => None,
    };
    let tables = section.sections("tables")?;
    section.finish()?;
    let Some(source) = source else {
        let remedy = "give it exactly one of [pipelines.NAME.postgres] and [pipelines.NAME.dynamodb]";
        return Err(section.invalid("postgres", "the pipeline has no source, or more than one", remedy));
    };
    let namespace = namespace.unwrap_or_else(|| name.to_owned());
    if namespace == CONTROL_NAMESPACE {
        let remedy = "choose another namespace";
        return Err(section.invalid("namespace", "this namespace is kept for control tables", remedy));
    }
    if memory.0 < 16 << 20 {
        return Err(section.invalid("memory", format!("{memory} is too little to work with"), "allow 16MiB or more"));
    }
    let tables = tables.into_iter().map(|(name, section)| Ok((name.clone(), table(&source, &section)?)));
    let tables = tables.collect::<Result<_, Failure>>()?;
    Ok(PipelineConfig {
        namespace,
        commit_interval_seconds,
        history,
        local_state,
        memory,
        rollback_tags,
        table_bucket,
        source,
        tables,
    })
}

fn postgres(pipeline: &str, section: &Section<'_>) -> Result<PostgresConfig, Failure> {
    let host = section.text("host")?;
    let port = section.number_within("port", 1, 65_535)?.unwrap_or(5_432);
    let database = section.text("database")?;
    let user = section.text("user")?;
    let password = section.secret("password")?;
    let modes = [("verify-full", TlsMode::VerifyFull), ("verify-ca", TlsMode::VerifyCa), ("disable", TlsMode::Disable)];
    let tls = section.word("tls", &modes)?.unwrap_or(TlsMode::VerifyFull);
    let root_certificate = section.path("root_certificate")?;
    let bindings = [("prefer", Binding::Prefer), ("require", Binding::Require)];
    let channel_binding = section.word("channel_binding", &bindings)?.unwrap_or(Binding::Prefer);
    let connect_timeout = section.parsed("connect_timeout")?.unwrap_or(Span(Duration::from_secs(10)));
    let slot = section.name("slot")?;
    let publication = section.text("publication")?;
    let tables = section.list("tables")?.unwrap_or_else(|| vec!["public.*".to_owned()]);
    let exclude = section.list("exclude")?.unwrap_or_default();
    let copy_workers = section.number_within("copy_workers", 1, 64)?.unwrap_or(4);
    section.finish()?;

    for (key, patterns) in [("tables", &tables), ("exclude", &exclude)] {
        if let Some(wrong) = patterns.iter().find(|pattern| !pattern.contains('.')) {
            let message = format!("{wrong:?} names no schema");
            return Err(section.invalid(key, message, "write schema.table; * stands for any run of characters"));
        }
    }
    let own_name = |key: &'static str| {
        let name = format!("lakehouse_{pipeline}");
        check_name(&name, || section.subject(key)).map(|()| name)
    };
    Ok(PostgresConfig {
        host: host.ok_or_else(|| section.missing("host"))?,
        port: u16::try_from(port).expect("checked to be a port"),
        database: database.ok_or_else(|| section.missing("database"))?,
        user: user.ok_or_else(|| section.missing("user"))?,
        password,
        tls,
        root_certificate,
        channel_binding,
        connect_timeout,
        slot: slot.map_or_else(|| own_name("slot"), Ok)?,
        publication: publication.map_or_else(|| own_name("publication"), Ok)?,
        tables,
        exclude,
        copy_workers,
    })
}

fn dynamodb(section: &Section<'_>) -> Result<DynamodbConfig, Failure> {
    let region = section.text("region")?;
    let endpoint = section.text("endpoint")?;
    let tables = section.list("tables")?;
    let copy_workers = section.number_within("copy_workers", 1, 64)?.unwrap_or(4);
    let idle = section.number_within("idle_cut_seconds", 1, 3_600)?;
    let s3_endpoint = section.text("s3_endpoint")?;
    let export_bucket = section.text("export_bucket")?;
    let export_prefix = section.text("export_prefix")?;
    let copy = section.word("copy", &COPYING)?.unwrap_or(Copying::Scan);
    let copy_read_units = section.number_within("copy_read_units", 1, 1_000_000)?;
    let on_gap = section.word("on_gap", &GAP_POLICIES)?.unwrap_or(GapPolicy::Fail);
    let lease_table = section.text("lease_table")?;
    let lease_seconds = section.number_within("lease_seconds", 5, 600)?.unwrap_or(20);
    section.finish()?;
    if export_bucket.is_none() && (copy == Copying::Export || on_gap == GapPolicy::IncrementalExport) {
        return Err(section.missing("export_bucket"));
    }
    if let Some(wrong) = export_prefix.as_ref().filter(|prefix| prefix.starts_with('/') || prefix.ends_with('/')) {
        let message = format!("{wrong:?} begins or ends with a slash");
        return Err(section.invalid("export_prefix", message, "write it as a/b"));
    }
    Ok(DynamodbConfig {
        s3_endpoint,
        export_bucket,
        export_prefix,
        copy,
        copy_read_units,
        on_gap,
        lease_table,
        lease_seconds,
        region,
        endpoint,
        tables: tables.ok_or_else(|| section.missing("tables"))?,
        copy_workers,
        idle_cut_seconds: idle.unwrap_or(IDLE_DYNAMODB_CUTS.as_secs()),
    })
}

fn table(source: &SourceConfig, section: &Section<'_>) -> Result<TableConfig, Failure> {
    let name = section.name("name")?;
    let partition = section.list("partition")?.unwrap_or_default();
    let key = section.list("key")?;
    let history = section.boolean("history")?;
    let time_as_string = section.boolean("time_as_string")?.unwrap_or(false);
    let columns = section.entries("columns")?;
    let items = match source {
        SourceConfig::Dynamodb(dynamodb) => items(dynamodb, section)?,
        SourceConfig::Postgres(_) => ItemsConfig::default(),
    };
    section.finish()?;
    for field in &partition {
        field.parse::<PartitionBy>().map_err(|problem| {
            let mut failure = section.invalid("partition", format!("{}: {field:?}", problem.message), problem.remedy);
            failure.problem.code = problem.code;
            failure
        })?;
    }
    if key.as_ref().is_some_and(Vec::is_empty) {
        return Err(section.invalid("key", "a key without columns", "name the key's columns, or remove it"));
    }
    let columns = columns.into_iter().map(|(name, entry)| Ok((name, column(source, section, entry)?)));
    let columns = columns.collect::<Result<_, Failure>>()?;
    Ok(TableConfig { name, partition, key, history, time_as_string, columns, items })
}

/// Keys of DynamoDB tables.
fn items(source: &DynamodbConfig, section: &Section<'_>) -> Result<ItemsConfig, Failure> {
    let copy = section.word("copy", &COPYING)?;
    let on_gap = section.word("on_gap", &GAP_POLICIES)?;
    let mismatch = section.word("mismatch", &MISMATCHES)?;
    let quarantine_rows = section.number_within("quarantine_rows", 1, 1_000_000_000)?;
    let quarantine_percent = section.number_within("quarantine_percent", 1, 100)?;
    let ttl_deletes = section.word("ttl_deletes", &[("keep", Expiry::Keep), ("delete", Expiry::Delete)])?;
    let infer = section.boolean("infer")?.unwrap_or(false);
    let infer_items = section.number_within("infer_items", 1, 1_000_000)?.unwrap_or(10_000);
    if source.export_bucket.is_none() && (copy == Some(Copying::Export) || on_gap == Some(GapPolicy::IncrementalExport))
    {
        let key = if copy == Some(Copying::Export) { "copy" } else { "on_gap" };
        let remedy = "set export_bucket in [pipelines.NAME.dynamodb]";
        return Err(section.invalid(key, "exports have nowhere to go", remedy));
    }
    let infer_items = infer.then(|| u32::try_from(infer_items).unwrap_or(u32::MAX));
    Ok(ItemsConfig { copy, on_gap, mismatch, quarantine_rows, quarantine_percent, ttl_deletes, infer_items })
}

fn column(source: &SourceConfig, table: &Section<'_>, entry: Entry<'_>) -> Result<ColumnConfig, Failure> {
    let column = match entry {
        Entry::Text(data_type) => ColumnConfig { data_type: Some(data_type), ..ColumnConfig::default() },
        Entry::Section(section) => {
            let policies = [
                ("drop", Policy::Drop),
                ("hash", Policy::Hash),
                ("mask", Policy::Mask),
                ("tokenise", Policy::Tokenise),
                ("encrypt", Policy::Encrypt),
            ];
            let column = ColumnConfig {
                name: section.text("name")?,
                data_type: section.text("type")?,
                mismatch: match source {
                    SourceConfig::Dynamodb(_) => section.word("mismatch", &MISMATCHES)?,
                    SourceConfig::Postgres(_) => None,
                },
                policy: section.word("policy", &policies)?,
                key: section.secret("key")?,
            };
            section.finish()?;
            if let Some(name) = &column.name
                && lake_name(name) != *name
            {
                return Err(section.invalid("name", format!("{name:?} is not a valid name"), "use a-z, 0-9 and _"));
            }
            column
        }
    };
    match (source, &column.data_type) {
        (SourceConfig::Postgres(_), Some(_)) => {
            let remedy = "remove it: a PostgreSQL column brings its type along";
            Err(table.invalid("columns", "types are for DynamoDB only", remedy))
        }
        _ => Ok(column),
    }
}

/// The control tables stand beside the history of maintenance.
fn check_pipeline_name(name: &str, section: &Section<'_>) -> Result<(), Failure> {
    if name != RUNS_TABLE {
        return Ok(());
    }
    let message = "this name is kept for the history of maintenance";
    Err(Failure::usage("CONFIG_NAME", section.here(), message, "choose another name for the pipeline"))
}

/// Only S3 Tables has jobs of its own.
fn managed_jobs_have_a_service(
    root: &Section<'_>,
    catalog: &CatalogConfig,
    maintenance: &MaintenanceConfig,
) -> Result<(), Failure> {
    if matches!(catalog, CatalogConfig::S3Tables { .. }) || !maintenance.uses_managed_jobs() {
        return Ok(());
    }
    let message = "owner = \"s3-tables\", and the catalog is of another kind";
    let remedy = "choose self, spark or none, or the catalog kind s3-tables";
    Err(Failure::usage("CONFIG_VALUE", root.subject("maintenance"), message, remedy))
}

/// A replication slot has one reader; two pipelines on one would take its changes from each other.
fn one_worker_per_slot(root: &Section<'_>, pipelines: &BTreeMap<String, PipelineConfig>) -> Result<(), Failure> {
    let mut slots: BTreeMap<(&str, u16, &str), &str> = BTreeMap::new();
    for (name, pipeline) in pipelines {
        let SourceConfig::Postgres(postgres) = &pipeline.source else {
            continue;
        };
        let slot = (postgres.host.as_str(), postgres.port, postgres.slot.as_str());
        if let Some(other) = slots.insert(slot, name) {
            let message = format!("pipelines {other} and {name} use the same slot of the same server");
            let remedy = "give each pipeline a slot of its own";
            return Err(Failure::usage("CONFIG_SLOT_SHARED", root.subject("pipelines"), message, remedy));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
