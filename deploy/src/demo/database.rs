//! The demo's database: entry management of Mt. Fuji, with the same rows on every machine.
//!
//! Rows are made by the server itself, from one seed. Not here: what happens to them later (`workload`).

use std::time::{Duration, Instant};

use testkit::postgres::Cluster;
use tokio_postgres::Client;

use super::Failed;

pub(crate) const DATABASE: &str = "fuji";
/// The tables, in the order in which they are filled.
pub(crate) const TABLES: [&str; 4] = ["customers", "entry_passes", "payments", "refunds"];

/// Any number does; this one is the mountain's height.
const SEED: &str = "SELECT setseed(0.3776)";
const FILL: [&str; 4] = [
    include_str!("customers.sql"),
    include_str!("entry_passes.sql"),
    include_str!("payments.sql"),
    include_str!("refunds.sql"),
];

/// How many of what. Passes have the numbers 1 to `passes`, and a payment has the number of its pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) customers: u64,
    /// Customers 1 to `buyers` have passes; those behind may be deleted.
    pub(crate) buyers: u64,
    pub(crate) passes: u64,
}

/// Every so many passes one is held and not paid (see `entry_passes.sql`).
pub(crate) const HELD_EVERY: u64 = 33;

impl Sizes {
    /// At least `rows` in all four tables together.
    pub(crate) fn of(rows: u64) -> Self {
        let customers = rows / 5 + 50;
        Self { customers, buyers: customers - customers / 50, passes: rows / 100 * 41 + 100 }
    }
}

/// What was made of one table.
pub(crate) struct Filled {
    pub(crate) table: &'static str,
    pub(crate) rows: u64,
    pub(crate) took: Duration,
}

/// Database, types and empty tables.
pub(crate) async fn create(cluster: &Cluster) -> Result<Client, Failed> {
    cluster.try_sql("postgres", &format!("CREATE DATABASE {DATABASE}")).await?;
    let client = cluster.connect(DATABASE).await;
    client.batch_execute(include_str!("schema.sql")).await?;
    Ok(client)
}

/// Fills table number `number` of [`TABLES`].
pub(crate) async fn fill(client: &Client, number: usize, sizes: Sizes) -> Result<Filled, Failed> {
    let begun = Instant::now();
    client.batch_execute(SEED).await?;
    let sql = FILL[number]
        .replace("{customers}", &sizes.customers.to_string())
        .replace("{buyers}", &sizes.buyers.to_string())
        .replace("{passes}", &sizes.passes.to_string());
    let rows = client.execute(&sql, &[]).await?;
    Ok(Filled { table: TABLES[number], rows, took: begun.elapsed() })
}

/// Foreign keys, indexes and statistics: cheaper behind the rows than under them.
pub(crate) async fn add_keys(client: &Client) -> Result<(), Failed> {
    Ok(client.batch_execute(include_str!("keys.sql")).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_fewer_rows_than_asked_for() {
        for rows in [1_000, 1_001, 99_999, 1_000_000, 7_654_321] {
            let Sizes { customers, passes, .. } = Sizes::of(rows);
            let numbers = |wanted: fn(u64) -> bool| (1..=passes).filter(|&number| wanted(number)).count() as u64;
            let payments = numbers(|number| !number.is_multiple_of(HELD_EVERY));
            let refunds = numbers(|number| !number.is_multiple_of(HELD_EVERY) && number % 25 == 7);
            assert!(customers + passes + payments + refunds >= rows, "{rows}");
        }
    }
}
