//! What people have done to tables: the operations that control tables know, and the ways out of them.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use lakehouse_core::commit::{Exit, Journal, LeaveOut, RolledTable, Stage};
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::auth::Principal;
use super::body::{Body, Id, Name, Reason, Why, named};
use super::page::PageWish;
use super::problem::HttpProblem;
use super::query::understood;
use super::{Service, Shared};
use crate::answer;
use crate::cli::PositionRange;
use crate::failure::Failure;
use crate::operate;
use crate::operate::release::{Releases, check_open, turn_back};
use crate::shapes;

/// Transactions that a replay may leave out: the control table's metadata carries them.
const LEFT_OUT: usize = 1_000;

/// An operation as it stands.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Operation {
    pub(super) id: String,
    pub(super) pipeline: String,
    #[schema(value_type = shapes::Stage)]
    pub(super) stage: Stage,
    /// Why it goes back, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    turned: Option<String>,
    epoch: u64,
    by: String,
    reason: String,
    /// RFC 3339.
    begun_at: String,
    /// By names as `namespace.table`.
    #[schema(value_type = BTreeMap<String, shapes::RolledTable>)]
    pub(super) tables: BTreeMap<String, RolledTable>,
}

impl Operation {
    pub(super) fn new(pipeline: &str, journal: Journal) -> Self {
        let Journal { id, stage, turned, epoch, by, reason, begun_at, tables, request: _ } = journal;
        let begun_at = answer::time(begun_at);
        Self { id, pipeline: pipeline.to_owned(), stage, turned, epoch, by, reason, begun_at, tables }
    }

    /// What was asked for is begun; it is looked at under an address of its own.
    pub(super) fn accepted(self) -> Response {
        accepted(&format!("/v1/operations/{}", self.id), &self)
    }
}

/// The answer to what is begun and has an address of its own.
pub(super) fn accepted(address: &str, begun: &impl Serialize) -> Response {
    let mut response = (StatusCode::ACCEPTED, Json(begun)).into_response();
    // An id of our own making is ASCII; one that somebody has put into a journal may be anything.
    if let Ok(location) = HeaderValue::from_str(address) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

impl Principal {
    /// All tables of an operation, or nothing of it is shown.
    pub(super) fn may_see_all_of(&self, journal: &Journal) -> bool {
        journal.tables.keys().all(|name| name.parse().is_ok_and(|name| self.may_see(&name)))
    }
}

#[derive(Serialize, ToSchema)]
struct Operations {
    operations: Vec<Operation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_page_token: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wish {
    /// Only those of this pipeline.
    pipeline: Option<String>,
    /// Items of a page; 100, where it is left out.
    #[param(minimum = 1, maximum = 1000)]
    page_size: Option<usize>,
    /// `next_page_token` of the page before; the first one, without.
    page_token: Option<String>,
}

/// List rollbacks, by pipeline and by when they were begun, which never changes.
#[utoipa::path(
    get, path = "/v1/operations", operation_id = "list_operations", tag = "operations", params(Wish),
    responses(
        (status = 200, description = "Those of which the token may see all tables", body = Operations),
        (status = 404, description = "There is no such pipeline"),
    )
)]
pub(super) async fn list(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Result<Response, HttpProblem> {
    let Wish { pipeline: wanted, page_size, page_token } = understood(wish)?;
    if let Some(name) = &wanted {
        service.config.pipeline(name)?;
    }
    let mut operations = Vec::new();
    for name in service.config.pipelines.keys().filter(|name| wanted.as_ref().is_none_or(|wanted| wanted == *name)) {
        let mut known = operate::operations::known(&service.lake, name).await?;
        known.retain(|journal| principal.may_see_all_of(journal));
        operations.extend(known.into_iter().map(|journal| Operation::new(name, journal)));
    }
    let (wish, list) = (PageWish { page_size, page_token }, ["operations", wanted.as_deref().unwrap_or_default()]);
    let begun = |one: &Operation| (one.pipeline.clone(), one.begun_at.clone(), one.id.clone());
    let page = service.page_key.page(&wish, &list, operations, begun)?;
    Ok(Json(Operations { operations: page.items, next_page_token: page.next }).into_response())
}

/// Show how far a rollback has come.
#[utoipa::path(
    get, path = "/v1/operations/{id}", operation_id = "show_operation", tag = "operations",
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "The operation", body = Operation),
        (status = 404, description = "There is no such operation"),
    )
)]
pub(super) async fn show(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, HttpProblem> {
    let (pipeline, journal) = service.operation(&id).await?;
    if !principal.may_see_all_of(&journal) {
        return Err(unknown());
    }
    Ok(Json(Operation::new(&pipeline, journal)).into_response())
}

/// What comes of turning one back.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is wanted")]
enum TurnedBack {
    /// It goes back
    #[response(status = 202, headers(("Location" = String, description = "The operation's address")))]
    Begun(Operation),
    /// There is no such operation
    #[response(status = 404)]
    Unknown,
    /// Its stage, or the state of a table, does not allow that
    #[response(status = 409)]
    NotNow,
    /// A table has moved; nothing was changed
    #[response(status = 412)]
    Moved,
}

/// Bring back the rows from before a rollback, with all changes since.
#[utoipa::path(
    post, path = "/v1/operations/{id}/undo", operation_id = "undo_operation", tag = "operations",
    params(("id" = String, Path)), request_body = Why,
    responses(TurnedBack)
)]
pub(super) async fn undo(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    Body(Why { reason: Reason(reason) }): Body<Why>,
) -> Result<Response, HttpProblem> {
    back(&service, principal, "undo", id, reason).await
}

/// Give up a rollback that has not come to its end.
#[utoipa::path(
    post, path = "/v1/operations/{id}/abort", operation_id = "abort_operation", tag = "operations",
    params(("id" = String, Path)), request_body = Why,
    responses(TurnedBack)
)]
pub(super) async fn abort(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    Body(Why { reason: Reason(reason) }): Body<Why>,
) -> Result<Response, HttpProblem> {
    back(&service, principal, "abort", id, reason).await
}

async fn back(
    service: &Shared,
    principal: Principal,
    verb: &'static str,
    id: String,
    reason: String,
) -> Result<Response, HttpProblem> {
    let intent = service.intent(&principal, verb, &id, &reason, Value::Null).await?;
    let own = Shared::clone(service);
    let turned = async move {
        let (pipeline, journal) = own.own_operation(&principal, &id).await?;
        if verb == "abort" {
            check_open(&journal)?;
        }
        turn_back(&own.lake, &pipeline, &journal, &reason).await.map_err(of_a_known_one)?;
        let (pipeline, journal) = own.operation(&id).await?;
        Ok(Operation::new(&pipeline, journal))
    };
    Ok(service.coordinator.run(intent, turned).await?.accepted())
}

/// What comes of a way out.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is wanted")]
enum Released {
    /// Its tables are going to be released
    #[response(status = 202, headers(("Location" = String, description = "The operation's address")))]
    Asked(Operation),
    /// There is no such operation
    #[response(status = 404)]
    Unknown,
    /// Its stage, or the state of a table, does not allow that
    #[response(status = 409)]
    NotNow,
}

/// Go on from a rollback's rows with the changes since it; the tables diverge from their source.
#[utoipa::path(
    post, path = "/v1/operations/{id}/accept", operation_id = "accept_operation", tag = "operations",
    params(("id" = String, Path)), request_body = Why,
    responses(Released)
)]
pub(super) async fn accept(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    Body(Why { reason: Reason(reason) }): Body<Why>,
) -> Result<Response, HttpProblem> {
    let accepted = release(&service, &principal, &id, Exit::Accept, Vec::new(), LeaveOut::default());
    service.noted(&principal, "accept", &id, &reason, accepted).await
}

/// Which changes to leave out, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ReplayOrder)]
pub(super) struct Replay {
    reason: Reason,
    /// All of the operation, where it is left out.
    tables: Option<Vec<Name>>,
    /// Transactions, by the source's numbers.
    without: Option<Vec<Id>>,
    without_range: Option<Range>,
}

/// All transactions that end behind `after`, up to `up_to`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PositionRange)]
struct Range {
    #[schema(value_type = shapes::Position)]
    after: Position,
    #[schema(value_type = shapes::Position)]
    up_to: Position,
}

impl Replay {
    fn leave_out(&self) -> Result<LeaveOut, HttpProblem> {
        let transactions: BTreeSet<i64> = self.without.iter().flatten().map(|id| id.0).collect();
        if transactions.len() > LEFT_OUT {
            let detail = format!("without: name at most {LEFT_OUT} transactions, or a range of positions");
            return Err(HttpProblem::invalid(detail));
        }
        let range = self.without_range.as_ref().map(|range| PositionRange::new(range.after, range.up_to)).transpose();
        let range = range.map_err(|error| HttpProblem::invalid(format!("without_range: {error}")))?;
        Ok(LeaveOut { transactions, range: range.map(|range| (range.after, range.up_to)) })
    }
}

/// Go on from a rollback's target with all changes since, but those left out.
#[utoipa::path(
    post, path = "/v1/operations/{id}/replay", operation_id = "replay_operation", tag = "operations",
    params(("id" = String, Path)), request_body = Replay,
    responses(Released)
)]
pub(super) async fn replay(
    State(service): State<Shared>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    Body(wanted): Body<Replay>,
) -> Result<Response, HttpProblem> {
    let leave_out = wanted.leave_out()?;
    let replayed = release(&service, &principal, &id, Exit::Replay, named(wanted.tables)?, leave_out);
    service.noted(&principal, "replay", &id, &wanted.reason.0, replayed).await
}

async fn release(
    service: &Service,
    principal: &Principal,
    id: &str,
    exit: Exit,
    only: Vec<TableName>,
    leave_out: LeaveOut,
) -> Result<Response, HttpProblem> {
    let (pipeline, journal) = service.own_operation(principal, id).await?;
    let releases = Releases::of(&journal, exit, &only, &leave_out)?;
    releases.request(&service.lake, &pipeline).await?;
    Ok(Operation::new(&pipeline, journal).accepted())
}

impl Service {
    /// An operation, and the pipeline whose control table knows it.
    async fn operation(&self, id: &str) -> Result<(String, Journal), HttpProblem> {
        for name in self.config.pipelines.keys() {
            if let Some(journal) = operate::operations::one(&self.lake, name, id).await? {
                return Ok((name.clone(), journal));
            }
        }
        Err(unknown())
    }

    /// The same, for somebody who wants to touch its tables.
    async fn own_operation(&self, principal: &Principal, id: &str) -> Result<(String, Journal), HttpProblem> {
        let (pipeline, journal) = self.operation(id).await?;
        match principal.may_see_all_of(&journal) {
            true => Ok((pipeline, journal)),
            false => Err(self.beyond_scope(principal, id, "the token is not for all tables of the operation").await),
        }
    }
}

fn unknown() -> HttpProblem {
    let detail = "no pipeline of this service knows such an operation; see /v1/operations";
    HttpProblem::new(StatusCode::NOT_FOUND, "OPERATION_UNKNOWN", detail)
}

/// The core goes back only from the last operation, and calls every other one unknown. The caller can see it: what is in
/// the way is its state.
fn of_a_known_one(failure: Failure) -> HttpProblem {
    match failure.problem.code {
        "OPERATION_UNKNOWN" => HttpProblem::from(failure).with_status(StatusCode::CONFLICT),
        _ => failure.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_leaves_out_what_is_named() {
        let parse = |text: &str| serde_json::from_str::<Replay>(text).unwrap().leave_out();
        assert!(parse(r#"{"reason":"x"}"#).unwrap().is_empty());
        let all =
            parse(r#"{"reason":"x","without":[7,"9007199254740993"],"without_range":{"after":"0/1","up_to":"0/2"}}"#);
        let all = all.unwrap();
        assert_eq!(all.transactions, BTreeSet::from([7, 9_007_199_254_740_993]));
        assert_eq!(all.range, Some((Position::new(1), Position::new(2))));
        assert!(parse(r#"{"reason":"x","without_range":{"after":"0/2","up_to":"0/2"}}"#).is_err());
        let many: Vec<usize> = (0..=LEFT_OUT).collect();
        assert!(parse(&format!(r#"{{"reason":"x","without":{many:?}}}"#)).is_err());
    }
}
