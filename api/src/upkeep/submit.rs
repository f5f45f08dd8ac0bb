//! Statements on their way to Spark: a program that somebody has configured, with a file as its last argument.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use lakehouse_core::error::Problem;
use lakehouse_core::storage::file_problem;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tracing::info;

use crate::config::SparkConfig;

/// Characters of a line of its output that are logged.
const LINE: usize = 1_000;

/// Runs the statements for a table and waits until the program has ended.
///
/// # Errors
/// `SPARK_FAILED`: it did not start, did not end in time, or ended with another code than 0.
pub(super) async fn submit(
    config: &SparkConfig,
    file: &Path,
    table: &str,
    statements: &[String],
) -> Result<(), Problem> {
    let text: String = statements.iter().map(|statement| format!("{statement};\n")).collect();
    fs::write(file, text).map_err(|error| file_problem(&file.display().to_string(), "written", &error))?;
    let [program, arguments @ ..] = &config.command[..] else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(arguments).arg(file).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.kill_on_drop(true).spawn();
    let mut child = child.map_err(|error| failed(table, format!("{program} cannot be started: {error}")))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let done = async { tokio::join!(log(table, out), log(table, err), child.wait()).2 };
    let Ok(ended) = tokio::time::timeout(config.timeout.0, done).await else {
        return Err(failed(table, format!("{program} has not ended within {}", config.timeout)));
    };
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(table, format!("{program} has ended with {status}"))),
        Err(error) => Err(failed(table, format!("{program} cannot be waited for: {error}"))),
    }
}

/// Its output, line by line, as far as a log can hold it.
async fn log(table: &str, output: Option<impl AsyncRead + Unpin>) {
    let Some(output) = output else { return };
    let mut lines = BufReader::new(output).lines();
    // What is not text ends the reading, and the program with its next line.
    while let Ok(Some(line)) = lines.next_line().await {
        let line: String = line.chars().take(LINE).collect();
        info!(table, line, "Spark says");
    }
}

fn failed(table: &str, message: String) -> Problem {
    let remedy = "read its lines in the log; correct `command` in [maintenance.spark], or run the statements by hand";
    Problem { remedy: remedy.to_owned(), ..Problem::retry("SPARK_FAILED", table, message) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Span;

    /// A shell script with the file as its `$1`.
    async fn check(script: &str, timeout: Duration) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let command = ["sh", "-c", script, "spark"].map(str::to_owned).to_vec();
        let config = SparkConfig { catalog: "lakehouse".to_owned(), command, timeout: Span(timeout) };
        let statements = ["CALL a".to_owned(), "CALL b".to_owned()];
        let ended = submit(&config, &folder.path().join("statements.sql"), "app.t", &statements).await;
        ended.map_err(|problem| format!("{}: {}", problem.code, problem.message))
    }

    #[tokio::test]
    async fn the_program_gets_the_statements_and_its_exit_code_counts() {
        let long = Duration::from_secs(60);
        let script = "echo said; test \"$(cat $1)\" = \"$(printf 'CALL a;\\nCALL b;')\"";
        assert_eq!(check(script, long).await, Ok(()));
        assert_eq!(check("exit 3", long).await, Err("SPARK_FAILED: sh has ended with exit status: 3".to_owned()));
        let late = check("sleep 60", Duration::from_millis(50)).await;
        assert_eq!(late, Err("SPARK_FAILED: sh has not ended within 50ms".to_owned()));
    }
}
