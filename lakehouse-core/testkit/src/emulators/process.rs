//! A server as a child process that cannot outlive the test.
//!
//! Its keeper is a shell that waits for the end of its standard input. That end comes when the [`Process`] is dropped,
//! but also when the test process exits, panics or is killed; then the keeper kills the server and removes its folder.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// A loaded machine takes its time to load 140 MB of Java.
const DEADLINE: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    dir: PathBuf,
    port: u16,
    keeper: Child,
}

impl Process {
    /// Starts the server that `command` makes from a free port and a folder of its own, and waits until it listens.
    pub(super) async fn start(name: &'static str, command: impl Fn(u16, &Path) -> Command) -> Self {
        const ATTEMPTS: usize = 3;
        for _ in 0..ATTEMPTS {
            let process = Self::spawn(name, &command);
            match process.listens().await {
                Ok(()) => return process,
                // Somebody else took the port in between.
                Err(log) if log.to_lowercase().contains("address already in use") => {}
                Err(log) => panic!("{name} did not start: {log}"),
            }
        }
        panic!("{name}: no free port in {ATTEMPTS} attempts");
    }

    pub(super) fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn spawn(name: &'static str, command: &impl Fn(u16, &Path) -> Command) -> Self {
        // A process starts with the ignored signals of its parent, so the server is killed in the way that none ignores.
        const KEEP: &str = r#"
            trap '' HUP INT TERM
            "$@" </dev/null >"$0/server.log" 2>&1 &
            echo $! >"$0/server.pid"
            read -r _
            kill -9 $!
            wait $! 2>/dev/null
            rm -rf "$0"
        "#;
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir().expect("make a folder").keep();
        let port = free_port();
        let server = command(port, &dir);
        let mut keeper = Command::new("/bin/sh");
        keeper.args(["-c", KEEP]).arg(&dir).arg(server.get_program()).args(server.get_args());
        keeper.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // What the server leaves among temporary files goes with its folder.
        keeper.env("TMPDIR", &dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir(&dir);
        // A group of its own: the terminal's interrupt must not end the keeper before the test.
        let keeper = keeper.process_group(0).spawn().expect("start /bin/sh");
        Self { name, dir, port, keeper }
    }

    /// Until it takes connections; its log when it ends before or takes too long.
    async fn listens(&self) -> Result<(), String> {
        let begin = Instant::now();
        while begin.elapsed() < DEADLINE {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return if self.ended() { Err(self.log()) } else { Ok(()) };
            }
            if self.ended() {
                return Err(self.log());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(format!("not within {DEADLINE:?}: {}", self.log()))
    }

    /// The keeper reaps the server only at the end, so until then an ended one is a zombie.
    fn ended(&self) -> bool {
        let Ok(id) = fs::read_to_string(self.dir.join("server.pid")) else { return false };
        match fs::read_to_string(format!("/proc/{}/stat", id.trim())) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => !id.trim().is_empty(),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("server.log")).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} log, last lines:\n{}", self.name, crate::lakehouse::last_lines(&self.log(), 20));
        }
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// A port below the range from which the system hands out ports by itself, so that no outgoing connection takes it.
fn free_port() -> u16 {
    std::iter::repeat_with(|| fastrand::u16(20_000..32_000))
        .take(1_000)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port between 20000 and 32000")
}
