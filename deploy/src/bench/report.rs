//! What comes out: a table line or a JSON line per figure, and in the end how it stands with the targets.

use std::fmt;

use serde::Serialize;

use crate::churn::{self, Churned};
use crate::dynamodb::Followed;
use crate::http_read::{self, ReadOver};
use crate::maintenance::{self, Compacted};
use crate::requests::Requested;
use crate::shape::Shape;
use crate::{Bench, label};

/// What one of the two needed for the rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// The product beside a reference, over the same rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) bench: Bench,
    pub(crate) shape: Shape,
    pub(crate) rows: u64,
    pub(crate) against: &'static str,
    /// Of the product; of a reader over the product's table for [`Bench::ReadCost`].
    pub(crate) ours: Sample,
    pub(crate) reference: Sample,
    /// The product's, the worst of all runs.
    pub(crate) peak_rss_bytes: u64,
}

/// A figure as scripts read it: these keys are fixed.
#[derive(Serialize)]
struct JsonLine {
    bench: &'static str,
    shape: &'static str,
    rows: u64,
    ratio: f64,
    against: &'static str,
    cpu_seconds: f64,
    reference_cpu_seconds: f64,
    rows_per_cpu_second: f64,
    peak_rss_bytes: u64,
}

/// What is promised of a figure.
struct Target {
    bench: Bench,
    shape: Shape,
    ratio: f64,
    rows_per_cpu_second: Option<f64>,
}

const TARGETS: [Target; 5] = [
    Target { bench: Bench::Insert, shape: Shape::Wide, ratio: 0.8, rows_per_cpu_second: Some(200_000.0) },
    Target { bench: Bench::Update, shape: Shape::Wide, ratio: 0.6, rows_per_cpu_second: Some(175_000.0) },
    Target { bench: Bench::Mixed, shape: Shape::Wide, ratio: 0.6, rows_per_cpu_second: Some(155_000.0) },
    Target { bench: Bench::Copy, shape: Shape::Wide, ratio: 0.7, rows_per_cpu_second: Some(370_000.0) },
    Target { bench: Bench::ReadCost, shape: Shape::Narrow, ratio: 0.25, rows_per_cpu_second: None },
];
/// Of a DynamoDB stream, with items of 350 bytes.
const RECORDS_PER_CPU_SECOND: f64 = 30_000.0;
const MEBIBYTE: f64 = 1024.0 * 1024.0;
/// Of every run.
const PEAK_RSS_MEBIBYTES: f64 = 512.0;
/// Of one table commit, at any number of data files.
const OBJECT_REQUESTS: f64 = 8.0;
const CATALOG_REQUESTS: f64 = 2.0;

/// Prints figures as they come, so that a later failure loses none.
pub(crate) struct Report {
    json: bool,
    figures: Vec<Figure>,
    requests: Vec<Requested>,
    followed: Vec<Followed>,
    compacted: Vec<Compacted>,
    churned: Vec<Churned>,
    read: Option<ReadOver>,
}

impl Sample {
    /// What every sample is better than.
    pub(crate) const WORST: Sample = Sample { seconds: f64::INFINITY, cpu_seconds: f64::INFINITY };

    pub(crate) fn best(self, other: Sample) -> Sample {
        let (seconds, cpu_seconds) = (self.seconds.min(other.seconds), self.cpu_seconds.min(other.cpu_seconds));
        Sample { seconds, cpu_seconds }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s, {:.2} CPU-s", self.seconds, self.cpu_seconds)
    }
}

impl Figure {
    fn ratio(&self) -> f64 {
        self.reference.seconds / self.ours.seconds
    }

    fn rate(&self, sample: Sample) -> f64 {
        self.rows as f64 / sample.seconds
    }

    fn rows_per_cpu_second(&self) -> f64 {
        // A process too short for the kernel's clock has used less than one tick of it.
        self.rows as f64 / self.ours.cpu_seconds.max(0.01)
    }

    fn json_line(&self) -> JsonLine {
        let thousandths = |value: f64| (value * 1_000.0).round() / 1_000.0;
        JsonLine {
            bench: self.bench.name(),
            shape: self.shape.name(),
            rows: self.rows,
            ratio: thousandths(self.ratio()),
            against: self.against,
            cpu_seconds: self.ours.cpu_seconds,
            reference_cpu_seconds: self.reference.cpu_seconds,
            rows_per_cpu_second: self.rows_per_cpu_second().round(),
            peak_rss_bytes: self.peak_rss_bytes,
        }
    }

    fn line(&self) -> String {
        format!(
            "{:<9} {:<6} {:>10} {:>13.0} {:>13.0} {:>6.2} {:>11.0} {:>8.2} {:>8.2} {:>9.0}  {}",
            self.bench.name(),
            self.shape.name(),
            self.rows,
            self.rate(self.ours),
            self.rate(self.reference),
            self.ratio(),
            self.rows_per_cpu_second(),
            self.ours.cpu_seconds,
            self.reference.cpu_seconds,
            self.peak_rss_bytes as f64 / MEBIBYTE,
            self.against,
        )
    }
}

impl Report {
    pub(crate) fn begin(json: bool) -> Self {
        if !json {
            println!(
                "{:<9} {:<6} {:>10} {:>13} {:>13} {:>6} {:>11} {:>8} {:>8} {:>9}  against",
                "bench",
                "shape",
                "rows",
                "our rows/s",
                "its rows/s",
                "ratio",
                "rows/CPU-s",
                "CPU s",
                "its CPU",
                "peak MiB",
            );
        }
        Self {
            json,
            figures: Vec::new(),
            requests: Vec::new(),
            followed: Vec::new(),
            compacted: Vec::new(),
            churned: Vec::new(),
            read: None,
        }
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        self.print(&figure.json_line(), &figure.line());
        self.figures.push(figure);
    }

    pub(crate) fn add_requests(&mut self, requested: Requested) {
        self.print(&requested, &requests_line(&requested));
        self.requests.push(requested);
    }

    pub(crate) fn add_followed(&mut self, followed: Followed) {
        self.print(&followed, &followed_line(&followed));
        self.followed.push(followed);
    }

    pub(crate) fn add_compacted(&mut self, compacted: Compacted) {
        self.print(&compacted, &compacted.to_string());
        self.compacted.push(compacted);
    }

    pub(crate) fn add_read(&mut self, read: ReadOver) {
        self.print(&read, &read.to_string());
        self.read = Some(read);
    }

    pub(crate) fn add_churned(&mut self, churned: Churned) {
        self.print(&churned, &churned.to_string());
        self.churned.push(churned);
    }

    fn print(&self, figure: &impl Serialize, line: &str) {
        match self.json {
            true => println!("{}", serde_json::to_string(figure).expect("a line is plain data")),
            false => println!("{line}"),
        }
    }

    pub(crate) fn end(&self) {
        if !self.json {
            println!();
            verdicts(&self.figures, &self.requests).iter().for_each(|line| println!("{line}"));
            println!("{}", followed_verdict(&self.followed));
            maintenance::verdicts(&self.compacted).iter().for_each(|line| println!("{line}"));
            churn::verdicts(&self.churned).iter().for_each(|line| println!("{line}"));
            println!("{}", http_read::verdict(self.read.as_ref()));
        }
    }
}

fn followed_line(followed: &Followed) -> String {
    let Followed { bench, rows, rows_per_cpu_second, rows_per_second, cpu_seconds, .. } = followed;
    let Followed { fetched_per_cpu_second, fetched_per_second, peak_rss_bytes, .. } = followed;
    format!(
        "{bench:<16} {rows} rows: {rows_per_cpu_second:.0} per CPU-second ({cpu_seconds:.2} CPU-s), {rows_per_second:.0} per second; \
         fetched only: {fetched_per_cpu_second:.0} per CPU-second, {fetched_per_second:.0} per second; peak {:.0} MiB",
        *peak_rss_bytes as f64 / MEBIBYTE
    )
}

fn followed_verdict(followed: &[Followed]) -> String {
    let stream = followed.iter().find(|followed| followed.bench == crate::dynamodb::Part::Stream.name());
    let rate = stream.map_or("not measured".to_owned(), |Followed { rows_per_cpu_second: rate, .. }| {
        format!(
            "{rate:.0}, {}",
            reached(*rate >= RECORDS_PER_CPU_SECOND, &format!("{:.0}", RECORDS_PER_CPU_SECOND - rate))
        )
    });
    format!("target dynamodb-stream: at least {RECORDS_PER_CPU_SECOND:.0} records per CPU-second: {rate}")
}

fn requests_line(requested: &Requested) -> String {
    let Requested { bench, data_files, table_commits, object_requests_per_commit, catalog_requests_per_commit } =
        requested;
    format!(
        "{bench:<9} {data_files} data files: {object_requests_per_commit:.2} to the object store and \
         {catalog_requests_per_commit:.2} to the catalog per table commit, over {table_commits} of them"
    )
}

/// A line per target, also for what was not measured in this run.
fn verdicts(figures: &[Figure], requests: &[Requested]) -> Vec<String> {
    let mut lines = Vec::new();
    for target in &TARGETS {
        let name = label(target.bench, target.shape);
        let figure = figures.iter().find(|figure| (figure.bench, figure.shape) == (target.bench, target.shape));
        let ratio = match figure {
            None => "not measured".to_owned(),
            Some(figure) => {
                let (ratio, missing) = (figure.ratio(), target.ratio - figure.ratio());
                format!("{ratio:.2}, {}", reached(missing <= 0.0, &format!("{missing:.2}")))
            }
        };
        let against = figure.map_or("its reference", |figure| figure.against);
        lines.push(format!("target {name}: at least {:.2} x {against}: {ratio}", target.ratio));
        let Some(least) = target.rows_per_cpu_second else {
            continue;
        };
        let rate = match figure {
            None => "not measured".to_owned(),
            Some(figure) => {
                let rate = figure.rows_per_cpu_second();
                format!("{rate:.0}, {}", reached(rate >= least, &format!("{:.0}", least - rate)))
            }
        };
        lines.push(format!("target {name}: at least {least:.0} rows per CPU-second: {rate}"));
    }
    let peak = figures.iter().map(|figure| figure.peak_rss_bytes).max();
    let peak = match peak {
        None => "not measured".to_owned(),
        Some(peak) => {
            let peak = peak as f64 / MEBIBYTE;
            format!("{peak:.0}, {}", reached(peak <= PEAK_RSS_MEBIBYTES, &format!("{:.0}", peak - PEAK_RSS_MEBIBYTES)))
        }
    };
    lines.push(format!("target memory: at most {PEAK_RSS_MEBIBYTES:.0} MiB resident in every run: {peak}"));
    lines.push(format!(
        "target requests: at most {OBJECT_REQUESTS:.0} to the object store and {CATALOG_REQUESTS:.0} to the catalog per \
         table commit, at any number of data files: {}",
        requests_verdict(requests)
    ));
    lines
}

fn requests_verdict(requests: &[Requested]) -> String {
    let most = |of: fn(&Requested) -> f64| requests.iter().map(of).reduce(f64::max);
    let objects = most(|requested| requested.object_requests_per_commit);
    let catalog = most(|requested| requested.catalog_requests_per_commit);
    let Some((objects, catalog)) = objects.zip(catalog) else { return "not measured".to_owned() };
    let over = [objects - OBJECT_REQUESTS, catalog - CATALOG_REQUESTS].map(|over| over.max(0.0));
    let missing = format!("{:.2} and {:.2}", over[0], over[1]);
    format!("{objects:.2} and {catalog:.2}, {}", reached(over == [0.0; 2], &missing))
}

fn reached(reached: bool, missing: &str) -> String {
    match reached {
        true => "reached".to_owned(),
        false => format!("short by {missing}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(seconds: f64, cpu_seconds: f64) -> Figure {
        Figure {
            bench: Bench::Insert,
            shape: Shape::Wide,
            rows: 1_000_000,
            against: "pg_recvlogical",
            ours: Sample { seconds, cpu_seconds },
            reference: Sample { seconds: 4.0, cpu_seconds: 2.0 },
            peak_rss_bytes: 600 << 20,
        }
    }

    #[test]
    fn the_json_line_has_the_keys_that_scripts_rely_on_and_above_one_is_faster() {
        let expected = r#"{"bench":"insert","shape":"wide","rows":1000000,"ratio":2.0,"against":"pg_recvlogical","cpu_seconds":4.0,"reference_cpu_seconds":2.0,"rows_per_cpu_second":250000.0,"peak_rss_bytes":629145600}"#;
        assert_eq!(serde_json::to_string(&insert(2.0, 4.0).json_line()).expect("plain data"), expected);
    }

    #[test]
    fn every_target_is_reached_or_short_by_something_or_not_measured() {
        let lines = verdicts(&[insert(8.0, 4.0)], &[]);
        assert_eq!(lines.len(), 11);
        assert!(lines[0].ends_with("0.50, short by 0.30"), "{}", lines[0]);
        assert!(lines[1].ends_with("250000, reached"), "{}", lines[1]);
        assert!(lines[2].ends_with("not measured"), "{}", lines[2]);
        assert!(lines[9].ends_with("600, short by 88"), "{}", lines[9]);
        assert!(lines[10].ends_with("not measured"), "{}", lines[10]);
    }

    #[test]
    fn requests_have_a_line_of_their_own_and_the_worst_counts() {
        let requested = |data_files, objects| Requested {
            bench: "requests",
            data_files,
            table_commits: 40,
            object_requests_per_commit: objects,
            catalog_requests_per_commit: 2.0,
        };
        let expected = r#"{"bench":"requests","data_files":10,"table_commits":40,"object_requests_per_commit":5.5,"catalog_requests_per_commit":2.0}"#;
        assert_eq!(serde_json::to_string(&requested(10, 5.5)).expect("plain data"), expected);
        let lines = verdicts(&[], &[requested(10, 5.5), requested(10_000, 8.25)]);
        assert!(lines[10].ends_with("8.25 and 2.00, short by 0.25 and 0.00"), "{}", lines[10]);
    }

    #[test]
    fn the_best_of_two_runs_is_the_best_of_each_kind() {
        let best = Sample::WORST.best(Sample { seconds: 2.0, cpu_seconds: 5.0 });
        let best = best.best(Sample { seconds: 3.0, cpu_seconds: 4.0 });
        assert_eq!((best.seconds, best.cpu_seconds), (2.0, 4.0));
    }
}
