//! Leases: one row for each pipeline in a table of its own, so that of several workers one reads and the others stand by
//! (D44).
//!
//! A lease saves double reading and nothing else: what is written is safe by fencing, whoever believes to hold what
//! (protocol B11). No two clocks are compared. Who holds the lease counts its row up; who stands by takes it over when the
//! row has stayed the same for the lease's duration by its own clock, which after a crash is within twice that duration.
//! Every write names the row that it replaces, so of two that claim at once one wins. A row that somebody deletes is
//! written again by who holds it (D47).

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::AttributeValue;
use lakehouse_core::error::Problem;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::client::{Clients, Trouble, problem, trouble};
use crate::config::{DynamodbSource, LeaseSettings};

/// The hash key of the leases' table: the pipeline's name.
const KEY: &str = "lease";
const OWNER: &str = "owner";
const COUNTER: &str = "counter";
const EPOCH: &str = "epoch";
/// How long letting go may take: who stands by waits no longer than for a crash.
const RELEASE: Duration = Duration::from_secs(2);

/// A row as it was read or written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    /// `None` once the lease was let go of.
    owner: Option<String>,
    /// Up by one with every write.
    counter: u64,
    /// Up by one with every owner.
    epoch: u64,
}

/// One worker's view of one lease.
#[derive(Clone, Debug)]
struct Lease {
    client: Client,
    settings: LeaseSettings,
    pipeline: String,
    /// A random name of this incarnation.
    me: String,
}

/// Runs `work` while this worker has the pipeline's lease, waiting for it first; without leases it just runs.
pub(crate) async fn while_held(
    source: &DynamodbSource,
    stop: &CancellationToken,
    work: impl Future<Output = Result<(), Problem>>,
) -> Result<(), Problem> {
    let Some(settings) = &source.settings.lease else { return work.await };
    let lease = Lease {
        client: Clients::connect(source).await.tables,
        settings: settings.clone(),
        pipeline: source.pipeline.clone(),
        me: Uuid::new_v4().to_string(),
    };
    // Both arms may be dropped: a lease that was claimed and is not kept runs out.
    let (row, since) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        held = lease.acquire() => held?,
    };
    info!(pipeline = lease.pipeline, epoch = row.epoch, "the lease is ours");
    // A task of its own: work that keeps its thread busy does not cost the lease.
    let mut keeper = JoinSet::new();
    let kept = lease.clone();
    keeper.spawn(async move { kept.keep(row, since).await });
    // Biased: who has lost the lease stops. What is dropped then is as after a crash.
    let ended = tokio::select! {
        biased;
        Some(lost) = keeper.join_next() => return Err(lost.unwrap_or_else(|_| lease.lost("its keeper has died"))),
        ended = work => ended,
    };
    keeper.shutdown().await;
    let _ = timeout(RELEASE, lease.release()).await;
    ended
}

/// Whether leases can be read at all.
pub(crate) async fn check(source: &DynamodbSource, clients: &Clients) -> Result<(), Problem> {
    let Some(settings) = &source.settings.lease else { return Ok(()) };
    let (client, settings, pipeline) = (clients.tables.clone(), settings.clone(), source.pipeline.clone());
    let lease = Lease { client, settings, pipeline, me: String::new() };
    lease.read().await.map(drop).map_err(|trouble| lease.problem("dynamodb:GetItem", trouble))
}

impl Lease {
    /// Waits until the lease is free or its owner silent. The row, and when it was surely ours.
    async fn acquire(&self) -> Result<(Row, Instant), Problem> {
        let mut seen: Option<(Row, Instant)> = None;
        loop {
            let asked = Instant::now();
            match self.read().await {
                Ok(Some(row)) if row.owner.as_deref() == Some(&self.me) => return Ok((row, asked)),
                Ok(Some(row)) if row.owner.is_some() => {
                    let since = seen.as_ref().filter(|(known, _)| *known == row).map(|(_, since)| *since);
                    match since {
                        Some(since) if since.elapsed() >= self.settings.duration => {
                            warn!(pipeline = self.pipeline, owner = row.owner, "who had the lease is silent");
                            if let Some(held) = self.claim(Some(&row)).await? {
                                return Ok(held);
                            }
                        }
                        Some(_) => {}
                        None => {
                            debug!(pipeline = self.pipeline, owner = row.owner, "another worker has the lease");
                            seen = Some((row, asked));
                        }
                    }
                }
                Ok(free) => {
                    if let Some(held) = self.claim(free.as_ref()).await? {
                        return Ok(held);
                    }
                }
                Err(Trouble::Passing(why)) => debug!(pipeline = self.pipeline, why, "the lease cannot be read now"),
                Err(trouble) => return Err(self.problem("dynamodb:GetItem", trouble)),
            }
            sleep(self.settings.duration / 4).await;
        }
    }

    /// Ours in place of what was read, unless somebody else comes first.
    async fn claim(&self, before: Option<&Row>) -> Result<Option<(Row, Instant)>, Problem> {
        let asked = Instant::now();
        let last = before.cloned().unwrap_or_default();
        let row = Row { owner: Some(self.me.clone()), counter: last.counter + 1, epoch: last.epoch + 1 };
        match self.write(before, &row).await {
            Ok(true) => Ok(Some((row, asked))),
            // Another worker was faster, or a write of ours that got no answer.
            Ok(false) | Err(Trouble::Passing(_)) => Ok(None),
            Err(trouble) => Err(self.problem("dynamodb:PutItem", trouble)),
        }
    }

    /// Renews until the lease is lost, and says how.
    async fn keep(&self, mut row: Row, mut since: Instant) -> Problem {
        let pause = self.settings.duration / 3;
        loop {
            sleep(pause).await;
            let asked = Instant::now();
            let next = Row { counter: row.counter + 1, ..row.clone() };
            match timeout(pause, self.renew(&row, &next)).await {
                Ok(Ok(Some(written))) => (row, since) = (written, asked),
                Ok(Ok(None)) => return self.lost("another worker has it"),
                Ok(Err(Trouble::Passing(why))) => debug!(pipeline = self.pipeline, why, "the lease is not renewed"),
                Ok(Err(trouble)) => return self.problem("dynamodb:PutItem", trouble),
                Err(_) => debug!(pipeline = self.pipeline, "the lease is not renewed in time"),
            }
            if since.elapsed() >= self.settings.duration {
                return self.lost("it could not be renewed in time");
            }
        }
    }

    /// The row that is ours now; `None` when it is another's.
    async fn renew(&self, row: &Row, next: &Row) -> Result<Option<Row>, Trouble> {
        if self.write(Some(row), next).await? {
            return Ok(Some(next.clone()));
        }
        match self.read().await? {
            // A write of ours has landed that got no answer.
            Some(found) if found.owner.as_deref() == Some(&self.me) => Ok(Some(found)),
            Some(_) => Ok(None),
            None => {
                warn!(pipeline = self.pipeline, "the lease's row was deleted, it is written again");
                let again = Row { epoch: next.epoch + 1, ..next.clone() };
                Ok(self.write(None, &again).await?.then_some(again))
            }
        }
    }

    /// Best effort: who stands by need not wait.
    async fn release(&self) -> Result<(), Trouble> {
        if let Some(row) = self.read().await?.filter(|row| row.owner.as_deref() == Some(&self.me)) {
            let free = Row { owner: None, counter: row.counter + 1, epoch: row.epoch };
            self.write(Some(&row), &free).await?;
        }
        Ok(())
    }

    async fn read(&self) -> Result<Option<Row>, Trouble> {
        let call = self.client.get_item().table_name(&self.settings.table).consistent_read(true);
        let call = call.key(KEY, AttributeValue::S(self.pipeline.clone()));
        let answer = call.send().await.map_err(|error| trouble(&error))?;
        answer.item.map(|item| row_of(&item)).transpose()
    }

    /// Writes `row` in place of `before`. False where something else stands there.
    async fn write(&self, before: Option<&Row>, row: &Row) -> Result<bool, Trouble> {
        let number = |number: u64| AttributeValue::N(number.to_string());
        let call = self.client.put_item().table_name(&self.settings.table);
        let call = call.item(KEY, AttributeValue::S(self.pipeline.clone()));
        let call = call.item(COUNTER, number(row.counter)).item(EPOCH, number(row.epoch));
        let call = match &row.owner {
            Some(owner) => call.item(OWNER, AttributeValue::S(owner.clone())),
            None => call,
        };
        // The attributes' names are words of the expressions' language.
        let call = match before {
            None => call.condition_expression("attribute_not_exists(#lease)").expression_attribute_names("#lease", KEY),
            Some(before) => {
                let call = call.expression_attribute_names("#counter", COUNTER);
                let call = call.expression_attribute_names("#epoch", EPOCH).expression_attribute_names("#owner", OWNER);
                let call = call.expression_attribute_values(":counter", number(before.counter));
                let call = call.expression_attribute_values(":epoch", number(before.epoch));
                match &before.owner {
                    Some(owner) => call
                        .expression_attribute_values(":owner", AttributeValue::S(owner.clone()))
                        .condition_expression("#counter = :counter AND #epoch = :epoch AND #owner = :owner"),
                    None => call.condition_expression(
                        "#counter = :counter AND #epoch = :epoch AND attribute_not_exists(#owner)",
                    ),
                }
            }
        };
        match call.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
            Err(error) => Err(trouble(&error)),
        }
    }

    fn lost(&self, why: &str) -> Problem {
        Problem::retry("LEASE_LOST", &self.pipeline, format!("the lease is lost: {why}"))
    }

    fn problem(&self, action: &'static str, trouble: Trouble) -> Problem {
        let table = &self.settings.table;
        match trouble {
            Trouble::Missing(why) => {
                let remedy = format!(
                    "aws dynamodb create-table --table-name {table} --billing-mode PAY_PER_REQUEST --attribute-definitions \
                     AttributeName={KEY},AttributeType=S --key-schema AttributeName={KEY},KeyType=HASH"
                );
                Problem::halt("LEASE_TABLE", table, format!("{action}: {why}"), remedy)
            }
            Trouble::Other(why) => {
                let remedy = format!("give the table the hash key `{KEY}` of type S, and nothing else's rows");
                Problem::halt("LEASE_TABLE", table, format!("{action}: {why}"), remedy)
            }
            other => problem(action, table, other),
        }
    }
}

fn row_of(item: &HashMap<String, AttributeValue>) -> Result<Row, Trouble> {
    let number = |name: &str| item.get(name)?.as_n().ok()?.parse().ok();
    let owner = item.get(OWNER).map(|owner| owner.as_s().cloned()).transpose();
    match (owner, number(COUNTER), number(EPOCH)) {
        (Ok(owner), Some(counter), Some(epoch)) => Ok(Row { owner, counter, epoch }),
        _ => Err(Trouble::Other("a row of the leases is not one of ours".to_owned())),
    }
}
