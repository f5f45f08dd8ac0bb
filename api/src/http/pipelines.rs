//! Pipelines: how they stand, and what operators let them do.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::auth::Principal;
use super::body::{Body, Name, Nothing, Reason, Why, named};
use super::page::PageWish;
use super::problem::HttpProblem;
use super::wish::query;
use super::{Service, Shared};
use crate::operate;
use crate::operate::resync::Resync;
use crate::verbs::status;

#[derive(Serialize)]
struct Pipelines {
    pipelines: Vec<Pipeline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

/// As `status` shows it, without its source's end: a service may have no way to the source.
#[derive(Serialize)]
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

pub(super) async fn list(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    wish: Result<Query<PageWish>, QueryRejection>,
) -> Result<Response, HttpProblem> {
    let names: Vec<&String> = service.config.pipelines.keys().collect();
    let page = service.page_key.page(&query(wish)?, &["pipelines"], names, |name| (*name).clone())?;
    let mut pipelines = Vec::new();
    for name in page.items {
        pipelines.push(service.pipeline(&principal, name).await?);
    }
    Ok(Json(Pipelines { pipelines, next_page_token: page.next }).into_response())
}

pub(super) async fn show(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, HttpProblem> {
    Ok(Json(service.pipeline(&principal, &name).await?).into_response())
}

pub(super) async fn pause(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    Body(Why { reason: Reason(reason) }): Body<Why>,
) -> Result<Response, HttpProblem> {
    let paused = service.set_paused(&principal, &name, Some(&reason));
    service.noted(&principal, "pause", &name, &reason, paused).await
}

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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    tables: Vec<Name>,
    reason: Reason,
}

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
        Ok((StatusCode::ACCEPTED, Json(resync.json())).into_response())
    };
    service.noted(&principal, "resync", &name, &reason, requested).await
}
