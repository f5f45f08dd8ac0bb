//! `deploy/bench`: the product against PostgreSQL's own clients, on the same data in the same run.
//!
//! Here: what is run and in what order. How each figure comes about is in `../bench/`.
//!
//! Absolute rates say more about the machine than about the product, so every figure is a ratio to a reference that
//! does nothing with what it reads. Both are whole processes, measured from outside; rounds alternate and the best
//! counts. Requests per commit are counted, and need no reference; DynamoDB stands beside a client that only fetches,
//! compaction and reading over HTTP beside DuckDB, and tables that are changed and kept up beside fresh ones.
//! Everything lives in one temporary folder and in processes that end with this one.

use std::error::Error;
use std::process::ExitCode;

#[path = "../bench/churn.rs"]
mod churn;
#[path = "../bench/copy.rs"]
mod copy;
#[path = "../bench/dynamodb.rs"]
mod dynamodb;
#[path = "../bench/fragments.rs"]
mod fragments;
#[path = "../bench/http_read.rs"]
mod http_read;
#[path = "../bench/lake.rs"]
mod lake;
#[path = "../bench/maintenance.rs"]
mod maintenance;
#[path = "../bench/process.rs"]
mod process;
#[path = "../bench/read_cost.rs"]
mod read_cost;
#[path = "../bench/reader.rs"]
mod reader;
#[path = "../bench/report.rs"]
mod report;
#[path = "../bench/requests.rs"]
mod requests;
#[path = "../bench/server.rs"]
mod server;
#[path = "../bench/shape.rs"]
mod shape;
#[path = "../bench/stream.rs"]
mod stream;

use report::{Figure, Report};
use shape::Shape;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const USAGE: &str = "usage: deploy/bench [--quick] [--json] [--rows N] [FILTER]";

/// In this order: what the most depends on comes first.
const PLAN: [(Bench, Shape); 6] = [
    (Bench::Insert, Shape::Wide),
    (Bench::Insert, Shape::Narrow),
    (Bench::Update, Shape::Wide),
    (Bench::Mixed, Shape::Wide),
    (Bench::Copy, Shape::Wide),
    (Bench::ReadCost, Shape::Narrow),
];

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bench {
    /// A table that exists when the pipeline starts.
    Copy,
    /// Inserts in transactions of a thousand.
    Insert,
    /// Updates and deletes of random keys, in transactions of a thousand.
    Update,
    /// One-row transactions over ten tables: a fifth inserts, three fifths updates, a fifth deletes.
    Mixed,
    /// What a reader pays for the deletes that updates leave behind.
    ReadCost,
}

impl Bench {
    fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Mixed => "mixed",
            Self::ReadCost => "read_cost",
        }
    }

    /// Rows copied, changes made, or rows read.
    fn rows(self, quick: bool) -> u64 {
        match (self, quick) {
            (Self::Copy, false) => 2_200_000,
            (Self::Copy, true) => 500_000,
            (Self::Insert, false) => 1_000_000,
            (Self::Insert, true) => 200_000,
            (Self::Update, false) => 360_000,
            (Self::Update, true) => 180_000,
            (Self::Mixed, false) => 200_000,
            (Self::Mixed, true) => 100_000,
            (Self::ReadCost, false) => 5_000_000,
            (Self::ReadCost, true) => 500_000,
        }
    }
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
struct Extent {
    rows: u64,
    rounds: usize,
}

#[derive(Debug, Default)]
struct Options {
    quick: bool,
    json: bool,
    rows: Option<u64>,
    filter: String,
}

// One thread, because the children are told to end with the thread that started them.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((dynamodb::FETCH, arguments)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return match dynamodb::fetch_only(arguments).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let options = match Options::parse(arguments.into_iter()) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("bench: {error}; {USAGE}");
            return ExitCode::from(2);
        }
    };
    let plan = PLAN.iter().filter(|(bench, shape)| label(*bench, *shape).contains(&options.filter));
    let plan: Vec<_> = plan.copied().collect();
    let counted = requests::DATA_FILES.into_iter().filter(|&files| requests::name(files).contains(&options.filter));
    let counted: Vec<_> = counted.collect();
    let followed = dynamodb::PARTS.into_iter().filter(|part| part.name().contains(&options.filter));
    let followed: Vec<_> = followed.collect();
    let jobs = maintenance::JOBS.into_iter().filter(|job| job.name().contains(&options.filter));
    let jobs: Vec<_> = jobs.collect();
    let works: Vec<_> = churn::WORKS.into_iter().filter(|work| work.name().contains(&options.filter)).collect();
    let reads = http_read::name().contains(&options.filter);
    let tables = jobs.is_empty() && works.is_empty() && !reads;
    if plan.is_empty() && counted.is_empty() && followed.is_empty() && tables {
        eprintln!("bench: no bench contains {:?}", options.filter);
        return ExitCode::from(2);
    }
    let mut report = Report::begin(options.json);
    let mut failures = 0;
    for (bench, shape) in plan {
        let measured = measure(bench, shape, &options).await;
        count(&label(bench, shape), measured.map(|figure| report.add(figure)), &mut failures);
    }
    for job in jobs {
        let measured = maintenance::measure(job, options.quick).await;
        count(job.name(), measured.map(|compacted| report.add_compacted(compacted)), &mut failures);
    }
    if reads {
        let measured = http_read::measure(options.quick).await;
        count(&http_read::name(), measured.map(|read| report.add_read(read)), &mut failures);
    }
    for part in followed {
        let measured = dynamodb::measure(part, options.rows, options.quick).await;
        count(part.name(), measured.map(|followed| report.add_followed(followed)), &mut failures);
    }
    for data_files in counted {
        let measured = requests::measure(data_files).await;
        count(&requests::name(data_files), measured.map(|requested| report.add_requests(requested)), &mut failures);
    }
    for work in works {
        let measured = churn::measure(work, options.rows, options.quick).await;
        let add = |all: Vec<_>| all.into_iter().for_each(|churned| report.add_churned(churned));
        count(work.name(), measured.map(add), &mut failures);
    }
    report.end();
    ExitCode::from(u8::from(failures > 0))
}

/// What cannot be measured is said, and the next is begun.
fn count(name: &str, measured: Result<()>, failures: &mut usize) {
    if let Err(error) = measured {
        eprintln!("bench: {name} failed: {error}");
        *failures += 1;
    }
}

async fn measure(bench: Bench, shape: Shape, options: &Options) -> Result<Figure> {
    // Whole transactions of a thousand.
    let rows = options.rows.unwrap_or_else(|| bench.rows(options.quick)).next_multiple_of(1_000);
    let extent = Extent { rows, rounds: if options.quick { 1 } else { 2 } };
    match bench {
        Bench::Copy => copy::measure(shape, extent).await,
        Bench::Insert | Bench::Update | Bench::Mixed => stream::measure(bench, shape, extent).await,
        Bench::ReadCost => read_cost::measure(shape, extent).await,
    }
}

fn label(bench: Bench, shape: Shape) -> String {
    format!("{}-{}", bench.name(), shape.name())
}

/// A line for the one who waits.
fn say(bench: Bench, shape: Shape, message: &str) {
    eprintln!("bench: {}: {message}", label(bench, shape));
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--json" => options.json = true,
                "--rows" => {
                    let rows = arguments.next().and_then(|text| text.parse().ok());
                    options.rows = Some(rows.filter(|rows| *rows > 0).ok_or("--rows needs a number above 0")?);
                }
                other if other.starts_with('-') => return Err(format!("unknown option {other}").into()),
                _ if !options.filter.is_empty() => return Err("one FILTER at most".into()),
                _ => options.filter = argument,
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options> {
        Options::parse(arguments.iter().map(ToString::to_string))
    }

    #[test]
    fn options_come_in_any_order_and_wrong_ones_are_refused() {
        let options = parse(&["insert", "--json", "--rows", "5000", "--quick"]).expect("all known");
        assert!(options.quick && options.json);
        assert_eq!((options.rows, options.filter.as_str()), (Some(5_000), "insert"));
        for wrong in [&["--fast"][..], &["--rows"], &["--rows", "0"], &["copy", "insert"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
