//! The native API, as `aws-sdk-s3tables` speaks it (REST with JSON).
//!
//! Only what the product, its tests and its readers need. `DeleteTable` is here so that a test can make a table vanish.

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::lake::{ACCOUNT, Bucket, Lake, TableId};
use super::refusal::{Refusal, bare_xml};
use super::service::Service;

type Shared = State<Arc<Service>>;
type Answer = Result<Json<Value>, Refusal>;

pub(super) fn routes() -> Router<Arc<Service>> {
    let table = "/tables/{bucket}/{namespace}/{name}";
    Router::new()
        .route("/buckets", put(create_table_bucket).get(list_table_buckets))
        .route("/buckets/{bucket}", get(get_table_bucket))
        .route("/namespaces/{bucket}", put(create_namespace).get(list_namespaces))
        .route("/namespaces/{bucket}/{namespace}", get(get_namespace))
        .route("/tables/{bucket}", get(list_tables))
        .route("/tables/{bucket}/{namespace}", put(create_table))
        .route("/get-table", get(get_table))
        .route(table, axum::routing::delete(delete_table))
        .route(&format!("{table}/metadata-location"), get(get_location).put(update_location))
        .route(&format!("{table}/maintenance"), get(get_maintenance))
        .route(&format!("{table}/maintenance/{{job}}"), put(put_maintenance))
        .route(&format!("{table}/maintenance-job-status"), get(get_job_status))
        .layer(middleware::from_fn(signed))
        .fallback(|| async { bare_xml(StatusCode::NOT_FOUND, "UnknownOperationException") })
}

/// A call without a signature for this service is refused; whether the signature is right is not checked.
async fn signed(request: Request, next: Next) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match authorization {
        Some(value) if value.contains("/s3tables/aws4_request") => next.run(request).await,
        _ => Refusal::forbidden("The request is not signed for s3tables.").into_response(),
    }
}

fn admit(service: &Service) -> Result<(), Refusal> {
    if service.habits().throttles() { Err(Refusal::throttled()) } else { Ok(()) }
}

#[derive(Deserialize)]
struct TablePath {
    bucket: String,
    namespace: String,
    name: String,
}

impl From<TablePath> for TableId {
    fn from(path: TablePath) -> Self {
        Self { bucket: path.bucket, namespace: path.namespace, name: path.name }
    }
}

fn parse(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad_request(error.to_string()))
}

fn text<'a>(body: &'a Value, name: &str) -> Result<&'a str, Refusal> {
    body[name].as_str().ok_or_else(|| Refusal::bad_request(format!("{name} is missing")))
}

async fn create_table_bucket(State(service): Shared, body: Bytes) -> Answer {
    admit(&service)?;
    let arn = service.lake().create_bucket(text(&parse(&body)?, "name")?)?;
    Ok(Json(json!({"arn": arn})))
}

fn describe_bucket(arn: &str, bucket: &Bucket) -> Value {
    json!({
        "arn": arn, "name": bucket.name, "ownerAccountId": ACCOUNT, "createdAt": bucket.created_at,
        "tableBucketId": bucket.id, "type": "customer",
    })
}

async fn get_table_bucket(State(service): Shared, Path(arn): Path<String>) -> Answer {
    admit(&service)?;
    Ok(Json(describe_bucket(&arn, service.lake().bucket(&arn)?)))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Listing {
    namespace: Option<String>,
    prefix: String,
    continuation_token: Option<String>,
    #[serde(alias = "maxBuckets", alias = "maxNamespaces", alias = "maxTables")]
    max: Option<usize>,
}

impl Listing {
    /// A page of what is sorted by its first part, and the token of the next. A token is the last name seen.
    fn page(&self, all: Vec<(String, Value)>) -> (Vec<Value>, Option<String>) {
        const LARGEST_PAGE: usize = 1_000;
        let size = self.max.unwrap_or(LARGEST_PAGE).clamp(1, LARGEST_PAGE);
        let after = self.continuation_token.as_deref();
        let mut rest = all.into_iter().filter(|(key, _)| after.is_none_or(|after| key.as_str() > after)).peekable();
        let page: Vec<(String, Value)> = rest.by_ref().take(size).collect();
        let next = rest.peek().and(page.last()).map(|(key, _)| key.clone());
        (page.into_iter().map(|(_, value)| value).collect(), next)
    }
}

async fn list_table_buckets(State(service): Shared, Query(listing): Query<Listing>) -> Answer {
    admit(&service)?;
    let lake = service.lake();
    let named = lake.buckets.iter().filter(|(_, bucket)| bucket.name.starts_with(&listing.prefix));
    let (page, next) = listing.page(named.map(|(arn, bucket)| (arn.clone(), describe_bucket(arn, bucket))).collect());
    Ok(Json(json!({"tableBuckets": page, "continuationToken": next})))
}

async fn create_namespace(State(service): Shared, Path(arn): Path<String>, body: Bytes) -> Answer {
    admit(&service)?;
    let body = parse(&body)?;
    let [name] = body["namespace"].as_array().map(Vec::as_slice).unwrap_or_default() else {
        return Err(Refusal::bad_request("a namespace has one level"));
    };
    service.lake().create_namespace(&arn, name.as_str().unwrap_or_default())?;
    Ok(Json(json!({"tableBucketARN": arn, "namespace": [name]})))
}

fn describe_namespace(lake: &Lake, arn: &str, name: &str) -> Result<Value, Refusal> {
    let namespace = lake.namespace(arn, name)?;
    Ok(json!({
        "namespace": [name], "createdAt": namespace.created_at, "createdBy": ACCOUNT, "ownerAccountId": ACCOUNT,
        "namespaceId": namespace.id, "tableBucketId": lake.bucket(arn)?.id,
    }))
}

async fn get_namespace(State(service): Shared, Path((arn, name)): Path<(String, String)>) -> Answer {
    admit(&service)?;
    Ok(Json(describe_namespace(&service.lake(), &arn, &name)?))
}

async fn list_namespaces(State(service): Shared, Path(arn): Path<String>, Query(listing): Query<Listing>) -> Answer {
    admit(&service)?;
    let lake = service.lake();
    let names = lake.bucket(&arn)?.namespaces.keys().filter(|name| name.starts_with(&listing.prefix));
    let all: Result<Vec<_>, Refusal> =
        names.map(|name| Ok((name.clone(), describe_namespace(&lake, &arn, name)?))).collect();
    let (page, next) = listing.page(all?);
    Ok(Json(json!({"namespaces": page, "continuationToken": next})))
}

async fn create_table(
    State(service): Shared,
    Path((bucket, namespace)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    admit(&service)?;
    let body = parse(&body)?;
    if body["format"] != "ICEBERG" {
        return Err(Refusal::bad_request("the format must be ICEBERG"));
    }
    if !body["metadata"].is_null() {
        return Err(Refusal::bad_request("the simulator makes no metadata: create the table without"));
    }
    let id = TableId { bucket, namespace, name: text(&body, "name")?.to_owned() };
    service.lake().may_create(&id)?;
    let warehouse = service.make_warehouse().await?;
    let mut lake = service.lake();
    let table = lake.create_table(&id, &warehouse, None)?;
    Ok(Json(json!({"tableARN": table.arn, "versionToken": table.pointer.token})))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WhichTable {
    #[serde(rename = "tableBucketARN")]
    bucket: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    table_arn: Option<String>,
}

async fn get_table(State(service): Shared, Query(which): Query<WhichTable>) -> Answer {
    admit(&service)?;
    let id = match which {
        WhichTable { bucket: Some(bucket), namespace: Some(namespace), name: Some(name), .. } => {
            TableId { bucket, namespace, name }
        }
        WhichTable { table_arn: Some(arn), .. } => {
            find_by_arn(&service.lake(), &arn).ok_or_else(|| Refusal::not_found("table"))?
        }
        _ => return Err(Refusal::bad_request("bucket, namespace and name are needed, or the table's ARN")),
    };
    let shown = service.show(&id)?;
    let lake = service.lake();
    let table = lake.table(&id)?;
    let mut answer = json!({
        "name": id.name, "type": "customer", "tableARN": table.arn, "namespace": [id.namespace],
        "namespaceId": lake.namespace(&id.bucket, &id.namespace)?.id, "tableBucketId": lake.bucket(&id.bucket)?.id,
        "versionToken": shown.pointer.token, "warehouseLocation": shown.warehouse,
        "createdAt": table.created_at, "createdBy": ACCOUNT, "modifiedAt": table.modified_at, "modifiedBy": ACCOUNT,
        "ownerAccountId": ACCOUNT, "format": "ICEBERG",
    });
    if let Some(metadata) = shown.pointer.metadata {
        answer["metadataLocation"] = json!(metadata);
    }
    Ok(Json(answer))
}

fn find_by_arn(lake: &Lake, arn: &str) -> Option<TableId> {
    lake.buckets.iter().find_map(|(bucket, inside)| {
        inside.namespaces.iter().find_map(|(namespace, tables)| {
            let name = tables.tables.iter().find(|(_, table)| table.arn == arn)?.0;
            Some(TableId { bucket: bucket.clone(), namespace: namespace.clone(), name: name.clone() })
        })
    })
}

async fn list_tables(State(service): Shared, Path(arn): Path<String>, Query(listing): Query<Listing>) -> Answer {
    admit(&service)?;
    let lake = service.lake();
    let bucket = lake.bucket(&arn)?;
    if let Some(namespace) = &listing.namespace {
        lake.namespace(&arn, namespace)?;
    }
    let mut all = Vec::new();
    for (namespace, inside) in &bucket.namespaces {
        if listing.namespace.as_ref().is_some_and(|wanted| wanted != namespace) {
            continue;
        }
        for (name, table) in inside.tables.iter().filter(|(name, _)| name.starts_with(&listing.prefix)) {
            let summary = json!({
                "namespace": [namespace], "name": name, "type": "customer", "tableARN": table.arn,
                "createdAt": table.created_at, "modifiedAt": table.modified_at,
                "namespaceId": inside.id, "tableBucketId": bucket.id,
            });
            all.push((format!("{namespace}.{name}"), summary));
        }
    }
    // Maps are sorted by name, which is not how the joined names sort.
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    let (page, next) = listing.page(all);
    Ok(Json(json!({"tables": page, "continuationToken": next})))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    version_token: Option<String>,
}

async fn delete_table(
    State(service): Shared,
    Path(path): Path<TablePath>,
    Query(token): Query<Token>,
) -> Result<StatusCode, Refusal> {
    admit(&service)?;
    service.lake().delete_table(&path.into(), token.version_token.as_deref())?;
    Ok(StatusCode::NO_CONTENT)
}

async fn get_location(State(service): Shared, Path(path): Path<TablePath>) -> Answer {
    admit(&service)?;
    let shown = service.show(&path.into())?;
    let mut answer = json!({"versionToken": shown.pointer.token, "warehouseLocation": shown.warehouse});
    if let Some(metadata) = shown.pointer.metadata {
        answer["metadataLocation"] = json!(metadata);
    }
    Ok(Json(answer))
}

async fn update_location(State(service): Shared, Path(path): Path<TablePath>, body: Bytes) -> Answer {
    admit(&service)?;
    let body = parse(&body)?;
    let (token, metadata) = (text(&body, "versionToken")?, text(&body, "metadataLocation")?);
    let id = TableId::from(path);
    let (arn, next) = service.update(id.clone(), token.to_owned(), metadata.to_owned()).await?;
    Ok(Json(json!({
        "name": id.name, "tableARN": arn, "namespace": [id.namespace], "versionToken": next,
        "metadataLocation": metadata,
    })))
}

async fn get_maintenance(State(service): Shared, Path(path): Path<TablePath>) -> Answer {
    admit(&service)?;
    let lake = service.lake();
    let table = lake.table(&path.into())?;
    Ok(Json(json!({"tableARN": table.arn, "configuration": table.maintenance.configuration()})))
}

#[derive(Deserialize)]
struct JobPath {
    bucket: String,
    namespace: String,
    name: String,
    job: String,
}

async fn put_maintenance(
    State(service): Shared,
    Path(JobPath { bucket, namespace, name, job }): Path<JobPath>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    admit(&service)?;
    let value = parse(&body)?["value"].take();
    let id = TableId { bucket, namespace, name };
    service.lake().table_mut(&id)?.maintenance.configure(&job, &value)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn get_job_status(State(service): Shared, Path(path): Path<TablePath>) -> Answer {
    admit(&service)?;
    let lake = service.lake();
    let table = lake.table(&path.into())?;
    Ok(Json(json!({"tableARN": table.arn, "status": table.maintenance.job_status()})))
}
