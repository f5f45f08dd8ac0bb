//! The audit trail, for admins of every table: an entry may be about any of them. Who looks at it leaves no entry: it has no
//! row of a table.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::Shared;
use super::auth::Principal;
use super::page::{self, Begin, PageWish};
use super::problem::HttpProblem;
use super::query::understood;
use crate::audit::Recorded;

/// What its pages' tokens are good for, and what a refusal is about.
const LIST: &str = "audit";

/// Some entries of the audit trail.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditTrail)]
struct Trail {
    /// False where the configuration has none.
    kept: bool,
    entries: Vec<Recorded>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_page_token: Option<String>,
}

/// List the entries of the audit trail, the newest first.
///
/// A page of very long entries ends before it is full. The token leads to older ones, and no longer where the file was
/// moved away meanwhile.
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "list_audit", tag = "audit", params(PageWish),
    responses((status = 200, description = "Each as it stands in the file", body = Trail))
)]
pub(super) async fn list(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    wish: Result<Query<PageWish>, QueryRejection>,
) -> Result<Response, HttpProblem> {
    if !principal.may_see_everything() {
        let detail = "the audit trail is about all tables, and the token is not for all of them";
        return Err(service.beyond_scope(&principal, LIST, detail).await);
    }
    let Begin { behind, size } = service.page_key.begin(&understood(wish)?, &[LIST])?;
    let found = service.audit.page(behind, size).await?.ok_or_else(page::invalid)?;
    let next_page_token = found.next.map(|mark| service.page_key.token(&[LIST], &mark));
    Ok(Json(Trail { kept: service.audit.is_kept(), entries: found.entries, next_page_token }).into_response())
}
