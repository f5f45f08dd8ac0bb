//! The real binary in a folder of its own, asked as a script would ask it; and a lake for it to answer about.

pub(crate) mod browser;
pub(crate) mod changing;
pub(crate) mod issuer;
pub(crate) mod lake;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A folder with a configuration file.
pub(crate) struct Installation {
    folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

/// What a verb answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("the answer is text")
    }

    /// The one JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// Exit code and stable code of an error; the same in both forms.
    pub(crate) fn error(&self) -> (i32, String) {
        let keys: Vec<String> = self.json().as_object().expect("an object").keys().cloned().collect();
        assert_eq!(keys, ["code", "message", "remedy", "subject"]);
        (self.code, self.json()["code"].as_str().expect("a code").to_owned())
    }
}

impl Installation {
    pub(crate) fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("lakehouse.toml"), config).expect("a configuration file");
        Self { folder, environment: Vec::new() }
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Answer {
        let Output { status, stdout, stderr } = self.command(arguments).output().expect("the binary starts");
        let stderr = String::from_utf8(stderr).expect("logs are text");
        Answer { code: status.code().unwrap_or_else(|| panic!("{status}: {stderr}")), stdout, stderr }
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Answer {
        self.run(&[&["--json"], arguments].concat())
    }

    /// As [`Installation::json`], for a verb that must succeed.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Value {
        let answer = self.json(arguments);
        assert_eq!(answer.code, 0, "{arguments:?}: {answer:?}");
        answer.json()
    }

    /// What it logs goes to [`Installation::log`].
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        let log = File::options().create(true).append(true).open(self.path().join("log")).expect("a log");
        self.command(arguments).stdout(Stdio::null()).stderr(log).spawn().expect("the binary starts")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).expect("a log")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(testkit::lakehouse::binary());
        let ours = |name: &str| name.starts_with("LAKEHOUSE_") || name == "RUST_LOG";
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().cloned()).current_dir(self.path()).args(arguments);
        command
    }
}
