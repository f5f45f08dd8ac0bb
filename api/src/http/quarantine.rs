//! The quarantine of a table: what stands there and why, for those who may read its rows, and the replay of what fits by
//! now.
//!
//! There is no key for repeats: as long as a replay is wanted and not done, asking again gives the same one.

use std::cmp::Reverse;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use lakehouse_core::error::Problem;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::info;
use utoipa::{IntoParams, ToSchema};

use super::Shared;
use super::auth::Principal;
use super::body::{Body, Reason, Why};
use super::page::{Begin, Page, PageWish};
use super::problem::HttpProblem;
use super::query::understood;
use super::tables::{InPath, Named};
use crate::operate::quarantine::{Replay, Requested};
use crate::quarantined::{Listed, Place, Quarantine, Quarantined, Wish, check_mirror};

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct Parameters {
    /// Keys, and not only their digests.
    show_keys: bool,
    /// Items of a page; 100, where it is left out.
    #[param(minimum = 1, maximum = 1000)]
    page_size: Option<usize>,
    /// `next_page_token` of the page before; the first one, without.
    page_token: Option<String>,
}

/// Some rows of a table's quarantine.
#[derive(Serialize, ToSchema)]
struct QuarantinePage {
    #[serde(flatten)]
    listed: Listed,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_page_token: Option<String>,
}

/// List which rows of a table could not be mapped and why, the newest first.
///
/// It is for who may read the rows of the table and of its quarantine. Each page reads the quarantine, so it is a scan.
#[utoipa::path(
    get, path = "/v1/tables/{namespace}/{table}/quarantine", operation_id = "list_quarantine", tag = "tables",
    params(InPath, Parameters),
    responses(
        (status = 200, description = "Rows of its quarantine, without their images", body = QuarantinePage),
        (status = 404, description = "There is no such mirror"),
        (status = 429, description = "As many answers with rows are under way as this server gives at a time"),
    )
)]
pub(super) async fn list(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    named: Named,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, HttpProblem> {
    let Parameters { show_keys, page_size, page_token } = understood(parameters)?;
    service.shows_rows()?;
    service.check_scope(&principal, &[named.0.quarantine()]).await?;
    let mirror = named.load(&service.lake).await?;
    check_mirror(&mirror)?;
    let uuid = mirror.metadata.uuid().to_string();
    let list = ["quarantine", &uuid];
    let Begin { behind, size } = service.page_key.begin(&PageWish { page_size, page_token }, &list)?;
    let Some(table) = service.lake.quarantine(&mirror).await? else {
        let nothing = QuarantinePage { listed: Listed::nothing(&mirror.name), next_page_token: None };
        return Ok(Json(nothing).into_response());
    };
    let permit = service.scan_permit(&principal)?;
    let quarantine = Quarantine::open(&service.lake, table).await?;
    info!(principal = %principal.name, table = %mirror.name, show_keys, "a quarantine is read");
    let detail = json!({"show_keys": show_keys, "limit": size});
    let intent = service.audit.read(principal.asks("quarantine", mirror.name.to_string(), detail)).await?;
    let wish = Wish { most: size + 1, behind: behind.map(|Reverse(place): Reverse<Place>| place), show_keys };
    let read = move |check: &dyn Fn() -> Result<(), Problem>| {
        let newest = quarantine.newest(&wish, check);
        let rows = newest.as_ref().ok().map(|rows| rows.len().min(size));
        intent.outcome_now(&newest, json!({"rows": rows}));
        Ok((quarantine, newest?))
    };
    let (quarantine, newest) = permit.read(mirror.name.clone(), read).await?;
    let key = |row: &Quarantined| Reverse(row.place.clone());
    let Page { items, next } = service.page_key.end(&list, size, newest, key);
    let page = QuarantinePage { listed: quarantine.listed(&mirror.name, items), next_page_token: next };
    Ok(Json(page).into_response())
}

/// Apply what stands in a table's quarantine, can be mapped by now, and was not written since.
///
/// The pipeline does it, and the quarantine keeps its rows.
#[utoipa::path(
    post, path = "/v1/tables/{namespace}/{table}/quarantine:replay", operation_id = "replay_quarantine", tag = "tables",
    params(InPath), request_body = Why,
    responses(
        (status = 202, description = "What was asked for, or is wanted already", body = Requested),
        (status = 404, description = "There is no such mirror of a pipeline, or it has no quarantine"),
        (status = 409, description = "The table keeps no history"),
    )
)]
pub(super) async fn replay(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    named: Named,
    Body(Why { reason: Reason(reason) }): Body<Why>,
) -> Result<Response, HttpProblem> {
    service.check_scope(&principal, &[named.0.quarantine()]).await?;
    let mirror = named.load(&service.lake).await?;
    check_mirror(&mirror)?;
    let Some((pipeline, config, _)) = service.lake.pipeline_of(&service.config, &mirror).await? else {
        let detail = format!("{}: no pipeline in the configuration has its cuts", mirror.name);
        return Err(HttpProblem::new(StatusCode::NOT_FOUND, "PIPELINE_UNKNOWN", detail));
    };
    let replay = Replay::plan(&service.lake, pipeline, config, &mirror.name).await?;
    let requested = async {
        let id = replay.request(&service.lake, &reason).await?;
        Ok((StatusCode::ACCEPTED, Json(replay.answer(id))).into_response())
    };
    service.noted_with(&principal, "quarantine_replay", pipeline, &reason, replay.json(), requested).await
}
