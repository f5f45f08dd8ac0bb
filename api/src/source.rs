//! The sources of this binary behind one face: where a pipeline's kind of source matters, it matters here.

use std::fmt;
use std::sync::Arc;

use cdc_dynamodb::config::DynamodbSource;
use cdc_postgres::config::PostgresSource;
use lakehouse_core::catalog::Catalog;
use lakehouse_core::commit::Cut;
use lakehouse_core::copy::CopyObserver;
use lakehouse_core::error::Problem;
use lakehouse_core::finding::Finding;
use lakehouse_core::lakehouse::Environment;
use lakehouse_core::pipeline::Limits;
use lakehouse_core::position::Position;
use lakehouse_core::verify::{VerifyOptions, VerifyReport};
use tokio_util::sync::CancellationToken;

use crate::answer;

/// The source of one pipeline, with its secrets as they stand now.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Postgres(PostgresSource),
    Dynamodb(DynamodbSource),
}

/// The present end of a source: what a client waits for that wants to see all of today.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    At(Position),
    /// Milliseconds since 1970, for a source whose log has no end that could be named.
    Since(i64),
}

impl Source {
    /// One incarnation.
    pub(crate) async fn replicate(
        &self,
        environment: Environment,
        limits: Limits,
        observer: Arc<dyn CopyObserver>,
        stop: CancellationToken,
    ) -> Result<(), Problem> {
        match self {
            Source::Postgres(source) => cdc_postgres::replicate(source, environment, limits, observer, stop).await,
            Source::Dynamodb(source) => cdc_dynamodb::replicate(source, environment, limits, observer, stop).await,
        }
    }

    /// Everything that can be known before a start.
    pub(crate) async fn validate(&self, catalog: Option<&dyn Catalog>) -> Result<Vec<Finding>, Problem> {
        match self {
            Source::Postgres(source) => cdc_postgres::validate(source, catalog).await,
            Source::Dynamodb(source) => cdc_dynamodb::validate(source, catalog).await,
        }
    }

    /// The mirrors against the source, or at a past cut against their histories.
    pub(crate) async fn verify(
        &self,
        environment: Environment,
        options: VerifyOptions,
    ) -> Result<VerifyReport, Problem> {
        match self {
            Source::Postgres(source) => cdc_postgres::verify(source, environment, options).await,
            Source::Dynamodb(source) => cdc_dynamodb::verify(source, environment, options).await,
        }
    }

    pub(crate) async fn end(&self) -> Result<End, Problem> {
        match self {
            Source::Postgres(source) => cdc_postgres::end_of_wal(source).await.map(End::At),
            Source::Dynamodb(_) => Ok(End::Since(chrono::Utc::now().timestamp_millis())),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::At(position) => position.fmt(f),
            End::Since(moment) => f.write_str(&answer::time(*moment)),
        }
    }
}

impl End {
    /// True if a cut holds everything up to here.
    pub(crate) fn is_in(self, cut: &Cut) -> bool {
        match self {
            End::At(position) => cut.position.includes(position),
            End::Since(moment) => cut.read_until.is_some_and(|until| until >= moment),
        }
    }
}
