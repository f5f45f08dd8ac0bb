//! Every address, the least role that may call it, whether that wants a recent login, and how long its answer may take: one
//! list, of which the routes and the document about them (`openapi.rs`) are both made, so a handler without a description has
//! no place in it. Only what says nothing about a lake is without a role. Not in it: `/metrics`, which has a port of its own.

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use super::auth::{self, Guard};
use super::body::BODY_BYTES;
use super::{
    Shared, audit, compression, console, diff, metrics, openapi, operations, pipelines, problem, quarantine, query,
    rollbacks, rows, tables, tags, upkeep, verifications,
};
use crate::config::Role;

/// How long an answer without rows may take (S6).
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long the catalog may take to show that it is there.
const READY_TIME: Duration = Duration::from_secs(2);

/// Handlers of one address, with their descriptions.
type Described = UtoipaMethodRouter<Shared>;

/// One address.
pub(super) struct Route {
    /// The least that may call it; without one everybody may, and need not say who they are.
    pub(super) role: Option<Role>,
    /// It takes rows away or lets go of them: no work for a browser that somebody has left open (S4).
    pub(super) destructive: bool,
    time: Time,
    pub(super) described: Described,
}

/// How long an answer may take.
enum Time {
    /// [`ANSWER_TIME`].
    Answer,
    /// It has no rows of tables, but it reads them, or what stands about all of them: the time of a scan.
    Scan,
    /// It has rows, which may come compressed, and ends by itself (`pipe.rs`).
    Rows,
}

pub(super) fn all() -> Vec<Route> {
    let open = |described: Described| Route { role: None, destructive: false, time: Time::Answer, described };
    let reader = |described: Described| Route { role: Some(Role::Reader), ..open(described) };
    let operator = |described: Described| Route { role: Some(Role::Operator), ..open(described) };
    let destructive = |described: Described| Route { destructive: true, ..operator(described) };
    vec![
        reader(routes!(auth::me)),
        reader(routes!(tables::list)),
        reader(routes!(tables::describe)),
        reader(routes!(tables::snapshots)),
        reader(routes!(tables::history)),
        reader(routes!(tables::references)),
        reader(routes!(tags::show)),
        operator(routes!(tags::set, tags::remove)),
        reader(routes!(tables::health)),
        Route { time: Time::Rows, ..reader(routes!(rows::get)) },
        Route { time: Time::Rows, ..reader(routes!(rows::query)) },
        Route { time: Time::Rows, ..reader(routes!(diff::get)) },
        Route { time: Time::Scan, ..reader(routes!(quarantine::list)) },
        operator(routes!(quarantine::replay)),
        reader(routes!(pipelines::list)),
        reader(routes!(pipelines::show)),
        operator(routes!(pipelines::pause)),
        operator(routes!(pipelines::resume)),
        destructive(routes!(pipelines::resync)),
        operator(routes!(verifications::verify)),
        operator(routes!(verifications::show)),
        Route { time: Time::Scan, ..operator(routes!(rollbacks::preview)) },
        destructive(routes!(rollbacks::confirm)),
        reader(routes!(operations::list)),
        reader(routes!(operations::show)),
        destructive(routes!(operations::undo)),
        destructive(routes!(operations::abort)),
        destructive(routes!(operations::accept)),
        destructive(routes!(operations::replay)),
        Route { time: Time::Scan, ..operator(routes!(upkeep::maintain)) },
        Route { time: Time::Scan, ..reader(routes!(upkeep::history)) },
        operator(routes!(upkeep::show)),
        Route { role: Some(Role::Admin), ..open(routes!(audit::list)) },
        open(routes!(openapi::show)),
        open(routes!(console::page)),
        open(routes!(console::slash)),
        open(routes!(console::asset)),
        open(routes!(live)),
        open(routes!(ready)),
    ]
}

impl Route {
    fn add_to(self, router: Router<Shared>, service: &Shared) -> Router<Shared> {
        let (_, described, mut handlers) = self.described;
        let (address, item) = described.paths.iter().next().expect("what is described has an address");
        handlers = handlers.layer(from_fn_with_state(query::Known::of(item), query::check));
        if let Some(role) = self.role {
            let guard = Guard { service: Shared::clone(service), role, recent_login: self.destructive };
            handlers = handlers.layer(from_fn_with_state(guard, auth::check));
        }
        let handlers = match self.time {
            Time::Answer => handlers.layer(within_time(ANSWER_TIME)),
            Time::Scan => handlers.layer(within_time(service.api.scan_time.0)),
            Time::Rows => compression::around(handlers),
        };
        router.route(address, handlers)
    }
}

pub(super) fn api(service: &Shared) -> Router {
    let router = all().into_iter().fold(Router::new(), |router, route| route.add_to(router, service));
    within(router.layer(DefaultBodyLimit::max(BODY_BYTES)), service)
}

fn within_time(time: Duration) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, time)
}

/// For the port of its own.
pub(super) fn metrics(service: &Shared) -> Router {
    let probes = Router::new().route("/livez", get(live)).route("/readyz", get(ready));
    within(probes.route("/metrics", get(metrics::show)), service)
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

/// The process answers.
#[utoipa::path(
    get, path = "/livez", operation_id = "live", tag = "service",
    responses((status = 200, description = "It does"))
)]
async fn live() -> StatusCode {
    StatusCode::OK
}

/// The catalog answers.
#[utoipa::path(
    get, path = "/readyz", operation_id = "ready", tag = "service",
    responses((status = 200, description = "It does"), (status = 503, description = "It does not"))
)]
async fn ready(State(service): State<Shared>) -> StatusCode {
    match timeout(READY_TIME, service.lake.catalog.list(None)).await {
        Ok(Ok(_)) => StatusCode::OK,
        Ok(Err(_)) | Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
