//! The program behind `deploy/demo`, which builds and installs what it needs and then starts it.
//!
//!     demo [--once] [--rows N] [--catalog sqlite|s3-tables|rest]
//!
//! Wants `LAKEHOUSE_BIN` (the binary), `LAKEHOUSE_READERS` (an interpreter with DuckDB and PyIceberg) and
//! `LAKEHOUSE_MINISTACK` (one with the emulator of DynamoDB and S3) in its environment; for the catalog `rest`, where there
//! is Java, also `LAKEHOUSE_REST_CATALOG`.

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use deploy::demo::{self, Options};

const FAILED: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(USAGE);
        }
    };
    // The parts that the demo borrows from the tests say what is wrong by a panic.
    panic::set_hook(Box::new(|panic| eprintln!("\ndemo: {}", panic.payload_as_str().unwrap_or("it broke"))));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let ended = panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(demo::run(&options))));
    ExitCode::from(ended.unwrap_or(FAILED))
}
