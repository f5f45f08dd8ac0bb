//! A child process measured from outside: processor time and peak memory, as the kernel counts them.
//!
//! Not here: what it does, and when it is done.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// The kernel's unit of processor time in /proc, the same on every architecture it shows to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// What one run of a process cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_bytes: u64,
}

/// A child that dies with this program, or when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

/// A command for [`Process::start`].
pub(crate) fn command(program: &Path) -> Command {
    // No child may outlive a bench that was killed. The program takes the place of setpriv, so the id stays.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LAKEHOUSE_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

impl Run {
    /// What every run is better than; it has taken no memory yet.
    pub(crate) const WORST: Self = Self { seconds: f64::INFINITY, cpu_seconds: f64::INFINITY, peak_rss_bytes: 0 };

    /// The shortest times, and the most memory.
    pub(crate) fn best(self, other: Self) -> Self {
        Self {
            seconds: self.seconds.min(other.seconds),
            cpu_seconds: self.cpu_seconds.min(other.cpu_seconds),
            peak_rss_bytes: self.peak_rss_bytes.max(other.peak_rss_bytes),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s, {:.2} CPU-s, {} MiB", self.seconds, self.cpu_seconds, self.peak_rss_bytes >> 20)
    }
}

impl Process {
    /// Starts it with its standard error in a file; standard output goes to nowhere.
    pub(crate) fn start(name: &'static str, command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn();
        let child = child.map_err(|error| format!("{name}: {error}"))?;
        Ok(Self { name, child, log })
    }

    /// Whether it has ended. It is not waited for, so what the kernel counted can still be read.
    pub(crate) fn has_ended(&self) -> Result<bool> {
        Ok(self.stat()?.0 == "Z")
    }

    /// An error that carries the end of its log, if it has ended.
    pub(crate) fn must_run(&self) -> Result<()> {
        match self.has_ended()? {
            true => Err(self.failure("has ended early")),
            false => Ok(()),
        }
    }

    /// An error about it, with the end of its log.
    pub(crate) fn failure(&self, what: &str) -> Box<dyn std::error::Error> {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("{} {what}; its last lines:\n{last}", self.name).into()
    }

    /// Seconds of processor time so far, in user and system mode, all threads.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        Ok(self.stat()?.1)
    }

    /// The most memory that was resident at any moment, in bytes. Only while it runs.
    pub(crate) fn peak_rss_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Ok(kib.ok_or_else(|| self.failure("shows no peak of its memory"))? * 1024)
    }

    /// Asks it to stop (SIGTERM).
    pub(crate) fn terminate(&self) -> Result<()> {
        // Not waited for yet, so the id cannot be another process's.
        let script = format!("kill -TERM {}", self.child.id());
        match Command::new("/bin/sh").args(["-c", &script]).status()?.success() {
            true => Ok(()),
            false => Err(self.failure("cannot be told to stop")),
        }
    }

    /// Waits for an end in good order and returns all the processor time it took.
    pub(crate) async fn finish(self, limit: Duration) -> Result<f64> {
        Ok(self.finish_measured(Instant::now(), limit).await?.cpu_seconds)
    }

    /// Waits for an end in good order. The clock runs from `begun`; memory is what was seen a few milliseconds before the
    /// end, when the kernel still tells.
    pub(crate) async fn finish_measured(mut self, begun: Instant, limit: Duration) -> Result<Run> {
        let (asked, mut peak_rss_bytes) = (Instant::now(), 0);
        while !self.has_ended()? {
            if asked.elapsed() > limit {
                return Err(self.failure(&format!("has not ended within {limit:?}")));
            }
            peak_rss_bytes = self.peak_rss_bytes().unwrap_or(peak_rss_bytes);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (seconds, cpu_seconds) = (begun.elapsed().as_secs_f64(), self.cpu_seconds()?);
        match self.child.wait()?.success() {
            true => Ok(Run { seconds, cpu_seconds, peak_rss_bytes }),
            false => Err(self.failure("has failed")),
        }
    }

    /// State and processor time.
    fn stat(&self) -> Result<(String, f64)> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        Ok(parse_stat(&stat).ok_or("/proc shows a process in an unknown form")?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that was waited for is left alone by both.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse_stat(stat: &str) -> Option<(String, f64)> {
    // The program's name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.to_owned();
    let ticks = |text: Option<&str>| text?.parse::<u32>().ok().map(f64::from);
    let user = ticks(fields.nth(10))?;
    let system = ticks(fields.next())?;
    Some((state, (user + system) / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_hides_nothing() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 99 0 0 0 250 50 0 0 20 0 9 0 100 200 300";
        assert_eq!(parse_stat(stat), Some(("S".to_owned(), 3.0)));
        assert_eq!(parse_stat("7 (a) S 1 2"), None);
    }

    #[tokio::test]
    async fn an_ended_child_still_tells_its_processor_time() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut shell = command(Path::new("/bin/sh"));
        shell.args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]);
        let process = Process::start("sh", &mut shell, folder.path().join("log")).expect("starts");
        assert!(process.peak_rss_bytes().expect("runs") > 0);
        assert!(process.finish(Duration::from_secs(60)).await.expect("ends well") > 0.0);
    }

    #[tokio::test]
    async fn a_failing_child_is_told_with_its_last_words() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut shell = command(Path::new("/bin/sh"));
        shell.args(["-c", "echo out of cheese >&2; exit 1"]);
        let process = Process::start("sh", &mut shell, folder.path().join("log")).expect("starts");
        let error = process.finish(Duration::from_secs(60)).await.expect_err("fails");
        assert!(error.to_string().contains("out of cheese"), "{error}");
    }
}
