//! Every address, and the least role that may call it. A route is made with its role, so none is without one but the two
//! that say no more than a status, and the console, which has nothing to say by itself.

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, get, post, put};
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use super::auth::{self, Guard, me};
use super::body::BODY_BYTES;
use super::{Shared, console, diff, metrics, operations, pipelines, problem, rollbacks, rows, tables, tags, upkeep};
use crate::config::Role;

/// How long an answer without rows may take (S6); one with rows has the time of a scan.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long the catalog may take to show that it is there.
const READY_TIME: Duration = Duration::from_secs(2);

pub(super) fn api(service: &Shared) -> Router {
    let with = |role: Role, recent_login: bool, route: MethodRouter<Shared>| {
        route.layer(from_fn_with_state(Guard { service: Shared::clone(service), role, recent_login }, auth::check))
    };
    let guarded = |role: Role, route: MethodRouter<Shared>| with(role, false, route);
    // What takes rows away or lets go of them is no work for a browser that somebody has left open (S4).
    let destructive = |route: MethodRouter<Shared>| with(Role::Operator, true, route);
    let about = Router::new()
        .route("/v1/me", guarded(Role::Reader, get(me)))
        .route("/v1/tables", guarded(Role::Reader, get(tables::list)))
        .route("/v1/tables/{namespace}/{table}", guarded(Role::Reader, get(tables::describe)))
        .route("/v1/tables/{namespace}/{table}/snapshots", guarded(Role::Reader, get(tables::snapshots)))
        .route("/v1/tables/{namespace}/{table}/history", guarded(Role::Reader, get(tables::history)))
        .route("/v1/tables/{namespace}/{table}/refs", guarded(Role::Reader, get(tables::references)))
        .route("/v1/tables/{namespace}/{table}/tags/{name}", guarded(Role::Reader, get(tags::show)))
        .route("/v1/tables/{namespace}/{table}/health", guarded(Role::Reader, get(tables::health)))
        .route("/v1/pipelines", guarded(Role::Reader, get(pipelines::list)))
        .route("/v1/pipelines/{pipeline}", guarded(Role::Reader, get(pipelines::show)))
        .route("/v1/operations", guarded(Role::Reader, get(operations::list)))
        .route("/v1/operations/{id}", guarded(Role::Reader, get(operations::show)));
    let operating = Router::new()
        .route(
            "/v1/tables/{namespace}/{table}/tags/{name}",
            guarded(Role::Operator, put(tags::set).delete(tags::remove)),
        )
        .route("/v1/pipelines/{pipeline}/pause", guarded(Role::Operator, post(pipelines::pause)))
        .route("/v1/pipelines/{pipeline}/resume", guarded(Role::Operator, post(pipelines::resume)))
        .route("/v1/pipelines/{pipeline}/resync", destructive(post(pipelines::resync)))
        .route("/v1/rollbacks/{id}/confirm", destructive(post(rollbacks::confirm)))
        .route("/v1/maintenance/runs/{id}", guarded(Role::Operator, get(upkeep::show)))
        .route("/v1/operations/{id}/undo", destructive(post(operations::undo)))
        .route("/v1/operations/{id}/abort", destructive(post(operations::abort)))
        .route("/v1/operations/{id}/accept", destructive(post(operations::accept)))
        .route("/v1/operations/{id}/replay", destructive(post(operations::replay)));
    let quick = about.merge(operating).layer(within_time(ANSWER_TIME));
    // Their answers have no rows of tables, but they read them, or what stands about all of them.
    let planning = Router::new()
        .route("/v1/rollbacks", guarded(Role::Operator, post(rollbacks::preview)))
        .route("/v1/maintenance", guarded(Role::Operator, post(upkeep::maintain)))
        .route("/v1/maintenance/runs", guarded(Role::Reader, get(upkeep::history)))
        .layer(within_time(service.api.scan_time.0));
    let with_rows = Router::new()
        .route("/v1/tables/{namespace}/{table}/rows", guarded(Role::Reader, get(rows::get)))
        .route("/v1/tables/{namespace}/{table}/rows:query", guarded(Role::Reader, post(rows::query)))
        .route("/v1/tables/{namespace}/{table}/diff", guarded(Role::Reader, get(diff::get)));
    let all = quick.merge(planning).merge(with_rows).layer(DefaultBodyLimit::max(BODY_BYTES));
    within(all.merge(console_files()).merge(probes()), service)
}

fn console_files() -> Router<Shared> {
    Router::new()
        .route("/console", get(console::page))
        .route("/console/", get(console::slash))
        .route("/console/{asset}", get(console::asset))
}

fn within_time(time: Duration) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, time)
}

/// For the port of its own.
pub(super) fn metrics(service: &Shared) -> Router {
    within(probes().route("/metrics", get(metrics::show)), service)
}

fn probes() -> Router<Shared> {
    Router::new().route("/livez", get(|| async { StatusCode::OK })).route("/readyz", get(ready))
}

/// What is around every answer: from the inside, panics become errors, errors get a body, and all are counted.
fn within(router: Router<Shared>, service: &Shared) -> Router {
    router
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(from_fn(problem::render))
        .layer(from_fn_with_state(Shared::clone(service), metrics::observe))
        .with_state(Shared::clone(service))
}

/// The catalog answers.
async fn ready(State(service): State<Shared>) -> StatusCode {
    match timeout(READY_TIME, service.lake.catalog.list(None)).await {
        Ok(Ok(_)) => StatusCode::OK,
        Ok(Err(_)) | Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
