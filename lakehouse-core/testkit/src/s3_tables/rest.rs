//! The Iceberg REST catalog of the service: for readers, and for commits of other engines.
//!
//! A commit here asserts what its requirements say and no more: when the table has moved since it was read, the
//! requirements are checked again on what stands now, as every REST catalog does. Requests need no signature, because not
//! every reader can sign for an emulator.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use iceberg::TableCreation;
use iceberg::spec::{TableMetadata, TableMetadataBuilder};
use iceberg_catalog_rest::{CommitTableRequest, CreateTableRequest};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::lake::{ACCOUNT, Committer, TableId};
use super::refusal::{Refusal, bare_xml};
use super::service::{LARGEST_METADATA, Service, Shown};
use crate::objects;

type Shared = State<Arc<Service>>;

/// A commit that gives this token is one compare-and-swap against it; so commits managed maintenance.
pub(super) const ONLY_ON_TOKEN: &str = "x-only-on-version-token";

pub(super) fn routes() -> Router<Arc<Service>> {
    let namespace = "/{prefix}/namespaces/{namespace}";
    let tables = format!("{namespace}/tables");
    let table = format!("{tables}/{{table}}");
    Router::new()
        .route("/config", get(config))
        .route("/{prefix}/namespaces", get(list_namespaces).post(create_namespace))
        .route(namespace, get(get_namespace).head(namespace_exists))
        .route(&format!("{namespace}/properties"), post(|| async { bad("namespace properties cannot be changed") }))
        .route(&tables, get(list_tables).post(create_table))
        .route(&table, get(load_table).head(table_exists).post(update_table).delete(drop_table))
        .route(&format!("{table}/metrics"), post(|| async { bad("metrics are not taken") }))
        // Everything else of the specification (transactions, views, scan planning) falls through to the service's
        // front, which answers in XML.
        .fallback(|| async { bare_xml(StatusCode::NOT_FOUND, "UnknownOperationException") })
}

fn bad(why: &str) -> Response {
    Refusal::bad_request(why).to_rest("")
}

#[derive(Deserialize)]
struct Warehouse {
    #[serde(default)]
    warehouse: String,
}

async fn config(State(service): Shared, Query(Warehouse { warehouse }): Query<Warehouse>) -> Response {
    match service.lake().bucket(&warehouse) {
        // No list of endpoints, as on the live service: clients assume the oldest set.
        Ok(_) => Json(json!({"defaults": {}, "overrides": {"prefix": encoded(&warehouse)}})).into_response(),
        Err(refusal) => refusal.to_rest("Warehouse"),
    }
}

/// An ARN as one segment of a path.
fn encoded(arn: &str) -> String {
    arn.replace(':', "%3A").replace('/', "%2F")
}

/// The ARN behind a prefix; some clients encode the encoded form once more.
fn decoded(prefix: &str) -> String {
    prefix.replace("%3A", ":").replace("%2F", "/")
}

#[derive(Deserialize)]
struct Parts {
    prefix: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    table: String,
}

impl Parts {
    fn bucket(&self) -> String {
        decoded(&self.prefix)
    }

    fn id(&self) -> TableId {
        TableId { bucket: self.bucket(), namespace: self.namespace.clone(), name: self.table.clone() }
    }
}

async fn list_namespaces(State(service): Shared, Path(parts): Path<Parts>) -> Response {
    match service.lake().bucket(&parts.bucket()) {
        Ok(bucket) => {
            let names: Vec<[&String; 1]> = bucket.namespaces.keys().map(|name| [name]).collect();
            Json(json!({"namespaces": names})).into_response()
        }
        Err(refusal) => refusal.to_rest("Warehouse"),
    }
}

#[derive(Deserialize)]
struct NewNamespace {
    namespace: Vec<String>,
}

async fn create_namespace(State(service): Shared, Path(parts): Path<Parts>, body: Bytes) -> Response {
    let Ok(NewNamespace { namespace }) = serde_json::from_slice(&body) else {
        return bad("namespace is missing");
    };
    let [name] = namespace.as_slice() else { return bad("a namespace has one level") };
    match service.lake().create_namespace(&parts.bucket(), name) {
        Ok(()) => Json(json!({"namespace": [name], "properties": {"owner": ACCOUNT}})).into_response(),
        Err(refusal) => refusal.to_rest("Namespace"),
    }
}

async fn get_namespace(State(service): Shared, Path(parts): Path<Parts>) -> Response {
    match service.lake().namespace(&parts.bucket(), &parts.namespace) {
        Ok(_) => Json(json!({"namespace": [parts.namespace], "properties": {"owner": ACCOUNT}})).into_response(),
        Err(refusal) => refusal.to_rest("Namespace"),
    }
}

async fn namespace_exists(State(service): Shared, Path(parts): Path<Parts>) -> StatusCode {
    exists(service.lake().namespace(&parts.bucket(), &parts.namespace).is_ok())
}

async fn table_exists(State(service): Shared, Path(parts): Path<Parts>) -> StatusCode {
    exists(service.lake().table(&parts.id()).is_ok())
}

fn exists(there: bool) -> StatusCode {
    if there { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

async fn list_tables(State(service): Shared, Path(parts): Path<Parts>) -> Response {
    match service.lake().namespace(&parts.bucket(), &parts.namespace) {
        Ok(namespace) => {
            let names = namespace.tables.keys().map(|name| json!({"namespace": [parts.namespace], "name": name}));
            Json(json!({"identifiers": names.collect::<Vec<Value>>()})).into_response()
        }
        Err(refusal) => refusal.to_rest("Namespace"),
    }
}

async fn load_table(State(service): Shared, Path(parts): Path<Parts>) -> Response {
    let loaded = match service.show(&parts.id()) {
        Ok(shown) => read(&service, &shown).await,
        Err(refusal) => Err(refusal),
    };
    match loaded {
        Ok((location, content)) => answer(&location, &content),
        Err(refusal) => refusal.to_rest("Table"),
    }
}

/// The file as it is, so that a reader sees what was written and not what this crate makes of it.
fn answer(location: &str, content: &[u8]) -> Response {
    match serde_json::from_slice::<Value>(content) {
        Ok(metadata) => {
            Json(json!({"metadata-location": location, "metadata": metadata, "config": {}})).into_response()
        }
        Err(error) => bad(&format!("{location}: {error}")),
    }
}

pub(super) async fn read(service: &Service, shown: &Shown) -> Result<(String, Bytes), Refusal> {
    // Created, but nobody has written it yet: there is nothing to load.
    let location = shown.pointer.metadata.clone().ok_or_else(|| Refusal::not_found("table"))?;
    let content = objects::get(&service.client, &location).await.map_err(Refusal::internal)?;
    if content.len() as u64 > LARGEST_METADATA {
        return Err(Refusal::bad_request(format!("The metadata file is too large: {} bytes", content.len())));
    }
    Ok((location, content))
}

async fn create_table(State(service): Shared, Path(mut parts): Path<Parts>, body: Bytes) -> Response {
    let request: CreateTableRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return bad(&error.to_string()),
    };
    if request.stage_create != Some(false) {
        return bad("stage-create must be present and false");
    }
    parts.table.clone_from(&request.name);
    match create(&service, &parts.id(), request).await {
        Ok((location, content)) => answer(&location, &content),
        Err(refusal) => refusal.to_rest("Table"),
    }
}

async fn create(service: &Service, id: &TableId, request: CreateTableRequest) -> Result<(String, Vec<u8>), Refusal> {
    service.lake().may_create(id)?;
    let warehouse = service.make_warehouse().await?;
    let creation = TableCreation::builder()
        .name(request.name)
        .location(warehouse.clone())
        .schema(request.schema)
        .partition_spec_opt(request.partition_spec)
        .sort_order_opt(request.write_order)
        .properties(request.properties)
        .build();
    let built = TableMetadataBuilder::from_table_creation(creation).and_then(TableMetadataBuilder::build);
    let metadata = built.map_err(|error| Refusal::bad_request(error.to_string()))?.metadata;
    let (location, content) = write(service, &warehouse, None, &metadata).await?;
    service.lake().create_table(id, &warehouse, Some(location.clone()))?;
    Ok((location, content))
}

async fn update_table(State(service): Shared, Path(parts): Path<Parts>, headers: HeaderMap, body: Bytes) -> Response {
    let only_on = headers.get(ONLY_ON_TOKEN).and_then(|token| token.to_str().ok());
    match commit(&service, &parts.id(), only_on, &body).await {
        Ok((location, content)) => answer(&location, &content),
        Err(refusal) => refusal.to_rest("Commit"),
    }
}

async fn commit(
    service: &Service,
    id: &TableId,
    only_on: Option<&str>,
    body: &[u8],
) -> Result<(String, Vec<u8>), Refusal> {
    let request: CommitTableRequest =
        serde_json::from_slice(body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    // More turns than writers race in any test; each turn that fails is another writer's success.
    for _ in 0..64 {
        let shown = service.show(id)?;
        let token = only_on.unwrap_or(&shown.pointer.token);
        let (location, content) = read(service, &shown).await?;
        let next = apply(&location, &content, request.clone())?;
        let (next_location, next_content) = write(service, &shown.warehouse, Some(&location), &next).await?;
        let by = if only_on.is_some() { Committer::Maintenance } else { Committer::Rest };
        match service.lake().swap(id, token, &next_location, by) {
            Ok(_) => return Ok((next_location, next_content)),
            Err(refusal) if refusal.is_conflict() && only_on.is_none() => {}
            Err(refusal) => return Err(refusal),
        }
    }
    Err(Refusal::conflict("too many concurrent updates"))
}

/// The metadata after a commit, if all that it requires holds.
pub(super) fn apply(location: &str, content: &[u8], request: CommitTableRequest) -> Result<TableMetadata, Refusal> {
    let current: TableMetadata =
        serde_json::from_slice(content).map_err(|error| Refusal::bad_request(format!("{location}: {error}")))?;
    for requirement in &request.requirements {
        requirement.check(Some(&current)).map_err(|error| Refusal::conflict(error.to_string()))?;
    }
    let mut builder = current.into_builder(Some(location.to_owned()));
    for update in request.updates {
        builder = update.apply(builder).map_err(|error| Refusal::bad_request(error.to_string()))?;
    }
    Ok(builder.build().map_err(|error| Refusal::bad_request(error.to_string()))?.metadata)
}

/// Writes a metadata file whose number follows the previous one's.
pub(super) async fn write(
    service: &Service,
    warehouse: &str,
    previous: Option<&str>,
    metadata: &TableMetadata,
) -> Result<(String, Vec<u8>), Refusal> {
    let number = previous.and_then(|location| {
        let file = location.rsplit('/').next()?;
        file.split('-').next()?.parse::<u32>().ok()
    });
    let number = number.map_or(0, |number| number + 1);
    let location = format!("{warehouse}/metadata/{number:05}-{}.metadata.json", Uuid::new_v4());
    let content = serde_json::to_vec(metadata).map_err(|error| Refusal::internal(error.to_string()))?;
    objects::put(&service.client, &location, content.clone()).await.map_err(Refusal::internal)?;
    Ok((location, content))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Purge {
    purge_requested: Option<String>,
}

async fn drop_table(State(service): Shared, Path(parts): Path<Parts>, Query(purge): Query<Purge>) -> Response {
    // PyIceberg writes True, Java true.
    if !purge.purge_requested.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return bad("purgeRequested must be true");
    }
    match service.lake().delete_table(&parts.id(), None) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refusal) => refusal.to_rest("Table"),
    }
}
