//! `deploy/bench`: the product against PostgreSQL's own clients, on the same data in the same run.
//!
//! Here: what is run and in what order. How each figure comes about is in `../bench/`.
//!
//! Absolute rates say more about the machine than about the product, so every figure is a ratio to a reference that
//! does nothing with what it reads. Both are whole processes, measured from outside; rounds alternate and the best
//! counts. Requests per commit are counted, and need no reference. Everything lives in one temporary folder and in processes that end with this one.

use std::error::Error;
use std::process::ExitCode;

#[path = "../bench/copy.rs"]
mod copy;
#[path = "../bench/lake.rs"]
mod lake;
#[path = "../bench/process.rs"]
mod process;
#[path = "../bench/read_cost.rs"]
mod read_cost;
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
    let options = match Options::parse(std::env::args().skip(1)) {
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
    if plan.is_empty() && counted.is_empty() {
        eprintln!("bench: no bench contains {:?}", options.filter);
        return ExitCode::from(2);
    }
    let mut report = Report::begin(options.json);
    let mut failed = false;
    for (bench, shape) in plan {
        match measure(bench, shape, &options).await {
            Ok(figure) => report.add(figure),
            Err(error) => {
                eprintln!("bench: {} failed: {error}", label(bench, shape));
                failed = true;
            }
        }
    }
    for data_files in counted {
        match requests::measure(data_files).await {
            Ok(requested) => report.add_requests(requested),
            Err(error) => {
                eprintln!("bench: {} failed: {error}", requests::name(data_files));
                failed = true;
            }
        }
    }
    report.end();
    ExitCode::from(u8::from(failed))
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
