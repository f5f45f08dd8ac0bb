//! How the service says no.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    /// With its namespace, as it stands on the wire.
    kind: &'static str,
    message: String,
}

impl Refusal {
    fn modelled(kind: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind, message: message.into() }
    }

    pub(super) fn validation(message: impl Into<String>) -> Self {
        Self::modelled("com.amazon.coral.validate#ValidationException", message)
    }

    pub(super) fn unknown_operation(target: &str) -> Self {
        Self::modelled("com.amazon.coral.service#UnknownOperationException", target)
    }

    pub(super) fn unsigned() -> Self {
        let message = "Request is missing Authentication Token";
        Self::modelled("com.amazon.coral.service#MissingAuthenticationTokenException", message)
    }

    pub(super) fn denied(action: &str) -> Self {
        let message = format!(
            "User: arn:aws:iam::000000000000:user/testing is not authorized to perform: {action} because no \
             identity-based policy allows the {action} action"
        );
        Self::modelled("com.amazon.coral.service#AccessDeniedException", message)
    }

    /// As the service tells it where a table's own key cannot be used.
    pub(super) fn key_refused() -> Self {
        let message = "The ciphertext refers to a customer master key that does not exist, or that you are not allowed to \
             access: arn:aws:kms:us-east-1:000000000000:key/11111111-2222-4333-8444-555555555555";
        Self::modelled("com.amazonaws.dynamodb.v20120810#KMSAccessDeniedException", message)
    }

    pub(super) fn no_table(name: &str) -> Self {
        let message = format!("Requested resource not found: Table: {name} not found");
        Self::modelled("com.amazonaws.dynamodb.v20120810#ResourceNotFoundException", message)
    }

    pub(super) fn no_stream(arn: &str) -> Self {
        let message = format!("Requested resource not found: Stream: {arn} not found");
        Self::modelled("com.amazonaws.dynamodb.v20120810#ResourceNotFoundException", message)
    }

    pub(super) fn no_shard(shard: &str) -> Self {
        let message = format!("Requested resource not found: Shard: {shard} does not exist");
        Self::modelled("com.amazonaws.dynamodb.v20120810#ResourceNotFoundException", message)
    }

    pub(super) fn condition() -> Self {
        let message = "The conditional request failed";
        Self::modelled("com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException", message)
    }

    pub(super) fn no_export(arn: &str) -> Self {
        Self::modelled("com.amazonaws.dynamodb.v20120810#ExportNotFoundException", format!("Export not found: {arn}"))
    }

    pub(super) fn no_recovery(table: &str) -> Self {
        let message = format!("Point in time recovery is not enabled for table '{table}'");
        Self::modelled("com.amazonaws.dynamodb.v20120810#PointInTimeRecoveryUnavailableException", message)
    }

    pub(super) fn export_time(message: &str) -> Self {
        Self::modelled("com.amazonaws.dynamodb.v20120810#InvalidExportTimeException", message)
    }

    pub(super) fn expired() -> Self {
        let message = "Shard iterator has expired: The shard iterator was issued more than 15 minutes ago.";
        Self::modelled("com.amazonaws.dynamodb.v20120810#ExpiredIteratorException", message)
    }

    pub(super) fn trimmed() -> Self {
        let message =
            "Attempt to read stream record trimmed from the stream: The stream record is older than 24 hours.";
        Self::modelled("com.amazonaws.dynamodb.v20120810#TrimmedDataAccessException", message)
    }

    pub(super) fn throttled() -> Self {
        let message = "The level of configured provisioned throughput for the table was exceeded.";
        Self::modelled("com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException", message)
    }

    pub(super) fn limit_exceeded() -> Self {
        let message = "Subscriber limit exceeded: Rate of requests exceeds the allowed number.";
        Self::modelled("com.amazonaws.dynamodb.v20120810#LimitExceededException", message)
    }

    pub(super) fn internal() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "com.amazonaws.dynamodb.v20120810#InternalServerError",
            message: "The request processing has failed because of an unknown error, exception or failure.".into(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({"__type": self.kind, "message": self.message}).to_string();
        (self.status, [(header::CONTENT_TYPE, super::front::JSON)], body).into_response()
    }
}
