//! The real `lakehouse` binary as a child process: started, asked, stopped, frozen and killed like in production.
//!
//! Not here: what its configuration says (the test writes it) and what it must have written (`oracle`, `readers`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};

/// How long a verb may take before the test gives up on it.
const VERB_DEADLINE: Duration = Duration::from_secs(300);

/// One installation: the binary, a folder with its configuration file, and its environment.
#[derive(Debug)]
pub struct Lakehouse {
    binary: PathBuf,
    dir: PathBuf,
    environment: Vec<(String, String)>,
    started: AtomicUsize,
}

/// What a verb answered.
#[derive(Debug)]
pub struct Answer {
    /// The exit code of `interface.md` section 1; `None` when a signal ended the process.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A running `lakehouse` process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Lakehouse {
    /// Writes `config` to `lakehouse.toml` in `dir`, where the logs go too.
    ///
    /// # Panics
    /// When the binary was not built, or the file cannot be written.
    #[must_use]
    pub fn new(dir: &Path, config: &str) -> Self {
        let binary = binary();
        assert!(
            binary.exists(),
            "no {}: run deploy/test, or cargo build --release --workspace --bin lakehouse",
            binary.display()
        );
        let lakehouse = Self { binary, dir: dir.to_owned(), environment: Vec::new(), started: AtomicUsize::new(0) };
        lakehouse.configure(config);
        lakehouse
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("lakehouse.toml")
    }

    /// Replaces the configuration; it counts from the next start on.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn configure(&self, config: &str) {
        fs::write(self.config(), config).unwrap_or_else(|error| panic!("{}: {error}", self.config().display()));
    }

    /// Sets a variable for every process from now on, such as a password.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts a verb that runs until it is stopped. Its output goes to files in the folder.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| self.dir.join(format!("lakehouse-{number}.{name}")));
        let create = |path: &Path| File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut command = self.command(arguments);
        command.stdout(create(&stdout)).stderr(create(&stderr));
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.binary.display()));
        Process { child, stdout, stderr }
    }

    /// Runs a verb to its end, whatever its exit code.
    ///
    /// # Panics
    /// When it does not start, or does not end within five minutes.
    pub async fn run(&self, arguments: &[&str]) -> Answer {
        let mut process = self.spawn(arguments);
        let status = process.wait(VERB_DEADLINE).await;
        Answer { code: status.code(), stdout: process.stdout(), stderr: process.stderr() }
    }

    /// Runs a verb with `--json` and returns its exit code and its one JSON document.
    ///
    /// # Panics
    /// When standard output is not one JSON document.
    pub async fn json(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let answer = self.run(&[&["--json"], arguments].concat()).await;
        let document = serde_json::from_str(&answer.stdout).unwrap_or_else(|error| {
            panic!(
                "{arguments:?} answered no JSON ({error}), exit {:?}: {}{}",
                answer.code, answer.stdout, answer.stderr
            )
        });
        (answer.code, document)
    }

    /// As [`Lakehouse::json`], for a verb that must succeed.
    ///
    /// # Panics
    /// When the exit code is not 0.
    pub async fn ask(&self, arguments: &[&str]) -> Value {
        let (code, document) = self.json(arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}: {document}");
        document
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            // The kit's own variables must not configure the product.
            if name.to_string_lossy().starts_with("LAKEHOUSE_") {
                command.env_remove(name);
            }
        }
        command.arg("--config").arg(self.config()).args(arguments).current_dir(&self.dir);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

impl Process {
    /// Kills it at once (SIGKILL) and waits until it is gone.
    ///
    /// # Panics
    /// When the system refuses.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap_or_else(|error| panic!("kill: {error}"));
    }

    /// Asks it to stop (SIGTERM); [`Process::wait`] tells how it did.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Stops it in mid-work (SIGSTOP), as a long pause of its machine would.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets a frozen process go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When the system cannot tell.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap_or_else(|error| panic!("wait: {error}")).is_none()
    }

    /// Waits for its exit.
    ///
    /// # Panics
    /// When it still runs after `deadline`; it is killed then.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        match tokio::time::timeout(deadline, self.child.wait()).await {
            Ok(status) => status.unwrap_or_else(|error| panic!("wait: {error}")),
            Err(_) => panic!("lakehouse did not end within {deadline:?}"),
        }
    }

    /// Its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// Its standard error, the log, so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// The system's number of the process; it was not waited for, so it cannot be another's.
    ///
    /// # Panics
    /// When it has ended and was waited for.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id().expect("a process that was not waited for")
    }

    fn signal(&self, name: &str) {
        let id = self.id();
        let script = format!("kill -{name} {id}");
        let status = std::process::Command::new("/bin/sh").args(["-c", &script]).status();
        assert!(status.is_ok_and(|status| status.success()), "{script} failed");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}, last lines:\n{}", self.stderr.display(), last_lines(&self.stderr(), 60));
        }
    }
}

/// The binary under test: `LAKEHOUSE_BIN`, or the one in the target folder that this test itself was built into.
///
/// # Panics
/// When the running program has no path.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LAKEHOUSE_BIN") {
        return path.into();
    }
    // …/release/deps/<test> lies two below …/release/lakehouse.
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(2).unwrap_or(&test).join("lakehouse")
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The last `count` lines of a log.
pub(crate) fn last_lines(log: &str, count: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// An installation whose binary is a shell script, to test the kit and not the product.
    fn scripted(script: &str) -> (tempfile::TempDir, Lakehouse) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let binary = dir.path().join("script");
        fs::write(&binary, format!("#!/bin/sh\n{script}\n")).expect("write the script");
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("make it executable");
        let started = AtomicUsize::new(0);
        let lakehouse = Lakehouse { binary, dir: dir.path().to_owned(), environment: Vec::new(), started };
        lakehouse.configure("");
        (dir, lakehouse)
    }

    async fn until_it_says(process: &Process, word: &str) {
        let wait = async {
            while !process.stdout().contains(word) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the script starts");
    }

    #[tokio::test]
    async fn an_answer_carries_exit_code_and_both_outputs() {
        let (_dir, mut lakehouse) =
            scripted(r#"echo "{\"arguments\":\"$3 $4\",\"secret\":\"$SECRET\"}"; echo log >&2; exit 3"#);
        lakehouse.set_environment("SECRET", "s");
        let (code, document) = lakehouse.json(&["status"]).await;
        assert_eq!(code, Some(3));
        assert_eq!(document, serde_json::json!({"arguments": "--json status", "secret": "s"}));
        assert_eq!(lakehouse.run(&["status"]).await.stderr, "log\n");
    }

    #[tokio::test]
    async fn it_is_killed_terminated_and_frozen() {
        let (_dir, lakehouse) = scripted("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done");
        let mut process = lakehouse.spawn(&["run"]);
        until_it_says(&process, "ready").await;
        process.freeze();
        process.terminate();
        assert!(process.is_running());
        process.thaw();
        assert_eq!(process.wait(Duration::from_secs(60)).await.code(), Some(7));

        let mut process = lakehouse.spawn(&["run"]);
        until_it_says(&process, "ready").await;
        process.kill().await;
        assert_eq!(process.wait(Duration::from_secs(60)).await.signal(), Some(9));
        assert!(!process.is_running());
    }
}
