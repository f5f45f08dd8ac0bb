//! Pipelines: how they stand, and what operators let them do.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Principal;
use super::body::{Body, Name, Nothing, Reason, Why, named};
use super::page::PageWish;
use super::problem::HttpProblem;
use super::query::understood;
use super::{Service, Shared};
use crate::operate;
use crate::operate::resync::{Requested, Resync};
use crate::verbs::status;

#[derive(Serialize, ToSchema)]
struct Pipelines {
    pipelines: Vec<Pipeline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_page_token: Option<String>,
}

/// As `status` shows it, without its source's end: a service may have no way to the source.
#[derive(Serialize, ToSchema)]
struct Pipeline {
    #[serde(flatten)]
    status: status::Pipeline,
    /// Why a person lets it stand still.
    paused: Option<String>,
}

impl Service {
    async fn pipeline(&self, principal: &Principal, name: &str) -> Result<Pipeline, HttpProblem> {
        let config = self.config.pipeline(name)?;
        let mut status = status::pipeline(Some(&self.lake), name, config, None).await?;
        status.tables.retain(|table| principal.may_see(&table.table));
        Ok(Pipeline { paused: status.paused.take(), status })
    }
}

/// Show how pipelines stand.
#[utoipa::path(
    get, path = "/v1/pipelines", operation_id = "list_pipelines", tag = "pipelines", params(PageWish),
    responses((status = 200, description = "All, each with the tables that the token may see", body = Pipelines))
)]
pub(super) async fn list(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    wish: Result<Query<PageWish>, QueryRejection>,
) -> Result<Response, HttpProblem> {
    let names: Vec<&String> = service.config.pipelines.keys().collect();
    let page = service.page_key.page(&understood(wish)?, &["pipelines"], names, |name| (*name).clone())?;
    let mut pipelines = Vec::new();
    for name in page.items {
        pipelines.push(service.pipeline(&principal, name).await?);
    }
    Ok(Json(Pipelines { pipelines, next_page_token: page.next }).into_response())
}

/// Show how a pipeline stands.
#[utoipa::path(
    get, path = "/v1/pipelines/{pipeline}", operation_id = "show_pipeline", tag = "pipelines",
    params(("pipeline" = String, Path)),
    responses(
        (status = 200, description = "With the tables that the token may see", body = Pipeline),
        (status = 404, description = "There is no such pipeline"),
    )
)]
pub(super) async fn show(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, HttpProblem> {
    Ok(Json(service.pipeline(&principal, &name).await?).into_response())
}

/// Let a pipeline stand still from its next cut on.
#[utoipa::path(
    post, path = "/v1/pipelines/{pipeline}/pause", operation_id = "pause_pipeline", tag = "pipelines",
    params(("pipeline" = String, Path)), request_body = Why,
    responses(
        (status = 200, description = "The pipeline", body = Pipeline),
        (status = 404, description = "There is no such pipeline"),
        (status = 409, description = "Its state does not allow that"),
    )
)]
pub(super) async fn pause(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    Body(Why { reason: Reason(reason) }): Body<Why>,
) -> Result<Response, HttpProblem> {
    let paused = service.set_paused(&principal, &name, Some(&reason));
    service.noted(&principal, "pause", &name, &reason, paused).await
}

/// Let a paused pipeline go on.
#[utoipa::path(
    post, path = "/v1/pipelines/{pipeline}/resume", operation_id = "resume_pipeline", tag = "pipelines",
    params(("pipeline" = String, Path)), request_body = Nothing,
    responses(
        (status = 200, description = "The pipeline", body = Pipeline),
        (status = 404, description = "There is no such pipeline"),
        (status = 409, description = "Its state does not allow that"),
    )
)]
pub(super) async fn resume(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    Body(Nothing {}): Body<Nothing>,
) -> Result<Response, HttpProblem> {
    let resumed = service.set_paused(&principal, &name, None);
    service.noted(&principal, "resume", &name, "", resumed).await
}

impl Service {
    async fn set_paused(
        &self,
        principal: &Principal,
        name: &str,
        reason: Option<&str>,
    ) -> Result<Response, HttpProblem> {
        self.check_scope_of_all(principal, name, self.config.pipeline(name)?).await?;
        operate::pause::set(&self.lake, name, reason).await?;
        Ok(Json(self.pipeline(principal, name).await?).into_response())
    }
}

/// Which tables to copy anew.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ResyncOrder)]
pub(super) struct Wanted {
    #[schema(min_items = 1)]
    tables: Vec<Name>,
    reason: Reason,
}

/// Copy tables anew from their source, beside what stands there.
#[utoipa::path(
    post, path = "/v1/pipelines/{pipeline}/resync", operation_id = "resync_tables", tag = "pipelines",
    params(("pipeline" = String, Path)), request_body = Wanted,
    responses(
        (status = 202, description = "The tables that will be copied anew", body = Requested),
        (status = 404, description = "There is no such pipeline, or no such table of it"),
        (status = 409, description = "The state of the pipeline does not allow that"),
    )
)]
pub(super) async fn resync(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    Body(Wanted { tables, reason: Reason(reason) }): Body<Wanted>,
) -> Result<Response, HttpProblem> {
    let requested = async {
        let tables = named(Some(tables))?;
        service.check_scope(&principal, &tables).await?;
        let resync = Resync::plan(&service.lake, &name, service.config.pipeline(&name)?, &tables).await?;
        resync.request(&service.lake, &reason).await?;
        Ok((StatusCode::ACCEPTED, Json(resync.answer())).into_response())
    };
    service.noted(&principal, "resync", &name, &reason, requested).await
}
