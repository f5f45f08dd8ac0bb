//! What stands about tables: which there are, one of them, its snapshots, references and health.

use axum::Extension;
use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use iceberg::spec::{SnapshotReference, SnapshotRetention};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{self, is_control};
use lakehouse_core::schema::TableName;
use serde::Serialize;

use super::Shared;
use super::auth::Principal;
use super::etag::Etag;
use super::problem::HttpProblem;
use crate::failure::Failure;
use crate::lake::Lake;
use crate::upkeep::check_maintained;
use crate::verbs::health;
use crate::verbs::snapshots::Snapshots;
use crate::verbs::tables::Table;

/// The table that an address names.
pub(super) struct Named(pub(super) TableName);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = HttpProblem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpProblem> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((namespace, table)) = path.map_err(|rejection| HttpProblem::invalid(rejection.body_text()))?;
        Ok(Self(TableName::new(namespace, table)))
    }
}

impl Named {
    /// As it stands; control tables are not for readers.
    pub(super) async fn load(&self, lake: &Lake) -> Result<LoadedTable, Failure> {
        if is_control(&self.0) {
            let remedy = "its pipeline's tables are for readers";
            return Err(Failure::failed("TABLE_UNKNOWN", self.0.to_string(), "no such table", remedy));
        }
        lake.table(&self.0).await
    }
}

#[derive(Serialize)]
struct Tables {
    tables: Vec<Table>,
}

pub(super) async fn list(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
) -> Result<Response, HttpProblem> {
    let mut loaded = service.lake.tables(None).await?;
    loaded.retain(|table| principal.may_see(&table.name));
    let states: Vec<String> = loaded.iter().map(|table| format!("{} {}", table.metadata.uuid(), table.token)).collect();
    let etag = Etag::of(&states.iter().map(String::as_str).collect::<Vec<_>>());
    if let Some(unchanged) = etag.unchanged(&headers) {
        return Ok(unchanged);
    }
    let mut tables = Vec::new();
    for table in &loaded {
        tables.push(Table::of(&service.lake, table).await?);
    }
    Ok(etag.on(Json(Tables { tables }).into_response()))
}

#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    table: Table,
    columns: Vec<Column>,
    /// Names of the columns that tell rows apart.
    key: Vec<String>,
}

#[derive(Serialize)]
struct Column {
    name: String,
    r#type: String,
    required: bool,
    /// Name at the source, where it is another one.
    doc: Option<String>,
}

pub(super) async fn describe(
    State(service): State<Shared>,
    named: Named,
    headers: HeaderMap,
) -> Result<Response, HttpProblem> {
    let table = named.load(&service.lake).await?;
    let etag = Etag::of_table(&table);
    if let Some(unchanged) = etag.unchanged(&headers) {
        return Ok(unchanged);
    }
    let schema = table.metadata.current_schema();
    let columns = schema.as_struct().fields().iter().map(|field| Column {
        name: field.name.clone(),
        r#type: field.field_type.to_string(),
        required: field.required,
        doc: field.doc.clone(),
    });
    let key = schema.identifier_field_ids().filter_map(|id| schema.name_by_field_id(id)).map(str::to_owned);
    let (columns, key) = (columns.collect(), key.collect());
    let described = Described { table: Table::of(&service.lake, &table).await?, columns, key };
    Ok(etag.on(Json(described).into_response()))
}

pub(super) async fn snapshots(
    State(service): State<Shared>,
    named: Named,
    headers: HeaderMap,
) -> Result<Response, HttpProblem> {
    let table = named.load(&service.lake).await?;
    let etag = Etag::of_table(&table);
    Ok(etag.unchanged(&headers).unwrap_or_else(|| etag.on(Json(Snapshots::of(&table)).into_response())))
}

#[derive(Serialize)]
struct References {
    table: String,
    refs: Vec<Reference>,
}

#[derive(Serialize)]
struct Reference {
    name: String,
    /// `branch` or `tag`.
    kind: &'static str,
    snapshot_id: String,
}

pub(super) async fn references(
    State(service): State<Shared>,
    named: Named,
    headers: HeaderMap,
) -> Result<Response, HttpProblem> {
    let table = named.load(&service.lake).await?;
    let etag = Etag::of_table(&table);
    if let Some(unchanged) = etag.unchanged(&headers) {
        return Ok(unchanged);
    }
    let reference = |(name, found): (String, SnapshotReference)| {
        let kind = match found.retention {
            SnapshotRetention::Branch { .. } => "branch",
            SnapshotRetention::Tag { .. } => "tag",
        };
        Reference { name, kind, snapshot_id: found.snapshot_id.to_string() }
    };
    let refs = commit::references(&table).into_iter().map(reference).collect();
    Ok(etag.on(Json(References { table: table.name.to_string(), refs }).into_response()))
}

/// Has no tag: ages in it grow by themselves.
pub(super) async fn health(State(service): State<Shared>, named: Named) -> Result<Response, HttpProblem> {
    let table = named.load(&service.lake).await?;
    check_maintained(&table)?;
    Ok(Json(health::one(&service.lake, &service.config.maintenance, table).await?).into_response())
}
