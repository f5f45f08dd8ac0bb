//! Reading over HTTP: the processor time that `lakehouse serve` takes for a whole table as an Arrow stream, against DuckDB's
//! for the same scan in the same run. The table is one of `fragments.rs`: data files with deletes beside them.
//!
//! The client is a process of its own and does not count; the clock of both stops when the last row is there.

use std::fmt;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::fragments::{Fragments, TABLE};
use crate::lake::{Lake, NAME};
use crate::process::Process;
use crate::reader;
use crate::report::Sample;

pub(crate) const BENCH: &str = "http_read";
const SHAPE: &str = "arrow";
const READER: &str = "http_read.py";
const START: Duration = Duration::from_secs(30);
const MEBIBYTE: f64 = 1024.0 * 1024.0;
/// Of ours ÷ DuckDB's processor time, at most.
const CPU_RATIO: f64 = 1.5;

/// A figure as scripts read it: these keys are fixed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ReadOver {
    pub(crate) bench: &'static str,
    pub(crate) shape: &'static str,
    pub(crate) rows: u64,
    /// Rows per CPU-second of ours ÷ those of the reference.
    pub(crate) ratio: f64,
    pub(crate) against: &'static str,
    pub(crate) seconds: f64,
    pub(crate) reference_seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) reference_cpu_seconds: f64,
    pub(crate) rows_per_cpu_second: f64,
    pub(crate) peak_rss_bytes: u64,
}

/// What a reader has found.
#[derive(Debug, Deserialize)]
struct Answer {
    rows: u64,
    /// Sum over all keys.
    keys: String,
    seconds: f64,
    cpu_seconds: f64,
}

pub(crate) fn name() -> String {
    format!("{BENCH}-{SHAPE}")
}

/// Five million rows; a quick run takes a tenth.
pub(crate) async fn measure(quick: bool) -> Result<ReadOver> {
    let address = free_address()?;
    let lake = Lake::serving(&address)?;
    let fragments = Fragments { files: if quick { 2 } else { 20 }, file_bytes: 11_000_000 };
    say(&format!("writing {} files of {} bytes", fragments.files, fragments.file_bytes));
    let written = fragments.write(lake.folder()).await?;
    let service = lake.start_verb(&["serve"])?;
    lake.wait_until(&service, START, || Ok(std::net::TcpStream::connect(&address).is_ok())).await?;
    let metadata = lake.metadata(TABLE)?;
    let target = format!("http://{address}/v1/tables/{NAME}/{TABLE}/rows");
    let (mut ours, mut reference) = (Sample::WORST, Sample::WORST);
    // The first round of the service warms it, as a query before the clock does DuckDB.
    for round in 0..=if quick { 1 } else { 2 } {
        let found = duckdb(&metadata)?;
        let (sample, answer) = over_http(&service, &target)?;
        if (answer.rows, &answer.keys) != (found.rows, &found.keys) || found.rows != written.rows {
            return Err(format!("{written:?} was written; DuckDB finds {found:?}, over HTTP come {answer:?}").into());
        }
        let known = Sample { seconds: found.seconds, cpu_seconds: found.cpu_seconds };
        say(&format!("round {round}: duckdb {known}; lakehouse {sample}"));
        if round > 0 {
            (ours, reference) = (ours.best(sample), reference.best(known));
        }
    }
    let peak_rss_bytes = service.peak_rss_bytes()?;
    lake.stop(service).await?;
    let cpu_seconds = ours.cpu_seconds.max(0.01);
    Ok(ReadOver {
        bench: BENCH,
        shape: SHAPE,
        rows: written.rows,
        ratio: (reference.cpu_seconds / cpu_seconds * 1_000.0).round() / 1_000.0,
        against: "DuckDB",
        seconds: ours.seconds,
        reference_seconds: reference.seconds,
        cpu_seconds,
        reference_cpu_seconds: reference.cpu_seconds,
        rows_per_cpu_second: (written.rows as f64 / cpu_seconds).round(),
        peak_rss_bytes,
    })
}

fn say(message: &str) {
    eprintln!("bench: {}: {message}", name());
}

fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn duckdb(metadata: &Path) -> Result<Answer> {
    reader::answer(READER, ["duckdb".into(), metadata.into()])
}

/// The service's processor time, and the client's clock.
fn over_http(service: &Process, target: &str) -> Result<(Sample, Answer)> {
    let before = service.cpu_seconds()?;
    let answer: Answer = reader::answer(READER, ["http".into(), target.into()])?;
    let cpu_seconds = service.cpu_seconds()? - before;
    Ok((Sample { seconds: answer.seconds, cpu_seconds }, answer))
}

impl fmt::Display for ReadOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bench, shape, rows, ratio, against, seconds, reference_seconds, .. } = self;
        write!(
            f,
            "{bench:<11} {shape:<8} {rows} rows in {seconds:.2} s ({reference_seconds:.2} s), {:.0} per CPU-second, \
             {ratio:.2} x {against}; peak {:.0} MiB",
            self.rows_per_cpu_second,
            self.peak_rss_bytes as f64 / MEBIBYTE,
        )
    }
}

/// How it stands with what is promised of reading over HTTP; also if it was not measured in this run.
pub(crate) fn verdict(read: Option<&ReadOver>) -> String {
    let found = read.map_or("not measured".to_owned(), |read| {
        let ratio = read.cpu_seconds / read.reference_cpu_seconds.max(0.01);
        match ratio - CPU_RATIO {
            missing if missing <= 0.0 => format!("{ratio:.2}, reached"),
            missing => format!("{ratio:.2}, short by {missing:.2}"),
        }
    });
    format!("target {}: at most {CPU_RATIO} x the processor time of DuckDB: {found}", name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_judged() {
        let read = ReadOver {
            bench: BENCH,
            shape: SHAPE,
            rows: 5_000_000,
            ratio: 0.5,
            against: "DuckDB",
            seconds: 4.0,
            reference_seconds: 1.5,
            cpu_seconds: 4.0,
            reference_cpu_seconds: 2.0,
            rows_per_cpu_second: 1_250_000.0,
            peak_rss_bytes: 1 << 28,
        };
        assert!(verdict(Some(&read)).ends_with("2.00, short by 0.50"));
        assert!(verdict(Some(&ReadOver { cpu_seconds: 3.0, ..read })).ends_with("1.50, reached"));
        assert!(verdict(None).ends_with("not measured"));
        let expected = r#"{"bench":"http_read","shape":"arrow","rows":5000000,"ratio":0.5,"against":"DuckDB","seconds":4.0,"reference_seconds":1.5,"cpu_seconds":4.0,"reference_cpu_seconds":2.0,"rows_per_cpu_second":1250000.0,"peak_rss_bytes":268435456}"#;
        assert_eq!(serde_json::to_string(&read).expect("plain data"), expected);
    }
}
