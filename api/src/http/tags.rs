//! One name of a snapshot, under an address of its own: given, moved by who has seen where it stands, taken away.
//!
//! There is no key for repeats: a name that is where it was wanted is answered as it was the first time, and nothing is done.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::schema::TableName;
use lakehouse_core::tags::{TagName, tagged};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::auth::Principal;
use super::body::{Body, Id, Reason};
use super::etag::Etag;
use super::preconditions::{Seen, required, seen};
use super::problem::HttpProblem;
use super::rollbacks::in_the_way;
use super::tables::InPath;
use super::wish::settled_point;
use super::{Service, Shared};
use crate::config::Role;
use crate::lake::Point;
use crate::operate::tags;
use crate::shapes;

/// The table and the name that an address has.
pub(super) struct Address {
    table: TableName,
    name: TagName,
}

/// A name of a snapshot.
#[derive(Serialize, ToSchema)]
struct Tag {
    table: String,
    tag: String,
    snapshot_id: String,
    /// It never moves, and only an admin takes it away.
    protected: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Address {
    type Rejection = HttpProblem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpProblem> {
        let path: Result<Path<(String, String, String)>, PathRejection> = Path::from_request_parts(parts, state).await;
        let Path((namespace, table, name)) = path.map_err(|rejection| HttpProblem::invalid(rejection.body_text()))?;
        Ok(Self { table: TableName::new(namespace, table), name: TagName::new(&name)? })
    }
}

impl Address {
    async fn load(&self, service: &Service) -> Result<LoadedTable, HttpProblem> {
        Ok(tags::table(&service.lake, &self.table).await?)
    }

    /// Of the name at this snapshot: what else happens to the table leaves it as it is.
    fn etag(&self, table: &LoadedTable, snapshot_id: i64) -> Etag {
        Etag::of(&[&table.metadata.uuid().to_string(), self.name.as_str(), &snapshot_id.to_string()])
    }

    fn answer(&self, table: &LoadedTable, snapshot_id: i64, status: StatusCode) -> Response {
        let tag = Tag {
            table: self.table.to_string(),
            tag: self.name.as_str().to_owned(),
            snapshot_id: snapshot_id.to_string(),
            protected: self.name.is_protected(),
        };
        self.etag(table, snapshot_id).on((status, Json(tag)).into_response())
    }

    fn moved(&self) -> HttpProblem {
        let detail = format!("{}: the tag {} is not what the headers say; nothing was changed", self.table, self.name);
        HttpProblem::new(StatusCode::PRECONDITION_FAILED, "TAG_MOVED", detail)
    }
}

/// Show a tag of a table.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}/tags/{name}", operation_id = "show_tag", tag = "tables",
    params(InPath, ("name" = String, Path, description = "A slash in it is written `%2F`")),
    responses(
        (status = 200, description = "The tag", body = Tag, headers(("ETag" = String))),
        (status = 404, description = "There is no such table or tag"),
    )
)]
pub(super) async fn show(
    State(service): State<Shared>,
    address: Address,
    headers: HeaderMap,
) -> Result<Response, HttpProblem> {
    let table = address.load(&service).await?;
    let snapshot_id = tags::named(&table, &address.name)?;
    let unchanged = address.etag(&table, snapshot_id).unchanged(&headers);
    Ok(unchanged.unwrap_or_else(|| address.answer(&table, snapshot_id, StatusCode::OK)))
}

/// Which snapshot it is to be: exactly one of the first four.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TagOrder)]
pub(super) struct Wanted {
    snapshot_id: Option<Id>,
    /// RFC 3339, or a date; without a zone it is UTC.
    as_of: Option<String>,
    tag: Option<String>,
    #[schema(value_type = Option<shapes::Position>)]
    cut: Option<String>,
    reason: Option<Reason>,
}

impl Wanted {
    fn point(&self) -> Result<Point, HttpProblem> {
        let snapshot = self.snapshot_id.map(|id| id.0);
        settled_point(snapshot, self.as_of.as_deref(), self.tag.as_deref(), self.cut.as_deref())
    }
}

/// Give a snapshot a name, or move the name there.
///
/// What is there already is answered as the first time. A protected tag (`protected/…`) never moves.
#[utoipa::path(
    put, path = "/v1/tables/{namespace}/{table}/tags/{name}", operation_id = "set_tag", tag = "tables",
    params(
        InPath,
        ("name" = String, Path, description = "A slash in it is written `%2F`"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: nothing has this name. Either this or `If-Match`"),
        ("If-Match" = Option<String>, Header, description = "The tag's `ETag`, to move it"),
    ),
    request_body = Wanted,
    responses(
        (status = 200, description = "The tag, moved, or as it was", body = Tag, headers(("ETag" = String))),
        (status = 201, description = "The tag, given", body = Tag, headers(("ETag" = String))),
        (status = 404, description = "There is no such table, snapshot, tag or cut"),
        (status = 409, description = "The snapshot has expired, or the table has as many tags as it may"),
        (status = 412, description = "The tag is not what the headers say; nothing was changed"),
        (status = 428, description = "Neither header is there"),
    )
)]
pub(super) async fn set(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    address: Address,
    headers: HeaderMap,
    Body(wanted): Body<Wanted>,
) -> Result<Response, HttpProblem> {
    let seen = seen(&headers)?;
    let table = address.load(&service).await?;
    let found = service.lake.find_id(&service.config, &table, &wanted.point()?).await;
    let snapshot_id = found.map_err(in_the_way)?;
    let there = tagged(&table, &address.name)?;
    let status = if there.is_none() { StatusCode::CREATED } else { StatusCode::OK };
    if there != Some(snapshot_id) {
        let is_seen = match (seen, there) {
            (Seen::Nothing, None) => true,
            (Seen::State(tag), Some(id)) => address.etag(&table, id).is_among(tag),
            _ => false,
        };
        if !is_seen {
            return Err(address.moved());
        }
        let detail = json!({"tag": address.name.as_str(), "snapshot_id": snapshot_id.to_string(),
                            "previous": there.map(|id| id.to_string())});
        let (subject, reason) = (address.table.to_string(), text(wanted.reason.as_ref()));
        let setting = async { Ok(tags::set(&service.lake, &address.table, &address.name, snapshot_id, there).await?) };
        let verb = tags::action(&address.name, false);
        service.noted_with(&principal, verb, &subject, reason, detail, setting).await?;
    }
    Ok(address.answer(&table, snapshot_id, status))
}

/// Why a name is taken away; needed for a protected one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TagRemoval)]
pub(super) struct Unwanted {
    reason: Option<Reason>,
}

/// Take a name away from its snapshot; a protected one (`protected/…`) only as an admin, with a reason.
#[utoipa::path(
    delete, path = "/v1/tables/{namespace}/{table}/tags/{name}", operation_id = "remove_tag", tag = "tables",
    params(
        InPath,
        ("name" = String, Path, description = "A slash in it is written `%2F`"),
        ("If-Match" = String, Header, description = "The tag's `ETag`"),
    ),
    request_body = Unwanted,
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "There is no such table or tag"),
        (status = 412, description = "The tag is not what the header says; nothing was changed"),
        (status = 428, description = "The header is missing"),
    )
)]
pub(super) async fn remove(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    address: Address,
    headers: HeaderMap,
    Body(Unwanted { reason }): Body<Unwanted>,
) -> Result<Response, HttpProblem> {
    if address.name.is_protected() {
        service.check_role(&principal, Role::Admin, &address.table.to_string()).await?;
        if reason.is_none() {
            return Err(HttpProblem::invalid("a protected tag is taken away with a reason"));
        }
    }
    let seen = required(&headers, "if-match")?;
    let table = address.load(&service).await?;
    let snapshot_id = tags::named(&table, &address.name)?;
    if !address.etag(&table, snapshot_id).is_among(seen) {
        return Err(address.moved());
    }
    let detail = json!({"tag": address.name.as_str(), "snapshot_id": snapshot_id.to_string()});
    let (subject, reason) = (address.table.to_string(), text(reason.as_ref()));
    let removing = async { Ok(tags::remove(&service.lake, &address.table, &address.name, snapshot_id).await?) };
    let verb = tags::action(&address.name, true);
    service.noted_with(&principal, verb, &subject, reason, detail, removing).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn text(reason: Option<&Reason>) -> &str {
    reason.map_or("", |Reason(text)| text)
}
