//! Changes: `lakehouse replicate` against `pg_recvlogical` into nowhere, over the same WAL.
//!
//! The tables are copied, and the product is stopped, before the WAL is written. Then each client in turn gets a slot
//! that is a copy of the same one, and the product the lake as it was then. The clock runs from the moment the server
//! streams to the client until the client has the end: the product, when a cut in its catalog holds it.

use std::time::{Duration, Instant};

use crate::lake::{Lake, PUBLICATION, SLOT, Verdict};
use crate::report::{Figure, Sample};
use crate::server::Server;
use crate::shape::Shape;
use crate::{Bench, Extent, Result, say};

/// The slot that the clients' slots are copies of.
const BASE: &str = "bench_base";
/// The reference's.
const RIVAL: &str = "bench_rival";
/// Tables of one-row transactions.
const TABLES: u64 = 10;
/// A key behind all others.
const MARKER: &str = "2000000000";

pub(crate) async fn measure(bench: Bench, shape: Shape, extent: Extent) -> Result<Figure> {
    let server = Server::start().await;
    let lake = Lake::new(&server)?;
    let workload = Workload { bench, shape, rows: extent.rows };
    let limit = Duration::from_secs(120 + extent.rows / 2_000);

    say(bench, shape, "preparing tables");
    workload.prepare(&server).await?;
    lake.copy_and_stop(&server, &workload.tables(), limit).await?;
    lake.keep()?;
    server.copy_slot(SLOT, BASE).await?;
    say(bench, shape, &format!("writing {} row changes", extent.rows));
    let end = workload.write(&server).await?;

    let (mut ours, mut reference, mut peak_rss_bytes) = (Sample::WORST, Sample::WORST, 0);
    for round in 0..extent.rounds {
        // In turn the first and the second, so that neither always has the warmer caches.
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                let sample = rival(&server, &lake, end, limit).await?;
                say(bench, shape, &format!("round {}: pg_recvlogical {sample}", round + 1));
                reference = reference.best(sample);
            } else {
                let (sample, rss) = product(&server, &lake, end, limit).await?;
                say(bench, shape, &format!("round {}: lakehouse {sample}", round + 1));
                ours = ours.best(sample);
                peak_rss_bytes = peak_rss_bytes.max(rss);
            }
        }
    }
    match lake.verify(&server).await? {
        Verdict::Equal => say(bench, shape, "source and mirror are equal"),
        Verdict::Different(answer) => return Err(format!("source and mirror differ: {answer}").into()),
        Verdict::Unknown(answer) => say(bench, shape, &format!("NOT VERIFIED: {answer}")),
    }
    Ok(Figure { bench, shape, rows: extent.rows, against: "pg_recvlogical", ours, reference, peak_rss_bytes })
}

async fn rival(server: &Server, lake: &Lake, end: u64, limit: Duration) -> Result<Sample> {
    server.copy_slot(BASE, RIVAL).await?;
    let process = server.recvlogical(RIVAL, PUBLICATION, end, lake.folder())?;
    server.streams(RIVAL, &process).await?;
    let begun = Instant::now();
    let cpu_seconds = process.finish(limit).await?;
    let seconds = begun.elapsed().as_secs_f64();
    server.drop_slot(RIVAL).await?;
    Ok(Sample { seconds, cpu_seconds })
}

async fn product(server: &Server, lake: &Lake, end: u64, limit: Duration) -> Result<(Sample, u64)> {
    server.copy_slot(BASE, SLOT).await?;
    lake.restore()?;
    let process = lake.start()?;
    server.streams(SLOT, &process).await?;
    let run = lake.measure(process, Instant::now(), limit, || lake.holds(end)).await?;
    Ok((Sample { seconds: run.seconds, cpu_seconds: run.cpu_seconds }, run.peak_rss_bytes))
}

/// What is written, in which tables.
struct Workload {
    bench: Bench,
    shape: Shape,
    rows: u64,
}

impl Workload {
    /// In schema `public`, which is replicated.
    fn tables(&self) -> Vec<String> {
        match self.bench {
            Bench::Mixed => (0..TABLES).map(|number| format!("{}_{number}", self.shape.name())).collect(),
            _ => vec![self.shape.name().to_owned()],
        }
    }

    /// Rows that a table has before the measured changes.
    fn rows_before(&self) -> u64 {
        match self.bench {
            // 360,000 changes in a million rows.
            Bench::Update => self.rows * 25 / 9,
            // Half of them may be deleted, half are updated; a power of two, see `mixed`.
            Bench::Mixed => (self.rows / 25).max(20_000).next_power_of_two(),
            _ => 0,
        }
    }

    async fn prepare(&self, server: &Server) -> Result<()> {
        let before = self.rows_before().to_string();
        for table in self.tables() {
            server.sql(&self.shape.create(&table)).await?;
            server.sql(&self.shape.insert(&table, "1", &before)).await?;
            server.sql(&format!("VACUUM (FREEZE, ANALYZE) {table}")).await?;
        }
        if self.bench == Bench::Update {
            // Not in `public`, so not replicated. Hashes of keys are as good as random, and the same in every run.
            server.sql("CREATE SCHEMA bench").await?;
            let order = "row_number() OVER (ORDER BY md5(id::text)) AS n, id AS key";
            let picks = format!("SELECT {order} FROM {}", self.shape.name());
            server.sql(&format!("CREATE UNLOGGED TABLE bench.picks AS {picks}")).await?;
            server.sql("CREATE UNIQUE INDEX ON bench.picks (n)").await?;
            server.sql("VACUUM ANALYZE bench.picks").await?;
        }
        Ok(())
    }

    /// Writes the changes, and returns the position behind them.
    async fn write(&self, server: &Server) -> Result<u64> {
        let transactions = match self.bench {
            Bench::Mixed => self.mixed(),
            Bench::Update => self.updates(),
            _ => self.inserts(),
        };
        server.sql(&transactions).await?;
        let end = server.position().await?;
        // One more transaction: whoever has it has passed the end, whatever the server itself wrote in between. The
        // checkpoint flushes it, and only flushed WAL is streamed.
        server.sql(&self.shape.insert(&self.tables()[0], MARKER, MARKER)).await?;
        server.sql("CHECKPOINT").await?;
        Ok(end)
    }

    fn inserts(&self) -> String {
        let insert = self.shape.insert(self.shape.name(), "t * 1000 + 1", "t * 1000 + 1000");
        in_transactions(self.rows / 1_000, &format!("{insert};"))
    }

    /// Five updates to one delete.
    fn updates(&self) -> String {
        let (table, change) = (self.shape.name(), self.shape.change());
        let picked =
            |from: u32, to: u32| format!("p.n > t * 1000 + {from} AND p.n <= t * 1000 + {to} AND w.id = p.key");
        let transaction = format!(
            "UPDATE {table} w SET {change} FROM bench.picks p WHERE {};
             DELETE FROM {table} w USING bench.picks p WHERE {};",
            picked(0, 833),
            picked(833, 1_000),
        );
        in_transactions(self.rows / 1_000, &transaction)
    }

    /// In each round over the tables one kind of change; of five rounds one inserts, three update, one deletes.
    fn mixed(&self) -> String {
        let half = self.rows_before() / 2;
        // Round r uses a row of its own: an odd step meets all of a power of two. Even keys are updated, odd ones deleted.
        let row = format!("(t / {TABLES} * 3571 % {half})");
        let rows_before = self.rows_before();
        let step = |table: u64| {
            let table = format!("{}_{table}", self.shape.name());
            let new = format!("({rows_before} + 1 + t)");
            format!(
                "CASE t / {TABLES} % 5
                   WHEN 0 THEN {};
                   WHEN 4 THEN DELETE FROM {table} WHERE id = 2 * {row} + 1;
                   ELSE UPDATE {table} SET {} WHERE id = 2 * {row} + 2;
                 END CASE;",
                self.shape.insert(&table, &new, &new),
                self.shape.change(),
            )
        };
        let steps: Vec<String> = (0..TABLES).map(|table| format!("WHEN {table} THEN {}", step(table))).collect();
        in_transactions(self.rows, &format!("CASE t % {TABLES} {} END CASE;", steps.join("\n")))
    }
}

/// A program for the server: `body` once for each `t`, each time a transaction of its own.
fn in_transactions(count: u64, body: &str) -> String {
    format!("DO $$ BEGIN FOR t IN 0 .. {count} - 1 LOOP {body} COMMIT; END LOOP; END $$")
}
