//! Maintenance over HTTP: what it has done, what it would do now, and a pass that somebody asks for and looks at.
//!
//! There is no key for repeats: while a pass is at work no other one is begun, and one behind it finds nothing to do.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use lakehouse_core::commit::runs_table;
use lakehouse_core::error::Problem;
use lakehouse_core::read::TableReader;
use lakehouse_core::schema::TableName;
use maintenance::runs::{Step, newest};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::auth::Principal;
use super::body::{Body, Name, Reason, named};
use super::problem::HttpProblem;
use super::query::understood;
use super::runs::{Begun, Head, Run};
use super::{Service, Shared};
use crate::answer;
use crate::audit::Intent;
use crate::failure::Failure;
use crate::shapes;
use crate::upkeep::{TableReport, Upkeep, When, check_maintained, is_maintained};

/// Steps of the history that an answer has, and the most that it may have.
const STEPS: usize = 100;
const MOST_STEPS: usize = 1_000;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wish {
    /// Only those of this one, as `namespace.table`.
    table: Option<String>,
    /// At most so many steps; 100, where it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Steps of maintenance, the newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = MaintenanceHistory)]
struct History {
    runs: Vec<Shown>,
}

/// A step of maintenance.
#[derive(Serialize, ToSchema)]
#[schema(as = MaintenanceStep)]
struct Shown {
    /// RFC 3339.
    started_at: String,
    #[serde(flatten)]
    #[schema(value_type = shapes::Step)]
    step: Step,
}

/// List what maintenance has done, the newest first.
///
/// It reads the history, so it is a scan, and ends when its client leaves.
#[utoipa::path(
    get, path = "/v1/maintenance/runs", operation_id = "list_maintenance", tag = "maintenance", params(Wish),
    responses(
        (status = 200, description = "Steps, of tables that the token may see", body = History),
        (status = 404, description = "`table` is no name of a table"),
        (status = 429, description = "As many answers with rows are under way as this server gives at a time"),
    )
)]
pub(super) async fn history(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Result<Response, HttpProblem> {
    let Wish { table, limit } = understood(wish)?;
    let limit = limit.unwrap_or(STEPS);
    if !(1..=MOST_STEPS).contains(&limit) {
        return Err(HttpProblem::invalid(format!("limit: from 1 to {MOST_STEPS}")));
    }
    let table: Option<TableName> = table.map(|name| name.parse()).transpose()?;
    if let Some(table) = &table {
        service.check_scope(&principal, std::slice::from_ref(table)).await?;
    }
    let Some(history) = service.lake.catalog.load(&runs_table(), None).await? else {
        return Ok(Json(History { runs: Vec::new() }).into_response());
    };
    let permit = service.scan_permit(&principal)?;
    let reader = TableReader::at(&service.lake.storage, &history, history.snapshot_id()).await?;
    let wanted = move |name: &str| match (&table, name.parse()) {
        (Some(table), Ok(name)) => *table == name,
        (None, Ok(name)) => principal.may_see(&name),
        (_, Err(_)) => false,
    };
    let read = move |check: &dyn Fn() -> Result<(), Problem>| Ok(newest(&reader, limit, wanted, check)?);
    let steps = permit.read(runs_table(), read).await?;
    let shown = |step: Step| Shown { started_at: answer::time(step.started_at), step };
    Ok(Json(History { runs: steps.into_iter().map(shown).collect() }).into_response())
}

/// Which tables, and whether it is done.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MaintenanceOrder)]
pub(super) struct Wanted {
    /// All that the caller may see, where it is left out.
    #[schema(min_items = 1)]
    tables: Option<Vec<Name>>,
    /// It only says what it would do, unless this is false.
    dry_run: Option<bool>,
    /// Of one that is done.
    reason: Option<Reason>,
}

/// What would be done.
#[derive(Serialize, ToSchema)]
#[schema(as = MaintenancePlan)]
struct Planned {
    tables: Vec<TableReport>,
}

/// One pass.
#[derive(Serialize, ToSchema)]
#[schema(as = MaintenancePass)]
struct Pass<'a> {
    #[serde(flatten)]
    #[schema(value_type = Head)]
    run: &'a Head,
    /// What came of it, table by table; nothing while it is at work.
    #[schema(value_type = Vec<TableReport>)]
    tables: &'a [TableReport],
}

/// Say what maintenance would do, or begin it.
///
/// It looks at every file of the tables, so saying what would be done is a scan.
#[utoipa::path(
    post, path = "/v1/maintenance", operation_id = "maintain", tag = "maintenance", request_body = Wanted,
    responses(
        (status = 200, description = "What it would do; nothing was changed", body = Planned),
        (
            status = 202, description = "A pass, which goes on behind this answer", body = Begun,
            headers(("Location" = String, description = "The pass's address"))
        ),
        (status = 404, description = "There is no such table of a pipeline, or none that the token may see"),
        (status = 409, description = "Another pass is at work"),
        (status = 429, description = "As many answers with rows are under way as this server gives at a time"),
    )
)]
pub(super) async fn maintain(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Body(Wanted { tables, dry_run, reason }): Body<Wanted>,
) -> Result<Response, HttpProblem> {
    let tables = service.maintained(&principal, named(tables)?).await?;
    if dry_run.unwrap_or(true) {
        let _permit = service.scan_permit(&principal)?;
        let planned = service.upkeep(&tables).await?.plans().await?;
        return Ok(Json(Planned { tables: without_causes(planned) }).into_response());
    }
    let Some(Reason(reason)) = reason else {
        return Err(HttpProblem::invalid("say why, in reason"));
    };
    let id = Uuid::now_v7().to_string();
    let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
    let intent = service.intent(&principal, "maintain", &id, &reason, json!({"tables": names})).await?;
    let run = Run::new(&id, "maintenance", &principal.name, &reason, &tables);
    let (intent, begun) = service.passes.begin(run, intent).await?;
    service.coordinator.spawn(perform(Shared::clone(&service), id, tables, intent));
    Ok(begun)
}

/// Show how far a pass of maintenance has come.
#[utoipa::path(
    get, path = "/v1/maintenance/runs/{id}", operation_id = "show_maintenance", tag = "maintenance",
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "The pass", body = Pass),
        (status = 404, description = "This service has no such pass, or has forgotten it"),
    )
)]
pub(super) async fn show(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, HttpProblem> {
    service.passes.show(&id, &principal, |run| {
        let tables = run.outcome.as_deref().unwrap_or_default();
        Some(Json(Pass { run: &run.head, tables }).into_response())
    })
}

/// The pass behind the answer. A service that ends meanwhile leaves what a crash leaves: files that nothing names.
async fn perform(service: Shared, id: String, tables: Vec<TableName>, intent: Intent) {
    let ended = async { service.upkeep(&tables).await?.pass(When::Now).await }.await.map(without_causes);
    let told = |reports: &Vec<TableReport>| {
        let failed = reports.iter().filter(|report| report.problem.is_some());
        json!({"failed": failed.map(|report| &report.table).collect::<Vec<_>>()})
    };
    service.passes.end(&id, intent, ended, told).await;
}

/// What went wrong with a table is in the log; its code says what to do.
fn without_causes(mut reports: Vec<TableReport>) -> Vec<TableReport> {
    for problem in reports.iter_mut().filter_map(|report| report.problem.as_mut()) {
        "the log has the reason".clone_into(&mut problem.message);
    }
    reports
}

impl Service {
    /// Those that are named, or all that the caller may see: never none, which would mean all.
    ///
    /// # Errors
    /// `FORBIDDEN`; `TABLE_UNKNOWN`.
    async fn maintained(&self, principal: &Principal, names: Vec<TableName>) -> Result<Vec<TableName>, HttpProblem> {
        if !names.is_empty() {
            self.check_scope(principal, &names).await?;
            for name in &names {
                check_maintained(&self.lake.table(name).await?)?;
            }
            return Ok(names);
        }
        let mut all = self.lake.tables(None).await?;
        all.retain(|table| is_maintained(table) && principal.may_see(&table.name));
        match all.is_empty() {
            true => Err(HttpProblem::new(StatusCode::NOT_FOUND, "TABLE_UNKNOWN", "no table that this token may see")),
            false => Ok(all.into_iter().map(|table| table.name).collect()),
        }
    }

    async fn upkeep(&self, tables: &[TableName]) -> Result<Upkeep, Failure> {
        let upkeep = Upkeep::open(&self.config.maintenance, self.lake.clone(), tables).await?;
        Ok(upkeep.counting(&self.metrics.upkeep))
    }
}
