//! How the service says no: one refusal, told in the native API's words or in the Iceberg REST catalog's.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// The native API's name of the error.
    kind: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "BadRequestException", message: message.into() }
    }

    pub(super) fn not_found(what: &str) -> Self {
        let message = format!("The specified {what} does not exist.");
        Self { status: StatusCode::NOT_FOUND, kind: "NotFoundException", message }
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self { status: StatusCode::CONFLICT, kind: "ConflictException", message: message.into() }
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, kind: "AccessDeniedException", message: message.into() }
    }

    pub(super) fn throttled() -> Self {
        let message = "Please reduce your request rate.".to_owned();
        Self { status: StatusCode::TOO_MANY_REQUESTS, kind: "TooManyRequestsException", message }
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self { status, kind: "InternalServerErrorException", message: message.into() }
    }

    pub(super) fn is_conflict(&self) -> bool {
        self.status == StatusCode::CONFLICT
    }

    /// As the Iceberg REST specification has it; `subject` is what was asked for, as Java names exceptions.
    pub(super) fn to_rest(&self, subject: &str) -> Response {
        let kind = match self.status {
            StatusCode::NOT_FOUND => format!("NoSuch{subject}Exception"),
            StatusCode::CONFLICT if subject == "Commit" => "CommitFailedException".to_owned(),
            StatusCode::CONFLICT => "AlreadyExistsException".to_owned(),
            _ => self.kind.to_owned(),
        };
        let error = json!({"message": self.message, "type": kind, "code": self.status.as_u16()});
        (self.status, axum::Json(json!({"error": error}))).into_response()
    }
}

/// The native API's form, with the error's name in a header.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(json!({"message": self.message}))).into_response();
        response.headers_mut().insert("x-amzn-errortype", HeaderValue::from_static(self.kind));
        response
    }
}

/// What comes from in front of the service: XML where JSON was asked for. Clients must survive it.
pub(super) fn bare_xml(status: StatusCode, code: &str) -> Response {
    let body = format!("<ErrorResponse><Error><Code>{code}</Code><Message>{code}</Message></Error></ErrorResponse>");
    (status, [(header::CONTENT_TYPE, "application/xml")], body).into_response()
}
