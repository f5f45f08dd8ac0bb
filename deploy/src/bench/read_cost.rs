//! What a reader pays for merge on read: DuckDB over a mirror after many small updates, and over the same rows freshly
//! written as plain Parquet.
//!
//! A table is copied; then a twentieth of its rows is updated at random, in fifty commits of the lake. Nothing
//! maintains the table. The reader is `read_cost.py`.

use std::time::Duration;

use serde::Deserialize;

use crate::copy::fill;
use crate::lake::{Lake, SLOT};
use crate::reader::{self, Timing};
use crate::report::{Figure, Sample};
use crate::server::Server;
use crate::shape::Shape;
use crate::{Bench, Extent, Result, say};

const COMMITS: u64 = 50;
const UPDATED_IN: u64 = 20;
/// Queries of each kind, in turn.
const QUERIES: usize = 7;
const READER: &str = "read_cost.py";

/// What the reader answers.
#[derive(Deserialize)]
struct Answer {
    rows: u64,
    data_files: u64,
    delete_files: u64,
    mirror: Timing,
    fresh: Timing,
}

pub(crate) async fn measure(shape: Shape, extent: Extent) -> Result<Figure> {
    let server = Server::start().await;
    let lake = Lake::new(&server)?;
    say(Bench::ReadCost, shape, &format!("writing {} rows", extent.rows));
    fill(&server, shape, extent.rows).await?;
    let peak_rss_bytes = update(&server, &lake, shape, extent.rows).await?;

    let fresh = lake.folder().join("fresh");
    let answer: Answer = reader::answer(
        READER,
        [lake.metadata(shape.name())?.into_os_string(), fresh.into_os_string(), QUERIES.to_string().into()],
    )?;
    if answer.rows != extent.rows {
        return Err(format!("the mirror has {} rows, the source {}", answer.rows, extent.rows).into());
    }
    let Answer { data_files, delete_files, .. } = answer;
    let per_file = delete_files as f64 / data_files.max(1) as f64;
    let message = format!("{delete_files} delete files for {data_files} data files, {per_file:.2} each");
    say(Bench::ReadCost, shape, &message);
    let sample = |timing: Timing| Sample { seconds: timing.seconds, cpu_seconds: timing.cpu_seconds };
    let (ours, reference) = (sample(answer.mirror), sample(answer.fresh));
    let against = "fresh Parquet";
    Ok(Figure { bench: Bench::ReadCost, shape, rows: extent.rows, against, ours, reference, peak_rss_bytes })
}

/// Copies, then updates and commits, one after the other; returns the product's peak memory in bytes.
async fn update(server: &Server, lake: &Lake, shape: Shape, rows: u64) -> Result<u64> {
    let table = shape.name();
    let limit = Duration::from_secs(120 + rows / 5_000);
    let each = (rows / UPDATED_IN / COMMITS).max(1);
    server.sql("CREATE SCHEMA bench").await?;
    let order =
        format!("SELECT row_number() OVER () AS n, id AS key FROM (SELECT id FROM {table} ORDER BY md5(id::text)");
    let picks = format!("{order} LIMIT {}) picked", each * COMMITS);
    server.sql(&format!("CREATE UNLOGGED TABLE bench.picks AS {picks}")).await?;
    server.sql("CREATE UNIQUE INDEX ON bench.picks (n)").await?;
    server.sql("VACUUM ANALYZE bench.picks").await?;

    let process = lake.start()?;
    lake.wait_until(&process, limit, || lake.is_copied(&[table.to_owned()])).await?;
    server.streams(SLOT, &process).await?;
    say(Bench::ReadCost, shape, &format!("{COMMITS} commits of {each} updates"));
    for commit in 0..COMMITS {
        let (after, to) = (commit * each, (commit + 1) * each);
        let picked = format!("p.n > {after} AND p.n <= {to} AND w.id = p.key");
        server.sql(&format!("UPDATE {table} w SET {} FROM bench.picks p WHERE {picked}", shape.change())).await?;
        let end = server.position().await?;
        lake.wait_until(&process, limit, || lake.holds(end)).await?;
    }
    let peak_rss_bytes = process.peak_rss_bytes()?;
    process.terminate()?;
    process.finish(Duration::from_secs(60)).await?;
    Ok(peak_rss_bytes)
}
