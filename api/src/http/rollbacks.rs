//! A rollback in two steps: a plan is shown and kept (`plans.rs`), and then it is confirmed, on exactly what was shown.

use std::sync::{MutexGuard, PoisonError};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::Utc;
use lakehouse_core::commit::{Journal, RequestDigest};
use lakehouse_core::position::Position;
use lakehouse_core::rollback::{self, Asked};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use uuid::Uuid;

use super::auth::Principal;
use super::body::{Body, Id, Name, Reason, Why, named};
use super::operations::Operation;
use super::plans::{KeptPlan, PLAN_TIME, Plans};
use super::preconditions::{idempotency_key, request_digest, required};
use super::problem::HttpProblem;
use super::wish::settled_point;
use super::{Service, Shared};
use crate::answer;
use crate::failure::Failure;
use crate::lake::Point;
use crate::operate::rollback::{PlannedTable, Preview, PreviewedTable, begin, mirrors, pipeline};
use crate::shapes;

/// What is to go back, and where to: exactly one of the last four.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RollbackOrder)]
pub(super) struct Wanted {
    /// May be left out where tables of it are named.
    pipeline: Option<String>,
    /// All mirrors of the pipeline, where it is left out.
    tables: Option<Vec<Name>>,
    snapshot_id: Option<Id>,
    /// RFC 3339, or a date; without a zone it is UTC.
    as_of: Option<String>,
    tag: Option<String>,
    #[schema(value_type = Option<shapes::Position>)]
    cut: Option<String>,
}

/// A rollback that may be confirmed, on exactly what it shows.
#[derive(Serialize, ToSchema)]
#[schema(as = RollbackPlan)]
struct Shown {
    id: String,
    /// What a confirmation has in `If-Match`.
    etag: String,
    /// RFC 3339.
    expires_at: String,
    pipeline: String,
    /// The newest cut, whose positions the tables keep.
    #[schema(value_type = shapes::Position)]
    cut: Position,
    tables: Vec<PlannedTable>,
}

impl Wanted {
    fn point(&self) -> Result<Point, HttpProblem> {
        let snapshot = self.snapshot_id.map(|id| id.0);
        match settled_point(snapshot, self.as_of.as_deref(), self.tag.as_deref(), self.cut.as_deref())? {
            Point::Snapshot(_) | Point::Tag(_) if self.tables.is_none() => {
                Err(HttpProblem::invalid("a snapshot or tag is one table's: name tables, or give cut or as_of"))
            }
            _ if self.pipeline.is_none() && self.tables.is_none() => {
                Err(HttpProblem::invalid("name a pipeline, or tables of one"))
            }
            point => Ok(point),
        }
    }
}

/// Show what a rollback would do.
///
/// Nothing is changed. It reads differences, so it is a scan, and ends when its client leaves.
#[utoipa::path(
    post, path = "/v1/rollbacks", operation_id = "plan_rollback", tag = "operations", request_body = Wanted,
    responses(
        (
            status = 200, description = "The plan, kept for five minutes and for its caller", body = Shown,
            headers(("ETag" = String, description = "Of the plan, for `If-Match`"))
        ),
        (status = 404, description = "There is no such pipeline, table, snapshot, tag or cut"),
        (status = 409, description = "The target has expired, or the state of a table does not allow that"),
        (status = 412, description = "A table has moved meanwhile"),
        (status = 429, description = "As many answers with rows are under way as this server gives at a time"),
    )
)]
pub(super) async fn preview(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Body(wanted): Body<Wanted>,
) -> Result<Response, HttpProblem> {
    let point = wanted.point()?;
    let names = named(wanted.tables)?;
    service.check_scope(&principal, &names).await?;
    let (pipeline, config) = pipeline(&service.lake, &service.config, wanted.pipeline.as_deref(), &names).await?;
    if names.is_empty() {
        service.check_scope_of_all(&principal, pipeline, config).await?;
    }
    let _permit = service.scan_permit(&principal)?;
    let _counted = service.metrics.scan();
    let tables = mirrors(&service.lake, pipeline, config, &names).await?;
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let preview = Preview::of(&service.lake, &service.config, pipeline, &tables, &point, &stop).await;
    let preview = preview.map_err(in_the_way)?;
    let now = Instant::now();
    let id = Uuid::now_v7().to_string();
    let kept = KeptPlan::new(id, principal.name.clone(), pipeline, preview.plan, now);
    let expires_at = (Utc::now() + PLAN_TIME).timestamp_millis();
    let shown = Shown {
        id: kept.id.clone(),
        etag: kept.etag.text().to_owned(),
        expires_at: answer::time(expires_at),
        pipeline: pipeline.to_owned(),
        cut: kept.plan.cut,
        tables: preview.tables.iter().map(PreviewedTable::answer).collect(),
    };
    let response = kept.etag.on(Json(shown).into_response());
    service.plans().keep(kept, now);
    Ok(response)
}

/// A target that has expired is no address of a request, but the state that is in its way.
pub(super) fn in_the_way(failure: Failure) -> HttpProblem {
    match failure.problem.code {
        "SNAPSHOT_EXPIRED" => HttpProblem::from(failure).with_status(StatusCode::CONFLICT),
        _ => failure.into(),
    }
}

/// Confirm a rollback, on exactly what its plan has shown.
#[utoipa::path(
    post, path = "/v1/rollbacks/{id}/confirm", operation_id = "confirm_rollback", tag = "operations",
    params(
        ("id" = String, Path, description = "The plan's"),
        ("If-Match" = String, Header, description = "The plan's `etag`"),
        (
            "Idempotency-Key" = String, Header, min_length = 1, max_length = 128, pattern = "^[!-~]+$",
            description = "The caller's own, best a uuid: who repeats a request with it gets the same operation"
        ),
    ),
    request_body = Why,
    responses(
        (
            status = 202, description = "The operation, begun", body = Operation,
            headers(("Location" = String, description = "The operation's address"))
        ),
        (status = 404, description = "No such plan of this caller is kept"),
        (status = 409, description = "The state of a table does not allow that"),
        (status = 412, description = "A table has moved, or `If-Match` is not the plan's tag; nothing was changed"),
        (status = 422, description = "The key was used with another plan or reason"),
        (status = 428, description = "A header is missing"),
    )
)]
pub(super) async fn confirm(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Body(Why { reason: Reason(reason) }): Body<Why>,
) -> Result<Response, HttpProblem> {
    let seen = required(&headers, "if-match")?.to_owned();
    let request = request_digest(&principal.name, idempotency_key(&headers)?, &[&id, &reason]);
    let confirmation = Confirmation { principal, id, seen, reason, request };
    let Confirmation { principal, id, reason, .. } = &confirmation;
    let own = Shared::clone(&service);
    let opening = {
        let confirmation = confirmation.clone();
        async move { own.confirm(&confirmation).await }
    };
    let plan = service.plans().find(id, &principal.name, Instant::now());
    let plan = plan.map(|kept| json!({"pipeline": kept.pipeline, "cut": kept.plan.cut, "tables": kept.plan.tables}));
    let intent = service.intent(principal, "rollback", id, reason, plan.unwrap_or_default()).await?;
    Ok(service.coordinator.run(intent, opening).await?.accepted())
}

#[derive(Clone, Debug)]
struct Confirmation {
    principal: Principal,
    /// The plan's.
    id: String,
    /// The tag of what the caller has seen.
    seen: String,
    reason: String,
    request: RequestDigest,
}

impl Service {
    /// A repeat comes first: the plan is gone by then, and its tables have moved (requirement R-9).
    async fn confirm(&self, confirmation: &Confirmation) -> Result<Operation, HttpProblem> {
        if let Some(begun) = self.repeated(confirmation).await? {
            return Ok(begun);
        }
        match self.begin(confirmation).await {
            Ok(begun) => Ok(begun),
            // Or the first one is only just ahead of its repeat.
            Err(problem) => self.repeated(confirmation).await?.ok_or(problem),
        }
    }

    async fn repeated(&self, confirmation: &Confirmation) -> Result<Option<Operation>, HttpProblem> {
        for pipeline in self.config.pipelines.keys() {
            let Some((_, control)) = self.lake.control(pipeline).await? else { continue };
            if let Some(journal) = rollback::repeated(&control, &confirmation.request)? {
                return self.shown(confirmation, pipeline, journal).await.map(Some);
            }
        }
        Ok(None)
    }

    async fn begin(&self, confirmation: &Confirmation) -> Result<Operation, HttpProblem> {
        let Confirmation { principal, id, seen, reason, request } = confirmation;
        let kept = self.plans().find(id, &principal.name, Instant::now());
        let kept = kept.ok_or_else(|| {
            let detail = "no such plan of this caller is kept; ask for a new one: POST /v1/rollbacks";
            HttpProblem::new(StatusCode::NOT_FOUND, "PLAN_UNKNOWN", detail)
        })?;
        if !kept.etag.is_among(seen) {
            let detail = "If-Match is not the tag of this plan; nothing was changed";
            return Err(HttpProblem::new(StatusCode::PRECONDITION_FAILED, "PLAN_MOVED", detail));
        }
        let asked = Asked {
            id: Uuid::now_v7().to_string(),
            by: principal.name.to_string(),
            reason: reason.clone(),
            request: Some(request.clone()),
        };
        let journal = begin(&self.lake, &kept.pipeline, &kept.plan, &asked).await?;
        self.plans().forget(id);
        self.shown(confirmation, &kept.pipeline, journal).await
    }

    /// A token's tables may be others than when it began the operation.
    async fn shown(
        &self,
        confirmation: &Confirmation,
        pipeline: &str,
        journal: Journal,
    ) -> Result<Operation, HttpProblem> {
        let Confirmation { principal, .. } = confirmation;
        match principal.may_see_all_of(&journal) {
            true => Ok(Operation::new(pipeline, journal)),
            false => {
                let detail = "the token is not for all tables of the operation";
                Err(self.beyond_scope(principal, &journal.id, detail).await)
            }
        }
    }

    fn plans(&self) -> MutexGuard<'_, Plans> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_point_is_wanted_and_a_snapshot_is_a_tables_own() {
        let point = |more: &str| {
            let text = format!(r#"{{"pipeline":"app"{more}}}"#);
            serde_json::from_str::<Wanted>(&text).unwrap().point()
        };
        assert_eq!(point(r#","cut":"0/C8""#).unwrap(), Point::Cut("0/C8".parse().unwrap()));
        assert_eq!(point(r#","tables":["app.t"],"snapshot_id":"5""#).unwrap(), Point::Snapshot(5));
        assert_eq!(point(r#","tables":["app.t"],"tag":"x""#).unwrap(), Point::Tag("x".to_owned()));
        assert!(matches!(point(r#","as_of":"2026-11-21""#), Ok(Point::AsOf(_))));
        for wrong in [
            "",
            r#","tables":["app.t"]"#,
            r#","tag":"x""#,
            r#","snapshot_id":5"#,
            r#","cut":"0/C8","tag":"x""#,
            r#","cut":"here""#,
            r#","as_of":"yesterday""#,
        ] {
            assert!(point(wrong).is_err(), "{wrong}");
        }
        let of_none = |text: &str| serde_json::from_str::<Wanted>(text).unwrap().point();
        assert!(of_none(r#"{"cut":"0/C8"}"#).is_err(), "all tables of which pipeline?");
        assert!(of_none(r#"{"tables":["app.t"],"cut":"0/C8"}"#).is_ok());
    }
}
