//! Asks for exports and waits for them: seconds for a small table, hours for a large one.

use std::time::Duration;

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::primitives::DateTime;
use aws_sdk_dynamodb::types::{
    ExportDescription, ExportFormat, ExportStatus, ExportType, ExportViewType, IncrementalExportSpecification,
};
use lakehouse_core::aws::pause;
use lakehouse_core::error::Problem;
use md5::{Digest, Md5};
use tokio::time::sleep;
use tracing::{debug, info};

use super::broken;
use super::manifest::summary_key;
use crate::client::{Clients, Trouble, problem, trouble};
use crate::config::ExportPlace;
use crate::table::{SourceTable, StreamView};

/// How long a window of an incremental export is, at least and at most.
pub(crate) const SHORTEST_WINDOW: i64 = 15 * 60_000;
pub(crate) const LONGEST_WINDOW: i64 = 24 * 3_600_000;

/// Asks for exports of one table. All moments are milliseconds since 1970.
pub(crate) struct Requester<'a> {
    pub(crate) clients: &'a Clients,
    pub(crate) table: &'a SourceTable,
    pub(crate) place: &'a ExportPlace,
}

/// Where point-in-time recovery reaches.
#[derive(Clone, Copy, Debug)]
struct Recoverable {
    from: i64,
    to: i64,
}

impl Requester<'_> {
    /// The table as it stood at a moment that is surely not before `moment`, whatever this machine's clock says: where the
    /// summary of the export is.
    pub(crate) async fn full(&self, moment: i64) -> Result<String, Problem> {
        let moment = self.surely_after(moment);
        self.recoverable(moment, moment).await?;
        let time = DateTime::from_millis(moment);
        info!(table = self.table.name, moment, "export is asked for");
        let call = || {
            let call = self.clients.tables.export_table_to_point_in_time().table_arn(&self.table.arn);
            let call = call.s3_bucket(&self.place.bucket).set_s3_prefix(self.place.prefix.clone());
            let call = call.export_format(ExportFormat::DynamodbJson).export_time(time);
            call.client_token(self.token(&format!("full {moment}")))
        };
        let described = self.ask(|| call().send()).await?;
        let summary = self.wait(described).await?;
        Ok(summary)
    }

    /// What changed in `[from, to)`, which is as long as a window may be.
    pub(crate) async fn window(&self, from: i64, to: i64) -> Result<String, Problem> {
        self.recoverable(from, to).await?;
        info!(table = self.table.name, from, to, "incremental export is asked for");
        let view = match self.table.view {
            Some(StreamView::NewAndOldImages) => ExportViewType::NewAndOldImages,
            _ => ExportViewType::NewImage,
        };
        let call = || {
            let window = IncrementalExportSpecification::builder();
            let window = window.export_from_time(DateTime::from_millis(from));
            let window = window.export_to_time(DateTime::from_millis(to)).export_view_type(view.clone()).build();
            let call = self.clients.tables.export_table_to_point_in_time().table_arn(&self.table.arn);
            let call = call.s3_bucket(&self.place.bucket).set_s3_prefix(self.place.prefix.clone());
            let call = call.export_format(ExportFormat::DynamodbJson).export_type(ExportType::IncrementalExport);
            call.incremental_export_specification(window).client_token(self.token(&format!("{from}..{to}")))
        };
        let described = self.ask(|| call().send()).await?;
        self.wait(described).await
    }

    /// The first whole second that is later by every clock whose signed requests are taken.
    pub(crate) fn surely_after(&self, moment: i64) -> i64 {
        let margin = i64::try_from(self.place.margin.as_millis()).unwrap_or(i64::MAX);
        let moment = moment.saturating_add(margin);
        moment.saturating_add((1_000 - moment.rem_euclid(1_000)) % 1_000)
    }

    /// The same question has the same name, so that asking twice exports once.
    fn token(&self, what: &str) -> String {
        let mut hash = Md5::new();
        for part in [&self.table.arn, &self.place.bucket, what] {
            hash.update(part);
            hash.update([0]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Waits until point-in-time recovery reaches to `to`, some minutes as a rule. Without recovery, or where it begins
    /// behind `from`, there is no such export.
    async fn recoverable(&self, from: i64, to: i64) -> Result<(), Problem> {
        loop {
            let found = self.look().await?;
            if found.from > from {
                let message = format!(
                    "point-in-time recovery begins at {}, what is missing begins at {}",
                    time(found.from),
                    time(from)
                );
                let remedy = "resync the table: what lies between is in no export";
                return Err(Problem::halt_table("EXPORT_WINDOW", &self.table.name, message, remedy));
            }
            if found.to >= to {
                return Ok(());
            }
            debug!(table = self.table.name, "point-in-time recovery does not reach to the export's moment yet");
            sleep(self.place.poll).await;
        }
    }

    /// Whether there is point-in-time recovery at all.
    pub(crate) async fn check(&self) -> Result<(), Problem> {
        self.look().await.map(drop)
    }

    async fn look(&self) -> Result<Recoverable, Problem> {
        let name = &self.table.name;
        let mut attempt = 0;
        let answer = loop {
            match self.clients.tables.describe_continuous_backups().table_name(name).send().await {
                Ok(answer) => break answer,
                Err(error) => self.bear("dynamodb:DescribeContinuousBackups", trouble(&error), &mut attempt).await?,
            }
        };
        let described = answer.continuous_backups_description;
        let recovery = described.and_then(|described| described.point_in_time_recovery_description);
        let reach = recovery.and_then(|recovery| {
            let millis = |time: Option<DateTime>| time?.to_millis().ok();
            let from = millis(recovery.earliest_restorable_date_time)?;
            Some(Recoverable { from, to: millis(recovery.latest_restorable_date_time)? })
        });
        reach.ok_or_else(|| off(name))
    }

    async fn ask<F, O, E>(&self, call: impl Fn() -> F) -> Result<ExportDescription, Problem>
    where
        F: Future<Output = Result<O, aws_sdk_dynamodb::error::SdkError<E>>>,
        O: Into<Described>,
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let mut attempt = 0;
        loop {
            match call().await {
                Ok(answer) => return self.described(answer.into()),
                Err(error) if error.code() == Some("PointInTimeRecoveryUnavailableException") => {
                    return Err(off(&self.table.name));
                }
                Err(error) => self.bear("dynamodb:ExportTableToPointInTime", trouble(&error), &mut attempt).await?,
            }
        }
    }

    fn described(&self, answer: Described) -> Result<ExportDescription, Problem> {
        let silent = || Trouble::Other("the answer says nothing of the export".to_owned());
        answer.0.ok_or_else(|| problem("dynamodb:DescribeExport", &self.table.name, silent()))
    }

    /// Until the export is there; the location of its summary.
    async fn wait(&self, mut described: ExportDescription) -> Result<String, Problem> {
        let mut attempt = 0;
        loop {
            let arn = described.export_arn().unwrap_or_default().to_owned();
            match described.export_status() {
                Some(ExportStatus::Completed) => {
                    let manifest = described.export_manifest().map_or_else(|| self.manifest_of(&arn), str::to_owned);
                    info!(table = self.table.name, export = arn, "export is there");
                    return Ok(format!("s3://{}/{}", self.place.bucket, summary_key(&manifest)));
                }
                Some(ExportStatus::Failed) => {
                    let why = described.failure_message().or(described.failure_code()).unwrap_or("it does not say why");
                    return Err(broken("EXPORT_FAILED", &arn, format!("the service has given the export up: {why}")));
                }
                _ => sleep(self.place.poll.mul_f64(0.75 + fastrand::f64() / 2.0)).await,
            }
            match self.clients.tables.describe_export().export_arn(&arn).send().await {
                Ok(answer) => described = self.described(Described(answer.export_description))?,
                Err(error) => self.bear("dynamodb:DescribeExport", trouble(&error), &mut attempt).await?,
            }
        }
    }

    /// By the documented layout.
    fn manifest_of(&self, arn: &str) -> String {
        let id = arn.rsplit('/').next().unwrap_or_default();
        let prefix = self.place.prefix.as_ref().map(|prefix| format!("{prefix}/")).unwrap_or_default();
        format!("{prefix}AWSDynamoDB/{id}/manifest-summary.json")
    }

    /// Waits out what passes, for as long as it lasts: an export that is under way has been paid for.
    async fn bear(&self, action: &'static str, trouble: Trouble, attempt: &mut u32) -> Result<(), Problem> {
        match trouble {
            Trouble::Passing(why) => {
                debug!(table = self.table.name, action, why, "no answer, asking again");
                sleep(pause(*attempt).max(Duration::from_millis(50))).await;
                *attempt = attempt.saturating_add(1);
                Ok(())
            }
            other => Err(problem(action, &self.table.name, other)),
        }
    }
}

/// The one thing that all answers of exports have.
struct Described(Option<ExportDescription>);

impl From<aws_sdk_dynamodb::operation::export_table_to_point_in_time::ExportTableToPointInTimeOutput> for Described {
    fn from(
        answer: aws_sdk_dynamodb::operation::export_table_to_point_in_time::ExportTableToPointInTimeOutput,
    ) -> Self {
        Self(answer.export_description)
    }
}

fn off(table: &str) -> Problem {
    let remedy = format!(
        "aws dynamodb update-continuous-backups --table-name {table} --point-in-time-recovery-specification \
         PointInTimeRecoveryEnabled=true, or use neither copy = \"export\" nor on_gap = \"incremental_export\""
    );
    Problem::halt_table("PITR_DISABLED", table, "point-in-time recovery of the table is off", remedy)
}

fn time(milliseconds: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(milliseconds).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}
