//! PyIceberg, a third engine, by the program that a person would write.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use tokio::process::Command;

use super::Failed;

#[derive(Debug)]
pub(crate) struct PyIceberg {
    interpreter: PathBuf,
    /// Python that makes `catalog`.
    open: String,
}

/// What it said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) program: String,
    /// Number and sum of the payments, at the snapshot and now.
    pub(crate) sums: Vec<(String, String)>,
    /// Start, imports and both scans.
    pub(crate) seconds: f64,
}

impl PyIceberg {
    pub(crate) fn new(open: &str) -> Result<Self, Failed> {
        match std::env::var_os("LAKEHOUSE_READERS") {
            Some(interpreter) => Ok(Self { interpreter: interpreter.into(), open: open.to_owned() }),
            None => Err(Failed::new("no PyIceberg: start deploy/demo, which installs it and sets LAKEHOUSE_READERS")),
        }
    }

    /// Captured payments, as of a snapshot and now.
    pub(crate) async fn ask(&self, snapshot: &str) -> Result<Answer, Failed> {
        let program = format!(
            "{}
payments = catalog.load_table(\"fuji.payments\")
for snapshot in ({snapshot}, None):
    scan = payments.scan(\"state = 'captured'\", selected_fields=(\"amount\",), snapshot_id=snapshot)
    amounts = scan.to_arrow()[\"amount\"].to_pylist()
    print(len(amounts), sum(amounts))",
            self.open
        );
        let begun = Instant::now();
        let mut command = Command::new(&self.interpreter);
        command.args(["-B", "-W", "ignore", "-c", &program]).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        let sums: Vec<(String, String)> = said
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(number, sum)| (number.to_owned(), sum.to_owned()))
            .collect();
        if !output.status.success() || sums.len() != 2 {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failed::new(format!("PyIceberg could not answer: {}", said.trim_end())));
        }
        Ok(Answer { program, sums, seconds: begun.elapsed().as_secs_f64() })
    }
}
