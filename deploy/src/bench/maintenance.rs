//! Compaction: `lakehouse maintain --once` over a table of fragments, against DuckDB, which reads the same table and
//! writes its rows to Parquet of the same codec. Both are whole processes, their start included; each gets the table as it
//! was. The unit is bytes of the data files that go in.
//!
//! Three jobs: one of the size for which engines are praised (2 GB in files of 11 MB), a small one, at which others have
//! taken minutes, and one whose thousands of delete files have driven others out of memory.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::fragments::{Fragments, TABLE};
use crate::lake::Lake;
use crate::process::{Process, Run};
use crate::reader;

const LIMIT: Duration = Duration::from_secs(3_600);
const REFERENCE: &str = "rewrite_reference.py";
const MEGABYTE: f64 = 1e6;
const MEBIBYTE: f64 = 1024.0 * 1024.0;
/// What is promised: of DuckDB's bytes per CPU-second, at least; memory of the large job and seconds of the small one, at
/// most.
const LEAST_RATIO: f64 = 0.5;
const MOST_MEBIBYTES: f64 = 512.0;
const SMALL_SECONDS: f64 = 3.0;

/// What is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Large,
    Small,
    Deletes,
}

pub(crate) const JOBS: [Job; 3] = [Job::Large, Job::Small, Job::Deletes];

impl Job {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Large => "maintenance-large",
            Self::Small => "maintenance-small",
            Self::Deletes => "maintenance-deletes",
        }
    }

    fn shape(self) -> &'static str {
        self.name().trim_start_matches("maintenance-")
    }

    /// A quick run takes a tenth, but for the job that is small already.
    fn fragments(self, quick: bool) -> Fragments {
        let part = |files: u64| if quick { files / 10 } else { files };
        match self {
            Self::Large => Fragments { files: part(180), file_bytes: 11_000_000 },
            Self::Small => Fragments { files: 20, file_bytes: 2_400_000 },
            Self::Deletes => Fragments { files: part(5_000), file_bytes: 100_000 },
        }
    }
}

/// A figure as scripts read it: these keys are fixed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Compacted {
    pub(crate) bench: &'static str,
    pub(crate) shape: &'static str,
    /// That stay.
    pub(crate) rows: u64,
    /// Of the data files before.
    pub(crate) bytes: u64,
    /// Bytes per CPU-second of ours ÷ those of the reference.
    pub(crate) ratio: f64,
    pub(crate) against: &'static str,
    pub(crate) seconds: f64,
    pub(crate) reference_seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) reference_cpu_seconds: f64,
    pub(crate) rows_per_cpu_second: f64,
    pub(crate) bytes_per_cpu_second: f64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) reference_peak_rss_bytes: u64,
}

/// What a reader finds in the table.
#[derive(Debug, Deserialize)]
struct Content {
    rows: u64,
    /// Sum over all keys.
    keys: String,
    data_files: u64,
    delete_files: u64,
}

pub(crate) async fn measure(job: Job, quick: bool) -> Result<Compacted> {
    let lake = Lake::without_source()?;
    let fragments = job.fragments(quick);
    say(job, &format!("writing {} files of {} bytes", fragments.files, fragments.file_bytes));
    let written = fragments.write(lake.folder()).await?;
    lake.keep()?;
    let before = content(&lake)?;
    if (before.rows, before.delete_files) != (written.rows, fragments.files) {
        return Err(format!("{written:?} was written, {before:?} is found").into());
    }

    let (mut ours, mut reference) = (Run::WORST, Run::WORST);
    for round in 1..=if quick { 1 } else { 2 } {
        lake.restore()?;
        let run = rewrite(&lake).await?;
        say(job, &format!("round {round}: duckdb {run}"));
        reference = reference.best(run);

        let begun = Instant::now();
        let run = lake.start_verb(&["maintain", "--once"])?.finish_measured(begun, LIMIT).await?;
        say(job, &format!("round {round}: lakehouse {run}"));
        ours = ours.best(run);
    }
    let after = content(&lake)?;
    if (after.rows, &after.keys, after.delete_files) != (before.rows, &before.keys, 0) {
        return Err(format!("{before:?} has become {after:?}").into());
    }
    say(job, &format!("{} data files have become {}", before.data_files, after.data_files));
    let rate = |amount: u64, run: &Run| (amount as f64 / run.cpu_seconds.max(0.01)).round();
    Ok(Compacted {
        bench: "maintenance",
        shape: job.shape(),
        rows: written.rows,
        bytes: written.bytes,
        ratio: (reference.cpu_seconds / ours.cpu_seconds.max(0.01) * 1_000.0).round() / 1_000.0,
        against: "DuckDB",
        seconds: ours.seconds,
        reference_seconds: reference.seconds,
        cpu_seconds: ours.cpu_seconds,
        reference_cpu_seconds: reference.cpu_seconds,
        rows_per_cpu_second: rate(written.rows, &ours),
        bytes_per_cpu_second: rate(written.bytes, &ours),
        peak_rss_bytes: ours.peak_rss_bytes,
        reference_peak_rss_bytes: reference.peak_rss_bytes,
    })
}

fn say(job: Job, message: &str) {
    eprintln!("bench: {}: {message}", job.name());
}

/// DuckDB, from the table to Parquet files of as many bytes as ours are to have.
async fn rewrite(lake: &Lake) -> Result<Run> {
    let target = lake.folder().join("rewritten");
    if target.exists() {
        std::fs::remove_dir_all(&target)?;
    }
    let mut command = reader::command(REFERENCE, [lake.metadata(TABLE)?.into_os_string(), target.into_os_string()])?;
    let begun = Instant::now();
    Process::start("duckdb", &mut command, lake.folder().join("duckdb.log"))?.finish_measured(begun, LIMIT).await
}

fn content(lake: &Lake) -> Result<Content> {
    reader::answer(REFERENCE, [lake.metadata(TABLE)?.into_os_string()])
}

impl fmt::Display for Compacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bench, shape, bytes, ratio, against, seconds, reference_seconds, .. } = self;
        write!(
            f,
            "{bench:<11} {shape:<8} {:>6.0} MB in {seconds:.2} s ({reference_seconds:.2} s), {:.1} MB per CPU-second, \
             {ratio:.2} x {against}; peak {:.0} MiB ({:.0} MiB)",
            *bytes as f64 / MEGABYTE,
            self.bytes_per_cpu_second / MEGABYTE,
            self.peak_rss_bytes as f64 / MEBIBYTE,
            self.reference_peak_rss_bytes as f64 / MEBIBYTE,
        )
    }
}

/// How it stands with what is promised of compaction; also of what was not measured in this run.
pub(crate) fn verdicts(compacted: &[Compacted]) -> Vec<String> {
    let of = |job: Job| compacted.iter().find(|compacted| compacted.shape == job.shape());
    let verdict = |what: &str, value: Option<f64>, missing: &dyn Fn(f64) -> f64| {
        let found = value.map_or("not measured".to_owned(), |value| match missing(value) {
            missing if missing <= 0.0 => format!("{value:.1}, reached"),
            missing => format!("{value:.1}, short by {missing:.1}"),
        });
        format!("target {what}: {found}")
    };
    let large = of(Job::Large);
    let ratio = large.map(|large| large.ratio);
    let mebibytes = |compacted: &Compacted| compacted.peak_rss_bytes as f64 / MEBIBYTE;
    let small = of(Job::Small).map(|small| small.seconds);
    let most = |what: Job, most: f64, unit: &str| format!("{}: at most {most} {unit}", what.name());
    let memory = |found: f64| found - MOST_MEBIBYTES;
    vec![
        verdict(
            &format!("{}: at least {LEAST_RATIO} x DuckDB's bytes per CPU-second", Job::Large.name()),
            ratio,
            &|ratio| LEAST_RATIO - ratio,
        ),
        verdict(&most(Job::Large, MOST_MEBIBYTES, "MiB"), large.map(mebibytes), &memory),
        verdict(&most(Job::Small, SMALL_SECONDS, "s"), small, &|took| took - SMALL_SECONDS),
        verdict(&most(Job::Deletes, MOST_MEBIBYTES, "MiB"), of(Job::Deletes).map(mebibytes), &memory),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_said_and_what_was_is_judged() {
        let compacted = Compacted {
            bench: "maintenance",
            shape: "large",
            rows: 10,
            bytes: 1_000_000_000,
            ratio: 0.3,
            against: "DuckDB",
            seconds: 9.0,
            reference_seconds: 8.0,
            cpu_seconds: 10.0,
            reference_cpu_seconds: 15.0,
            rows_per_cpu_second: 1.0,
            bytes_per_cpu_second: 70e6,
            peak_rss_bytes: 1 << 28,
            reference_peak_rss_bytes: 1 << 30,
        };
        let lines = verdicts(&[compacted]);
        assert!(lines[0].ends_with("0.3, short by 0.2"), "{lines:?}");
        assert!(lines[1].ends_with("256.0, reached"), "{lines:?}");
        assert!(lines[2].ends_with("not measured") && lines[3].ends_with("not measured"), "{lines:?}");
        let expected = r#"{"bench":"maintenance","shape":"large","rows":10,"bytes":1000000000,"ratio":0.3,"against":"DuckDB","seconds":9.0,"reference_seconds":8.0,"cpu_seconds":10.0,"reference_cpu_seconds":15.0,"rows_per_cpu_second":1.0,"bytes_per_cpu_second":70000000.0,"peak_rss_bytes":268435456,"reference_peak_rss_bytes":1073741824}"#;
        assert_eq!(serde_json::to_string(&compacted).expect("plain data"), expected);
    }
}
