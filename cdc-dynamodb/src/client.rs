//! The two clients of one region, and what their errors come to.
//!
//! The clients retry a few times with jitter by themselves; whoever reads a stream goes on for ever (D23).

use std::time::Duration;

use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use lakehouse_core::aws::{self, describe};
use lakehouse_core::error::Problem;

use crate::config::DynamodbSource;

/// One attempt of a call, and all its attempts.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 3;

#[derive(Clone, Debug)]
pub(crate) struct Clients {
    pub(crate) tables: aws_sdk_dynamodb::Client,
    pub(crate) streams: aws_sdk_dynamodbstreams::Client,
}

impl Clients {
    pub(crate) async fn connect(source: &DynamodbSource) -> Self {
        let shared = aws::load(&source.aws).await;
        let timeouts =
            TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_DEADLINE).operation_timeout(DEADLINE).build();
        let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS);
        let mut tables = aws_sdk_dynamodb::config::Builder::from(&shared)
            .retry_config(retries.clone())
            .timeout_config(timeouts.clone());
        let mut streams =
            aws_sdk_dynamodbstreams::config::Builder::from(&shared).retry_config(retries).timeout_config(timeouts);
        if let Some(endpoint) = &source.aws.endpoint {
            tables = tables.endpoint_url(endpoint);
            streams = streams.endpoint_url(endpoint);
        }
        Self {
            tables: aws_sdk_dynamodb::Client::from_conf(tables.build()),
            streams: aws_sdk_dynamodbstreams::Client::from_conf(streams.build()),
        }
    }
}

/// What an error of either service means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Throttled, unreachable, or an error of the service itself: the same call may succeed later.
    Passing(String),
    /// The iterator is too old: another one goes on from the same place (D21).
    IteratorExpired,
    /// The records that were asked for are gone (D26).
    Trimmed,
    /// The table, stream or shard is not there.
    Missing(String),
    /// Not allowed, or its key is not (D60, D61).
    Denied(String),
    Other(String),
}

pub(crate) fn trouble<E>(error: &SdkError<E>) -> Trouble
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let text = describe(error);
    match error.code() {
        Some("ExpiredIteratorException") => Trouble::IteratorExpired,
        Some("TrimmedDataAccessException") => Trouble::Trimmed,
        Some("ResourceNotFoundException" | "TableNotFoundException") => Trouble::Missing(text),
        Some("AccessDeniedException" | "UnrecognizedClientException" | "MissingAuthenticationTokenException") => {
            Trouble::Denied(text)
        }
        Some(code) if code.starts_with("KMS") || code.contains("KMS") => Trouble::Denied(text),
        Some(
            "LimitExceededException"
            | "ProvisionedThroughputExceededException"
            | "RequestLimitExceeded"
            | "ThrottlingException"
            | "InternalServerError"
            | "ServiceUnavailable"
            | "ExpiredTokenException",
        )
        | None => Trouble::Passing(text),
        Some(_) if aws::status(error).is_some_and(|status| status >= 500) => Trouble::Passing(text),
        Some(_) => Trouble::Other(text),
    }
}

/// What a call that failed comes to for the pipeline. `action` is the permission that the call needs.
pub(crate) fn problem(action: &'static str, subject: &str, trouble: Trouble) -> Problem {
    match trouble {
        Trouble::Passing(text) => Problem::retry("DYNAMODB_UNAVAILABLE", subject, format!("{action}: {text}")),
        Trouble::IteratorExpired => {
            Problem::retry("ITERATOR_EXPIRED", subject, format!("{action}: the iterator is too old"))
        }
        Trouble::Trimmed => gap(subject, &format!("{action}: the records that come next are trimmed"), None),
        Trouble::Missing(text) => {
            let remedy = "restore the table at the source, or take it out of the configuration; the lake is untouched";
            Problem::halt("SOURCE_GONE", subject, format!("{action}: {text}"), remedy)
        }
        Trouble::Denied(text) => {
            let remedy =
                format!("allow {action} on it to the role of this service (deploy/docs/security.md has the policy)");
            Problem::halt("PERMISSION", subject, text, remedy)
        }
        Trouble::Other(text) => Problem::halt(
            "DYNAMODB",
            subject,
            format!("{action}: {text}"),
            "see the message; report it if it is unclear",
        ),
    }
}

/// Records that the service no longer has (protocol D, GAP). `read_until`: milliseconds since 1970.
pub(crate) fn gap(subject: &str, what: &str, read_until: Option<i64>) -> Problem {
    let age = read_until.map(|until| (chrono::Utc::now().timestamp_millis() - until).max(0) / 60_000);
    let age = match age {
        Some(minutes) => format!("{} h {} min ago", minutes / 60, minutes % 60),
        None => "never since the table was taken up".to_owned(),
    };
    let message = format!("{what}; the stream was last read to its tip: {age}");
    let remedy = "copy the table anew: `lakehouse resync`; a gap cannot be filled from the stream";
    Problem::halt_table("GAP", subject, message, remedy)
}
