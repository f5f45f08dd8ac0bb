//! What stands about tables: which there are, one of them, its snapshots, history, references and health.

use std::collections::HashSet;

use axum::Extension;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use iceberg::spec::{SnapshotLog, SnapshotRef, SnapshotReference, SnapshotRetention};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{self, is_control};
use lakehouse_core::schema::TableName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Shared;
use super::auth::Principal;
use super::etag::Etag;
use super::page::{Page, PageWish};
use super::problem::HttpProblem;
use super::query::understood;
use crate::answer;
use crate::failure::Failure;
use crate::lake::Lake;
use crate::upkeep::check_maintained;
use crate::verbs::health;
use crate::verbs::snapshots::{Snapshots, age};
use crate::verbs::tables::Table;

/// How an address names a table.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct InPath {
    namespace: String,
    table: String,
}

/// The table that an address names.
pub(super) struct Named(pub(super) TableName);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = HttpProblem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpProblem> {
        let path = Path::<InPath>::from_request_parts(parts, state).await;
        let Path(InPath { namespace, table }) =
            path.map_err(|rejection| HttpProblem::invalid(rejection.body_text()))?;
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

/// A list of what stands in a table's metadata, as somebody asks for a page of it.
pub(super) struct Listing {
    service: Shared,
    table: LoadedTable,
    wish: PageWish,
    headers: HeaderMap,
}

impl FromRequestParts<Shared> for Listing {
    type Rejection = HttpProblem;

    async fn from_request_parts(parts: &mut Parts, service: &Shared) -> Result<Self, HttpProblem> {
        let named = Named::from_request_parts(parts, service).await?;
        let wish = understood(Query::from_request_parts(parts, service).await)?;
        let table = named.load(&service.lake).await?;
        Ok(Self { service: Shared::clone(service), table, wish, headers: parts.headers.clone() })
    }
}

impl Listing {
    /// No answer is made for a client that has it.
    fn page<T, K: Ord + Serialize + DeserializeOwned, A: Serialize>(
        &self,
        list: &str,
        known: Vec<T>,
        key: impl Fn(&T) -> K,
        answer: impl FnOnce(Page<T>) -> A,
    ) -> Result<Response, HttpProblem> {
        let uuid = self.table.metadata.uuid().to_string();
        let page = self.service.page_key.page(&self.wish, &[list, &uuid], known, key)?;
        let etag = Etag::of_page(&self.table, &page);
        let whole = || etag.on(Json(answer(page)).into_response());
        Ok(etag.unchanged(&self.headers).unwrap_or_else(whole))
    }
}

/// Those that the token may see.
#[derive(Serialize, ToSchema)]
struct Tables {
    tables: Vec<Table>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_page_token: Option<String>,
}

/// List tables.
#[utoipa::path(
    get, path = "/v1/tables", operation_id = "list_tables", tag = "tables", params(PageWish),
    responses((status = 200, description = "The tables that the token may see", body = Tables, headers(("ETag" = String))))
)]
pub(super) async fn list(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    wish: Result<Query<PageWish>, QueryRejection>,
) -> Result<Response, HttpProblem> {
    let wish = understood(wish)?;
    let mut names = service.lake.names(None).await?;
    names.retain(|name| principal.may_see(name));
    let page = service.page_key.page(&wish, &["tables"], names, |name| (name.namespace.clone(), name.name.clone()))?;
    let loaded = service.lake.loaded(&page.items).await?;
    let states = loaded.iter().map(|table| format!("{} {}", table.metadata.uuid(), table.token));
    let states: Vec<String> = states.chain(page.next.clone()).collect();
    let etag = Etag::of(&states.iter().map(String::as_str).collect::<Vec<_>>());
    if let Some(unchanged) = etag.unchanged(&headers) {
        return Ok(unchanged);
    }
    let mut tables = Vec::new();
    for table in &loaded {
        tables.push(Table::of(&service.lake, table).await?);
    }
    Ok(etag.on(Json(Tables { tables, next_page_token: page.next }).into_response()))
}

/// A table with its columns.
#[derive(Serialize, ToSchema)]
#[schema(as = DescribedTable)]
struct Described {
    #[serde(flatten)]
    table: Table,
    columns: Vec<Column>,
    /// Names of the columns that tell rows apart.
    key: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct Column {
    name: String,
    r#type: String,
    required: bool,
    /// Name at the source, where it is another one.
    doc: Option<String>,
}

/// Describe a table.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}", operation_id = "describe_table", tag = "tables", params(InPath),
    responses(
        (status = 200, description = "The table with its columns and key", body = Described, headers(("ETag" = String))),
        (status = 404, description = "There is no such table"),
    )
)]
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

/// Some snapshots of a table.
#[derive(Serialize, ToSchema)]
struct SnapshotPage {
    #[serde(flatten)]
    snapshots: Snapshots,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_page_token: Option<String>,
}

/// List the snapshots of a table, oldest first.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}/snapshots", operation_id = "list_snapshots", tag = "tables",
    params(InPath, PageWish),
    responses(
        (status = 200, description = "What each has changed", body = SnapshotPage, headers(("ETag" = String))),
        (status = 404, description = "There is no such table"),
    )
)]
pub(super) async fn snapshots(asked: Listing) -> Result<Response, HttpProblem> {
    let table = &asked.table;
    let known = table.metadata.snapshots().cloned().collect();
    let answer = |page: Page<SnapshotRef>| {
        let snapshots = Snapshots::of(table, &page.items);
        SnapshotPage { snapshots, next_page_token: page.next }
    };
    asked.page("snapshots", known, age, answer)
}

/// Which snapshot was current from when.
#[derive(Serialize, ToSchema)]
struct History {
    table: String,
    history: Vec<Turn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_page_token: Option<String>,
}

/// From when on a snapshot was the current one.
#[derive(Serialize, ToSchema)]
struct Turn {
    current_from: String,
    snapshot_id: String,
    parent_id: Option<String>,
    /// The present state has come from it; not so of what was set aside by moving a reference back.
    is_ancestor: bool,
}

/// List which snapshot of a table was current from when, oldest first.
///
/// It is what `as_of` goes by: the table's own log, which ends before the oldest gap.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}/history", operation_id = "list_history", tag = "tables",
    params(InPath, PageWish),
    responses(
        (status = 200, description = "As far as all of them are kept", body = History, headers(("ETag" = String))),
        (status = 404, description = "There is no such table"),
    )
)]
pub(super) async fn history(asked: Listing) -> Result<Response, HttpProblem> {
    let table = &asked.table;
    let log = table.metadata.history().to_vec();
    let key = |turn: &SnapshotLog| (turn.timestamp_ms, turn.snapshot_id);
    let ancestors: HashSet<i64> = table.ancestry().map(|snapshot| snapshot.snapshot_id()).collect();
    let turn = |turn: &SnapshotLog| {
        let snapshot = table.metadata.snapshot_by_id(turn.snapshot_id);
        Turn {
            current_from: answer::time(turn.timestamp_ms),
            snapshot_id: turn.snapshot_id.to_string(),
            parent_id: snapshot.and_then(|snapshot| snapshot.parent_snapshot_id()).map(|id| id.to_string()),
            is_ancestor: ancestors.contains(&turn.snapshot_id),
        }
    };
    let answer = |page: Page<SnapshotLog>| {
        let history = page.items.iter().map(turn).collect();
        History { table: table.name.to_string(), history, next_page_token: page.next }
    };
    asked.page("history", log, key, answer)
}

/// Branches and tags of a table.
#[derive(Serialize, ToSchema)]
struct References {
    table: String,
    refs: Vec<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_page_token: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Reference {
    name: String,
    /// `branch` or `tag`.
    kind: &'static str,
    snapshot_id: String,
}

/// List the branches and tags of a table.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}/refs", operation_id = "list_refs", tag = "tables",
    params(InPath, PageWish),
    responses(
        (status = 200, description = "Each with its snapshot", body = References, headers(("ETag" = String))),
        (status = 404, description = "There is no such table"),
    )
)]
pub(super) async fn references(asked: Listing) -> Result<Response, HttpProblem> {
    let table = &asked.table;
    let known = commit::references(table).into_iter().collect();
    let key = |(name, _): &(String, SnapshotReference)| name.clone();
    let reference = |(name, found): (String, SnapshotReference)| {
        let kind = match found.retention {
            SnapshotRetention::Branch { .. } => "branch",
            SnapshotRetention::Tag { .. } => "tag",
        };
        Reference { name, kind, snapshot_id: found.snapshot_id.to_string() }
    };
    let answer = |page: Page<_>| {
        let refs = page.items.into_iter().map(reference).collect();
        References { table: table.name.to_string(), refs, next_page_token: page.next }
    };
    asked.page("refs", known, key, answer)
}

/// Measure how well a table can be read. It has no tag: ages in it grow by themselves.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}/health", operation_id = "table_health", tag = "tables", params(InPath),
    responses(
        (status = 200, description = "Its measures", body = health::Table),
        (status = 404, description = "There is no such table of a pipeline"),
    )
)]
pub(super) async fn health(State(service): State<Shared>, named: Named) -> Result<Response, HttpProblem> {
    let table = named.load(&service.lake).await?;
    check_maintained(&table)?;
    Ok(Json(health::one(&service.lake, &service.config.maintenance, table).await?).into_response())
}
