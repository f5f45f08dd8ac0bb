//! Every error as RFC 9457 has it, whoever makes it: a handler, an extractor, the router, a panic, a timeout. An error of
//! ours travels beside an empty answer and gets its body, with the request's id, in one place: [`render`].
//!
//! What went wrong inside is for the log: an answer above 499 shows neither paths nor causes (S12).

use std::any::Any;

use axum::extract::Request;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::error::{Problem, Reaction};
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::failure::Failure;
use crate::lake::{Neighbours, Point};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// 401 for a known caller, whose login is too long ago.
pub(super) const LOGIN_REQUIRED: &str = "LOGIN_REQUIRED";
/// What a client does about it (RFC 9470, section 3); the age is `auth.rs`'s.
const LOG_IN_AGAIN: &str = "Bearer error=\"insufficient_user_authentication\", max_age=900";

/// The id that a request has in its answer, the log and the audit trail.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestId(pub(super) String);

/// An error on its way to the client.
#[derive(Clone, Debug)]
pub(super) struct HttpProblem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    /// What is kept around a point that is not, as JSON.
    nearest: Option<serde_json::Value>,
    /// Seconds.
    retry_after: Option<u64>,
    /// What the client does not see.
    cause: Option<Box<Problem>>,
}

/// The codes of answers below 500, by status. One that stands here twice has the first status by itself, and the other by
/// its place in a request; one that does not stand here has 500, or 503 where time heals it.
pub(super) const CODES: [(StatusCode, &[&str]); 14] = [
    (
        StatusCode::BAD_REQUEST,
        &[
            "COLUMN_UNKNOWN",
            "FILTER_INVALID",
            "LOG_BACKWARD",
            "ORDER_INVALID",
            "PAGE_TOKEN_INVALID",
            "PIPELINE_AMBIGUOUS",
            "REQUEST_INVALID",
            "ROWS_LIMIT",
            "TAG_NAME",
        ],
    ),
    (StatusCode::UNAUTHORIZED, &[LOGIN_REQUIRED, "UNAUTHENTICATED"]),
    (StatusCode::FORBIDDEN, &["FORBIDDEN", "ROWS_DISABLED"]),
    (
        StatusCode::NOT_FOUND,
        &[
            "CUT_UNKNOWN",
            "OPERATION_UNKNOWN",
            "PIPELINE_UNKNOWN",
            "PLAN_UNKNOWN",
            "ROUTE_UNKNOWN",
            "RUN_UNKNOWN",
            "SNAPSHOT_UNKNOWN",
            "TABLE_NAME",
            "TABLE_UNKNOWN",
            "TAG_UNKNOWN",
        ],
    ),
    (StatusCode::METHOD_NOT_ALLOWED, &["METHOD_UNKNOWN"]),
    (StatusCode::NOT_ACCEPTABLE, &["NOT_ACCEPTABLE"]),
    // A body that has not come in time.
    (StatusCode::REQUEST_TIMEOUT, &["REQUEST_INVALID"]),
    (StatusCode::GONE, &["HISTORY_INCOMPLETE", "SNAPSHOT_EXPIRED"]),
    // The request is right, and what stands in the lake is in its way.
    (
        StatusCode::CONFLICT,
        &[
            "CHANGES_MISSED",
            "CUT_NOT_REACHED",
            "MAINTENANCE_RUNNING",
            "NOT_HELD",
            "NOT_OPEN",
            "NO_CUT",
            "NO_HISTORY",
            "OPERATION_CLOSED",
            "OPERATION_UNKNOWN",
            "REPLAY_IMPOSSIBLE",
            "ROLLBACK_OPEN",
            "SNAPSHOT_EXPIRED",
            "TAG_LIMIT",
            "TARGET_INCOMPLETE",
            "TARGET_IS_HEAD",
            "TARGET_SCHEMA",
            "VERIFY_RUNNING",
        ],
    ),
    // Not what somebody has looked at.
    (StatusCode::PRECONDITION_FAILED, &["PLAN_MOVED", "TABLE_MOVED", "TAG_MOVED"]),
    (StatusCode::PAYLOAD_TOO_LARGE, &["BODY_LIMIT"]),
    (StatusCode::UNPROCESSABLE_ENTITY, &["IDEMPOTENCY_REUSED"]),
    (StatusCode::PRECONDITION_REQUIRED, &["PRECONDITION_REQUIRED"]),
    (StatusCode::TOO_MANY_REQUESTS, &["TOO_MANY_SCANS"]),
];

impl HttpProblem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), nearest: None, retry_after: None, cause: None }
    }

    /// The request itself is wrong.
    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "REQUEST_INVALID", detail)
    }

    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// The same, where its place in a request gives it another status than its code does.
    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(super) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Of a point that is not there, with what is kept around it: of every one that has expired, and of one that never was
    /// where it has a place in time.
    pub(super) fn of_point(failure: Failure, table: &LoadedTable, point: &Point) -> Self {
        let problem = Self::from(failure);
        match (problem.status, point) {
            (StatusCode::GONE, _) | (StatusCode::NOT_FOUND, Point::AsOf(_) | Point::Cut(_)) => {
                Self { nearest: serde_json::to_value(Neighbours::of(table, point)).ok(), ..problem }
            }
            _ => problem,
        }
    }

    /// What a status says by itself, where nobody of ours has said more.
    fn of(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => ("ROUTE_UNKNOWN", "no such address"),
            StatusCode::METHOD_NOT_ALLOWED => ("METHOD_UNKNOWN", "this address does not take this method"),
            StatusCode::SERVICE_UNAVAILABLE => ("BUSY", "the answer takes too long"),
            _ if status.is_client_error() => ("REQUEST_INVALID", "the request cannot be understood"),
            _ => ("INTERNAL", INTERNAL),
        };
        let problem = Self::new(status, code, detail);
        if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(RETRY_SECONDS) } else { problem }
    }
}

const INTERNAL: &str = "the server could not do this; its log has the reason under the request's id";
/// When to come again after what time heals.
const RETRY_SECONDS: u64 = 5;

impl From<Failure> for HttpProblem {
    fn from(Failure { problem, .. }: Failure) -> Self {
        let own = CODES.iter().find(|(_, codes)| codes.contains(&problem.code)).map(|(status, _)| *status);
        let status = match (problem.code, own) {
            // One commit that others outran: time heals it.
            ("TABLE_MOVED", _) if problem.reaction != Reaction::Halt => StatusCode::SERVICE_UNAVAILABLE,
            ("AUDIT_UNWRITABLE" | "AUDIT_DAMAGED", _) => StatusCode::SERVICE_UNAVAILABLE,
            (_, Some(status)) => status,
            (_, None) if problem.reaction == Reaction::Retry => StatusCode::SERVICE_UNAVAILABLE,
            (_, None) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if !status.is_server_error() {
            return Self::new(
                status,
                problem.code,
                format!("{}: {}; {}", problem.subject, problem.message, problem.remedy),
            );
        }
        let told = Self::new(status, problem.code, INTERNAL);
        let told = if status == StatusCode::SERVICE_UNAVAILABLE { told.retry_after(RETRY_SECONDS) } else { told };
        Self { cause: Some(Box::new(problem)), ..told }
    }
}

impl From<Problem> for HttpProblem {
    fn from(problem: Problem) -> Self {
        Failure::from(problem).into()
    }
}

impl IntoResponse for HttpProblem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// For the layer that catches panics.
pub(super) fn panicked(cause: Box<dyn Any + Send + 'static>) -> Response {
    let text = cause.downcast_ref::<String>().cloned();
    let text = text.or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
    let problem = Problem::halt(
        "INTERNAL",
        "the HTTP service",
        format!("a handler broke one of its own rules: {text}"),
        "report this",
    );
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    HttpProblem { cause: Some(Box::new(problem)), ..HttpProblem::of(status) }.into_response()
}

/// Why there is no other answer (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    /// For people.
    detail: &'a str,
    /// For programs: stable, and explained in `troubleshooting.md`.
    code: &'a str,
    /// As in the header `X-Request-Id`, the log and the audit trail.
    request_id: &'a str,
    /// Of a state that is not there: what is kept around it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Neighbours>, nullable = false)]
    nearest: Option<&'a serde_json::Value>,
}

/// Around everything: gives the request an id, and every error its body.
pub(super) async fn render(mut request: Request, next: Next) -> Response {
    let id = Uuid::now_v7().to_string();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    let status = response.status();
    let own = response.extensions_mut().remove::<HttpProblem>();
    let is_error = status.is_client_error() || status.is_server_error();
    if let Some(problem) = own.or_else(|| is_error.then(|| HttpProblem::of(status))) {
        if let Some(cause) = &problem.cause {
            error!(
                request_id = id, %method, path, code = cause.code, subject = cause.subject, reason = cause.message,
                remedy = cause.remedy, "a request has failed"
            );
        }
        let document = Document {
            r#type: format!("urn:lakehouse:problem:{}", problem.code),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: &problem.detail,
            code: problem.code,
            request_id: &id,
            nearest: problem.nearest.as_ref(),
        };
        let body = serde_json::to_vec(&document).expect("a document is plain data");
        *response.body_mut() = body.into();
        let headers = response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            let challenge = if problem.code == LOGIN_REQUIRED { LOG_IN_AGAIN } else { "Bearer" };
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(seconds) = problem.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
    }
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REQUEST_ID, HeaderValue::from_str(&id).expect("an id is ASCII"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_its_status_and_what_time_heals_another() {
        let halt = |code| HttpProblem::from(Problem::halt(code, "app.t", "it is so", "do this"));
        for (code, status) in [
            ("PIPELINE_UNKNOWN", 404),
            ("OPERATION_UNKNOWN", 404),
            ("ROLLBACK_OPEN", 409),
            ("NOT_HELD", 409),
            ("NO_HISTORY", 409),
            ("OPERATION_CLOSED", 409),
            ("TABLE_MOVED", 412),
            ("TAG_MOVED", 412),
            ("TAG_NAME", 400),
            ("IDEMPOTENCY_REUSED", 422),
            ("PROPERTY_DAMAGED", 500),
        ] {
            assert_eq!(halt(code).status.as_u16(), status, "{code}");
        }
        assert_eq!(halt("NOT_HELD").detail, "app.t: it is so; do this");
        let retry = |code| HttpProblem::from(Problem::retry(code, "app.t", "it is so")).status.as_u16();
        assert_eq!(["ROLLBACK_OPEN", "TABLE_MOVED", "FENCED"].map(retry), [409, 503, 503]);
    }
}
