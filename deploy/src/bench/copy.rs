//! The copy of a table that exists when the pipeline starts, against one connection that copies it to nowhere.
//!
//! Both clocks run from the start of the process: the product's own start, its publication, slot and snapshot included.
//! It is done when the mirror has a position, which it gets in the commit that ends its copy.

use std::time::{Duration, Instant};

use crate::lake::{Lake, PUBLICATION, SLOT, Verdict};
use crate::report::{Figure, Sample};
use crate::server::Server;
use crate::shape::Shape;
use crate::{Bench, Extent, Result, say};

pub(crate) async fn measure(shape: Shape, extent: Extent) -> Result<Figure> {
    let server = Server::start().await;
    let lake = Lake::new(&server)?;
    let limit = Duration::from_secs(120 + extent.rows / 5_000);
    say(Bench::Copy, shape, &format!("writing {} rows", extent.rows));
    fill(&server, shape, extent.rows).await?;

    let tables = [shape.name().to_owned()];
    let (mut ours, mut reference, mut peak_rss_bytes) = (Sample::WORST, Sample::WORST, 0);
    for round in 0..extent.rounds {
        let begun = Instant::now();
        let cpu_seconds = server.copy_to_nowhere(shape.name(), lake.folder())?.finish(limit).await?;
        let sample = Sample { seconds: begun.elapsed().as_secs_f64(), cpu_seconds };
        say(Bench::Copy, shape, &format!("round {}: psql {sample}", round + 1));
        reference = reference.best(sample);

        lake.clear()?;
        server.drop_slot(SLOT).await?;
        server.sql(&format!("DROP PUBLICATION IF EXISTS {PUBLICATION}")).await?;
        let begun = Instant::now();
        let run = lake.measure(lake.start()?, begun, limit, || lake.is_copied(&tables)).await?;
        let sample = Sample { seconds: run.seconds, cpu_seconds: run.cpu_seconds };
        say(Bench::Copy, shape, &format!("round {}: lakehouse {sample}", round + 1));
        ours = ours.best(sample);
        peak_rss_bytes = peak_rss_bytes.max(run.peak_rss_bytes);
    }
    match lake.verify(&server).await? {
        Verdict::Equal => say(Bench::Copy, shape, "source and mirror are equal"),
        Verdict::Different(answer) => return Err(format!("source and mirror differ: {answer}").into()),
        Verdict::Unknown(answer) => say(Bench::Copy, shape, &format!("NOT VERIFIED: {answer}")),
    }
    let against = "psql COPY BINARY";
    Ok(Figure { bench: Bench::Copy, shape, rows: extent.rows, against, ours, reference, peak_rss_bytes })
}

/// The table, read once by its vacuum: what a first reader would pay is paid.
pub(crate) async fn fill(server: &Server, shape: Shape, rows: u64) -> Result<()> {
    server.sql(&shape.create(shape.name())).await?;
    server.sql(&shape.insert(shape.name(), "1", &rows.to_string())).await?;
    server.sql(&format!("VACUUM (FREEZE, ANALYZE) {}", shape.name())).await?;
    server.sql("CHECKPOINT").await?;
    Ok(())
}
