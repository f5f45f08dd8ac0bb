//! Any catalog that speaks Iceberg's REST protocol.
//!
//! Such a catalog compares only what it is asked to, and applies our updates to whatever stands there. So every commit
//! asserts all that it was planned on (protocol "Token strength"): the table's uuid, `main`, the current schema, the
//! default spec, and the ids that it assigns. It is sent once; an answer that is no answer leaves the outcome unknown.

mod auth;
mod client;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use iceberg::spec::MAIN_BRANCH;
use iceberg::{NamespaceIdent, TableCreation, TableIdent, TableRequirement, TableUpdate};
use iceberg_catalog_rest::{
    CommitTableRequest, CommitTableResponse, CreateNamespaceRequest, CreateTableRequest, ListNamespaceResponse,
    ListTablesResponse, LoadTableResult,
};

use super::{Catalog, LoadedTable, MetadataFile, Swap};
use crate::aws::AwsConfig;
use crate::error::Problem;
use crate::schema::TableName;
use crate::secret::Secret;
use client::{Answer, Client, Refusal};

/// Where a REST catalog is, and who we are to it.
#[derive(Clone, Debug, Default)]
pub struct RestConfig {
    pub uri: String,
    /// As the catalog names it; which one is ours where it has several.
    pub warehouse: Option<String>,
    /// `id:secret` is exchanged for a token by OAuth2, anything else is a token itself.
    pub credential: Option<Secret>,
    /// Requests are signed as Amazon's services want it.
    pub sigv4: bool,
    pub aws: AwsConfig,
}

pub struct RestCatalog {
    client: Client,
}

impl RestCatalog {
    /// Connects, and asks the catalog how it wants to be asked.
    pub async fn open(config: &RestConfig) -> Result<Self, Problem> {
        Ok(Self { client: Client::open(config).await? })
    }

    async fn namespaces(&self) -> Result<Vec<NamespaceIdent>, Problem> {
        let mut names = Vec::new();
        let mut page = None;
        loop {
            let answer = self.client.get(&["namespaces"], &page_of(page)).await?;
            let found: ListNamespaceResponse = answer.body("the list of namespaces")?;
            names.extend(found.namespaces);
            page = found.next_page_token.filter(|token| !token.is_empty());
            if page.is_none() {
                return Ok(names);
            }
        }
    }

    /// The tables of a namespace; none where there is no such namespace.
    async fn tables(&self, namespace: &str) -> Result<Vec<TableName>, Problem> {
        let mut names = Vec::new();
        let mut page = None;
        loop {
            let path = ["namespaces", namespace, "tables"];
            let Some(answer) = self.client.get(&path, &page_of(page)).await?.if_found() else { return Ok(names) };
            let found: ListTablesResponse = answer.body("the list of tables")?;
            names.extend(found.identifiers.iter().map(|table| TableName::new(namespace, table.name())));
            page = found.next_page_token.filter(|token| !token.is_empty());
            if page.is_none() {
                return Ok(names);
            }
        }
    }

    async fn create_namespace(&self, namespace: &str) -> Result<(), Problem> {
        let request =
            CreateNamespaceRequest { namespace: NamespaceIdent::new(namespace.to_owned()), properties: HashMap::new() };
        match self.client.post_once(&["namespaces"], &request).await {
            Ok(_) | Err(Refusal::Conflict) => Ok(()),
            Err(Refusal::Refused(problem)) => Err(problem),
            Err(Refusal::Unknown(why)) => Err(Problem::retry("CATALOG", namespace, why)),
        }
    }
}

#[async_trait]
impl Catalog for RestCatalog {
    async fn list(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Problem> {
        let namespaces = match namespace {
            Some(name) => vec![name.to_owned()],
            // Ours have one level.
            None => {
                self.namespaces().await?.iter().filter(|name| name.len() == 1).map(|name| name[0].clone()).collect()
            }
        };
        let mut names = Vec::new();
        for namespace in namespaces {
            names.extend(self.tables(&namespace).await?);
        }
        names.sort();
        Ok(names)
    }

    async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem> {
        let path = ["namespaces", &name.namespace, "tables", &name.name];
        let tag = known.map(|known| known.token.as_str()).filter(|tag| !tag.is_empty());
        let answer = self.client.get_unless(&path, &[("snapshots", "all")], tag).await?;
        match (answer, known) {
            (Answer::NotFound, _) => Ok(None),
            (Answer::Unchanged, Some(known)) => Ok(Some(known.clone())),
            (answer, known) => {
                let tag = answer.tag();
                let loaded: LoadTableResult = answer.body("the table")?;
                // Sharing what has not moved spares memory; the catalog has sent it all the same.
                let same = known.filter(|known| Some(&known.metadata_location) == loaded.metadata_location.as_ref());
                Ok(Some(match same {
                    Some(known) => LoadedTable { token: tag, ..known.clone() },
                    None => loaded_table(name, loaded, answer.length(), tag)?,
                }))
            }
        }
    }

    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem> {
        self.create_namespace(&name.namespace).await?;
        let request = CreateTableRequest {
            name: name.name.clone(),
            location: None,
            schema: creation.schema,
            // Iceberg's own server does not take a spec without a number.
            partition_spec: creation.partition_spec.map(|spec| spec.with_spec_id(0)),
            write_order: None,
            stage_create: Some(false),
            properties: creation.properties,
        };
        match self.client.post_once(&["namespaces", &name.namespace, "tables"], &request).await {
            Ok(answer) => loaded_table(name, answer.body("the new table")?, answer.length(), answer.tag()),
            Err(Refusal::Refused(problem)) => Err(problem),
            // Another process was first, or the answer is lost: what stands there decides.
            Err(Refusal::Conflict) => self.load(name, None).await?.ok_or_else(|| {
                Problem::retry("CATALOG", name.to_string(), "the table was dropped while it was created")
            }),
            Err(Refusal::Unknown(why)) => {
                self.load(name, None).await?.ok_or_else(|| Problem::retry("CATALOG", name.to_string(), why))
            }
        }
    }

    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem> {
        let TableName { namespace, name } = &base.name;
        let request = CommitTableRequest {
            identifier: Some(TableIdent::new(NamespaceIdent::new(namespace.clone()), name.clone())),
            requirements: requirements(base, &updates),
            updates,
        };
        match self.client.post_once(&["namespaces", namespace, "tables", name], &request).await {
            Ok(answer) => Ok(match answer.body::<CommitTableResponse>("the commit") {
                Ok(landed) => {
                    let (metadata, location) = (Arc::new(landed.metadata), landed.metadata_location);
                    let file = MetadataFile { metadata, location, bytes: answer.length() };
                    Swap::Landed(file.table(&base.name, answer.tag()))
                }
                Err(unreadable) => Swap::Unknown(unreadable.message),
            }),
            Err(Refusal::Conflict) => Ok(Swap::Rejected),
            Err(Refusal::Unknown(why)) => Ok(Swap::Unknown(why)),
            Err(Refusal::Refused(problem)) => Err(problem),
        }
    }
}

/// What the updates were planned on, in the words of the protocol.
fn requirements(base: &LoadedTable, updates: &[TableUpdate]) -> Vec<TableRequirement> {
    let metadata = &base.metadata;
    let mut required = vec![
        TableRequirement::UuidMatch { uuid: metadata.uuid() },
        TableRequirement::RefSnapshotIdMatch { r#ref: MAIN_BRANCH.to_owned(), snapshot_id: base.snapshot_id() },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: metadata.current_schema_id() },
        TableRequirement::DefaultSpecIdMatch { default_spec_id: metadata.default_partition_spec_id() },
    ];
    if updates.iter().any(|update| matches!(update, TableUpdate::AddSchema { .. })) {
        required.push(TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id: metadata.last_column_id() });
    }
    if updates.iter().any(|update| matches!(update, TableUpdate::AddSpec { .. })) {
        let last_assigned_partition_id = metadata.last_partition_id();
        required.push(TableRequirement::LastAssignedPartitionIdMatch { last_assigned_partition_id });
    }
    // A tag is set or taken away on what stood there, nothing included (protocol F2).
    for update in updates {
        let (TableUpdate::SetSnapshotRef { ref_name, .. } | TableUpdate::RemoveSnapshotRef { ref_name }) = update
        else {
            continue;
        };
        if ref_name != MAIN_BRANCH {
            let snapshot_id = metadata.snapshot_for_ref(ref_name).map(|snapshot| snapshot.snapshot_id());
            required.push(TableRequirement::RefSnapshotIdMatch { r#ref: ref_name.clone(), snapshot_id });
        }
    }
    // A tag that has moved since may point at what is to go (protocol F2). One that is new cannot be asserted.
    if updates.iter().any(|update| matches!(update, TableUpdate::RemoveSnapshots { .. })) {
        for (id, names) in crate::commit::named_snapshots(base) {
            let names = names.into_iter().filter(|name| name != MAIN_BRANCH);
            required
                .extend(names.map(|name| TableRequirement::RefSnapshotIdMatch { r#ref: name, snapshot_id: Some(id) }));
        }
    }
    required
}

fn loaded_table(name: &TableName, result: LoadTableResult, bytes: u64, token: String) -> Result<LoadedTable, Problem> {
    let location = result.metadata_location.ok_or_else(|| {
        Problem::halt(
            "CATALOG_REFUSED",
            name.to_string(),
            "the table is staged, not created",
            "drop it, and start again",
        )
    })?;
    Ok(MetadataFile { metadata: Arc::new(result.metadata), location, bytes }.table(name, token))
}

fn page_of(token: Option<String>) -> Vec<(&'static str, String)> {
    token.map(|token| ("pageToken", token)).into_iter().collect()
}
