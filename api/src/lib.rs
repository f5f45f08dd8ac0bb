//! The `lakehouse` binary: command line, configuration, roles, and the answers about what stands in the lake. The one
//! place where all parts of the product meet.
//!
//! Not here: reading, writing and committing tables (`lakehouse-core`), and anything that knows a source.

mod answer;
mod audit;
mod cli;
mod config;
mod digest;
mod failure;
mod http;
mod lake;
mod logs;
mod loopback;
mod nearest;
mod operate;
mod progress;
mod quarantined;
mod roles;
mod rows;
mod shapes;
mod source;
mod upkeep;
mod verbs;
mod worker_state;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use cli::{Cli, LATER};
use failure::{Exit, Failure};

/// How long work that was told to stop may hold the process up, once its role has given up waiting for it.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Runs the command line and says how it went.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refused(&arguments, &error).into(),
    };
    logs::start(cli.verb.is_role());
    let json = cli.json;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(verbs::run(cli));
            runtime.shutdown_timeout(LAST_WORK);
            ended
        }
        Err(error) => Err(error.into()),
    };
    ended.unwrap_or_else(|failure| end(&failure, json)).into()
}

fn end(failure: &Failure, json: bool) -> Exit {
    if failure.is_closed_output() {
        return Exit::Done;
    }
    failure.print(json);
    failure.exit
}

/// The command line was not understood, or asked for help.
fn refused(arguments: &[OsString], error: &clap::Error) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Help into a closed pipe is no error.
        let _ = error.print();
        return Exit::Done;
    }
    let json = arguments.iter().any(|argument| argument == "--json");
    if let (ErrorKind::InvalidSubcommand, Some(ContextValue::String(verb))) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
        && LATER.contains(&verb.as_str())
    {
        let remedy = "see `lakehouse --help` for the verbs of this release";
        return end(&Failure::not_yet(verb, "this release does not have this verb", remedy), json);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && !json {
        let _ = error.print();
        return Exit::Usage;
    }
    end(&misused(error), json)
}

/// What the parser of the command line found wrong, in the form of all errors.
fn misused(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let paragraph = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let paragraphs: Vec<String> = text.split("\n\n").map(paragraph).collect();
    let starting = |start: &str| paragraphs.iter().find(|paragraph| paragraph.starts_with(start)).cloned();
    let message = starting("error: ").map_or(text.clone(), |message| message["error: ".len()..].to_owned());
    let advice = [starting("tip: "), starting("Usage: "), Some("see `lakehouse --help`".to_owned())];
    let remedy = advice.into_iter().flatten().collect::<Vec<_>>().join("; ");
    Failure::usage("USAGE", "command line", message, remedy)
}
