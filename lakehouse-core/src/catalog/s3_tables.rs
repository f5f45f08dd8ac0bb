//! Amazon S3 Tables by its own API: the metadata file goes into the table's own place, the pointer moves by
//! `UpdateTableMetadataLocation` with the version token of the read that the change was planned on (protocol B4).
//!
//! The token covers the whole state of the table. The call is sent once: the client's own retries are off for it, because
//! a second sending turns a landed commit into a conflict (protocol B5, B6).

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3tables::Client;
use aws_sdk_s3tables::config::Config;
use aws_sdk_s3tables::config::retry::RetryConfig;
use aws_sdk_s3tables::config::timeout::TimeoutConfig;
use aws_sdk_s3tables::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3tables::operation::get_table_metadata_location::GetTableMetadataLocationOutput;
use aws_sdk_s3tables::types::{
    MaintenanceStatus, OpenTableFormat, TableMaintenanceConfigurationValue, TableMaintenanceType,
};
use iceberg::{TableCreation, TableUpdate};

use super::{Catalog, LoadedTable, MetadataFile, Swap};
use crate::aws::{self, AwsConfig, credentials_expired, describe, status};
use crate::error::Problem;
use crate::schema::TableName;
use crate::storage::Storage;

/// One send of the swap.
const SWAP_DEADLINE: Duration = Duration::from_secs(30);
/// One attempt of another call, and all its attempts.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 5;
/// Jobs of the service that would commit to a table beside us.
const MANAGED_JOBS: [TableMaintenanceType; 2] =
    [TableMaintenanceType::IcebergCompaction, TableMaintenanceType::IcebergSnapshotManagement];

/// Which engine a duty of maintenance is given to: the service's own jobs, or another (protocol D, `MAINTENANCE_OWNER`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ManagedJobs {
    pub compaction: bool,
    pub snapshots: bool,
}

/// The same for all tables of a catalog: for most, and for those that are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManagedTables {
    pub jobs: ManagedJobs,
    pub tables: BTreeMap<TableName, ManagedJobs>,
}

impl ManagedTables {
    fn of(&self, table: &TableName) -> ManagedJobs {
        self.tables.get(table).copied().unwrap_or(self.jobs)
    }
}

impl From<ManagedJobs> for ManagedTables {
    fn from(jobs: ManagedJobs) -> Self {
        Self { jobs, tables: BTreeMap::new() }
    }
}

/// The tables of one table bucket.
pub struct S3TablesCatalog {
    client: Client,
    /// ARN of the table bucket.
    bucket: String,
    storage: Storage,
    managed: ManagedTables,
}

impl S3TablesCatalog {
    pub async fn open(config: &AwsConfig, bucket: &str, storage: Storage, managed: impl Into<ManagedTables>) -> Self {
        let shared = aws::load(config).await;
        let timeouts =
            TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_DEADLINE).operation_timeout(DEADLINE).build();
        let mut builder = aws_sdk_s3tables::config::Builder::from(&shared)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        Self { client: Client::from_conf(builder.build()), bucket: bucket.to_owned(), storage, managed: managed.into() }
    }

    async fn pointer(&self, name: &TableName) -> Result<Option<GetTableMetadataLocationOutput>, Problem> {
        let call = self.client.get_table_metadata_location().table_bucket_arn(&self.bucket);
        match call.namespace(&name.namespace).name(&name.name).send().await {
            Ok(pointer) => Ok(Some(pointer)),
            Err(error) if is_missing_table(&error) => Ok(None),
            Err(error) => Err(problem(&name.to_string(), &error)),
        }
    }

    async fn create_namespace(&self, namespace: &str) -> Result<(), Problem> {
        let call = self.client.create_namespace().table_bucket_arn(&self.bucket).namespace(namespace);
        match call.send().await {
            Ok(_) => Ok(()),
            Err(error) if status(&error) == Some(409) => Ok(()),
            Err(error) => Err(problem(namespace, &error)),
        }
    }

    /// Switches off the jobs of the service that nobody gave it: they are on by default.
    async fn own_maintenance(&self, name: &TableName) -> Result<(), Problem> {
        for job in MANAGED_JOBS {
            let wanted = match self.wants(name, &job) {
                true => MaintenanceStatus::Enabled,
                false => MaintenanceStatus::Disabled,
            };
            let call = self.client.put_table_maintenance_configuration().table_bucket_arn(&self.bucket);
            let call = call.namespace(&name.namespace).name(&name.name).r#type(job);
            let value = TableMaintenanceConfigurationValue::builder().status(wanted).build();
            match call.value(value).send().await {
                Ok(_) => {}
                // A service without managed jobs has nothing to switch off.
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => return Err(problem(&name.to_string(), &error)),
            }
        }
        Ok(())
    }

    fn wants(&self, name: &TableName, job: &TableMaintenanceType) -> bool {
        let jobs = self.managed.of(name);
        match job {
            TableMaintenanceType::IcebergCompaction => jobs.compaction,
            _ => jobs.snapshots,
        }
    }

    /// The first metadata of a table that the service has made without any.
    async fn first_metadata(
        &self,
        name: &TableName,
        creation: TableCreation,
        pointer: &GetTableMetadataLocationOutput,
    ) -> Result<(), Problem> {
        let location = pointer.warehouse_location().trim_end_matches('/').to_owned();
        let file = MetadataFile::first(&self.storage, name, location, creation).await?;
        match self.swap(name, pointer.version_token(), &file.location).await {
            Ok(_) => Ok(()),
            // Whoever was first, and whatever became of our answer: the table is read again.
            Err(error) => match outcome(&error) {
                Outcome::Refused => Err(problem(&name.to_string(), &error)),
                Outcome::Rejected | Outcome::Unknown => Ok(()),
            },
        }
    }

    async fn swap(&self, name: &TableName, token: &str, location: &str) -> Result<String, SwapError> {
        let timeouts = TimeoutConfig::builder().operation_timeout(SWAP_DEADLINE).build();
        let once = Config::builder().retry_config(RetryConfig::disabled()).timeout_config(timeouts);
        let call = self.client.update_table_metadata_location().table_bucket_arn(&self.bucket);
        let call = call.namespace(&name.namespace).name(&name.name).version_token(token).metadata_location(location);
        Ok(call.customize().config_override(once).send().await?.version_token().to_owned())
    }
}

type SwapError =
    SdkError<aws_sdk_s3tables::operation::update_table_metadata_location::UpdateTableMetadataLocationError>;

#[async_trait]
impl Catalog for S3TablesCatalog {
    async fn list(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Problem> {
        let call = self.client.list_tables().table_bucket_arn(&self.bucket);
        let mut pages = call.set_namespace(namespace.map(str::to_owned)).into_paginator().send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = match page {
                Ok(page) => page,
                // A namespace that nobody has made yet has no tables.
                Err(error) if namespace.is_some() && status(&error) == Some(404) => return Ok(Vec::new()),
                Err(error) => return Err(problem(&self.bucket, &error)),
            };
            names.extend(page.tables().iter().map(|table| TableName::new(table.namespace().join("."), table.name())));
        }
        names.sort();
        Ok(names)
    }

    async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem> {
        let Some(pointer) = self.pointer(name).await? else { return Ok(None) };
        // A table without metadata is one whose creation is not complete.
        let Some(location) = pointer.metadata_location() else { return Ok(None) };
        let token = pointer.version_token().to_owned();
        if let Some(known) = known.filter(|known| known.metadata_location == location) {
            return Ok(Some(LoadedTable { token, ..known.clone() }));
        }
        Ok(Some(MetadataFile::read(&self.storage, location).await?.table(name, token)))
    }

    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem> {
        self.check_name(name)?;
        self.create_namespace(&name.namespace).await?;
        let call = self.client.create_table().table_bucket_arn(&self.bucket).namespace(&name.namespace);
        match call.name(&name.name).format(OpenTableFormat::Iceberg).send().await {
            Err(error) if status(&error) != Some(409) => return Err(problem(&name.to_string(), &error)),
            Ok(_) | Err(_) => {}
        }
        let gone = || Problem::retry("CATALOG", name.to_string(), "the table was dropped while it was created");
        let pointer = self.pointer(name).await?.ok_or_else(gone)?;
        if pointer.metadata_location().is_none() {
            // Before the table can be seen: whoever finds a table finds its owner settled.
            self.own_maintenance(name).await?;
            self.first_metadata(name, creation, &pointer).await?;
        }
        self.load(name, None).await?.ok_or_else(gone)
    }

    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem> {
        let next = MetadataFile::next(&self.storage, base, updates).await?;
        match self.swap(&base.name, &base.token, &next.location).await {
            Ok(token) => Ok(Swap::Landed(next.table(&base.name, token))),
            Err(error) => match outcome(&error) {
                Outcome::Rejected => Ok(Swap::Rejected),
                Outcome::Unknown => Ok(Swap::Unknown(describe(&error))),
                Outcome::Refused => Err(problem(&base.name.to_string(), &error)),
            },
        }
    }

    /// S3 Tables and Athena take lower-case letters, digits and `_`, from a letter or digit to a letter or digit.
    fn check_name(&self, name: &TableName) -> Result<(), Problem> {
        let plain = |text: &str| {
            let inner = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
            let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
            inner && edge(text.bytes().next()) && edge(text.bytes().last()) && text.len() <= 255
        };
        if plain(&name.name) && plain(&name.namespace) && !name.namespace.starts_with("aws") {
            return Ok(());
        }
        let message = "S3 Tables takes names of lower-case letters, digits and inner `_`, up to 255, and no namespace \
                       that begins with aws";
        let remedy =
            "give the table another name with `name = \"…\"` in its section, or the pipeline another namespace";
        Err(Problem::halt("NAME_INVALID", name.to_string(), message, remedy))
    }

    fn removes_files(&self) -> bool {
        true
    }

    async fn check_owner(&self, name: &TableName) -> Result<(), Problem> {
        let call = self.client.get_table_maintenance_configuration().table_bucket_arn(&self.bucket);
        let answer = match call.namespace(&name.namespace).name(&name.name).send().await {
            Ok(answer) => answer,
            Err(error) if status(&error) == Some(404) => return Ok(()),
            Err(error) => return Err(problem(&name.to_string(), &error)),
        };
        for job in MANAGED_JOBS {
            let found = answer.configuration().get(&job).and_then(TableMaintenanceConfigurationValue::status);
            // What is not set is on.
            let on = found != Some(&MaintenanceStatus::Disabled);
            if on != self.wants(name, &job) {
                let state = if on { "on" } else { "off" };
                let message = format!("S3 Tables' own job {job} is {state}, and the configuration has it otherwise");
                let remedy = "switch the job with `aws s3tables put-table-maintenance-configuration`, or change \
                              `owner` in [maintenance]";
                return Err(Problem::halt("MAINTENANCE_OWNER", name.to_string(), message, remedy));
            }
        }
        Ok(())
    }
}

/// What an error of the swap says of the swap (protocol B6).
enum Outcome {
    /// The token was not the table's.
    Rejected,
    /// A plain no, before any effect, which trying again does not change.
    Refused,
    Unknown,
}

fn outcome(error: &SwapError) -> Outcome {
    match (error, status(error)) {
        (SdkError::ConstructionFailure(_), _) => Outcome::Refused,
        (SdkError::ServiceError(_), Some(409)) => Outcome::Rejected,
        (SdkError::ServiceError(_), Some(400 | 401 | 403 | 404 | 405)) => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

fn is_missing_table<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    // A table bucket that is not there is an error, a table is a question.
    status(error) == Some(404) && !error.message().is_some_and(|message| message.contains("bucket"))
}

fn problem<E>(subject: &str, error: &SdkError<E>) -> Problem
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let message = format!("S3 Tables: {}", describe(error));
    match status(error) {
        _ if credentials_expired(error) => Problem::retry("CREDENTIALS_EXPIRED", subject, message),
        Some(401 | 403) => {
            let remedy = "grant the service's role the s3tables actions of its duty, and check its credentials";
            Problem::halt("ACCESS_DENIED", subject, message, remedy)
        }
        Some(404) => {
            let remedy = "correct `table_bucket` and `region` in [catalog], or create the table bucket";
            Problem::halt("CATALOG_MISSING", subject, message, remedy)
        }
        Some(400 | 405) => Problem::halt("CATALOG_REFUSED", subject, message, "correct what the service names"),
        _ => Problem::retry("CATALOG", subject, message),
    }
}
