//! Programs in Python that read the lake, with the engines of `deploy/readers`; `LAKEHOUSE_READERS` is their interpreter.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::process;

/// What a query of such a program has cost.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Timing {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// A program of this folder, for a process of its own; it finds the modules of `deploy/readers`.
pub(crate) fn command(program: &str, arguments: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let python = std::env::var_os("LAKEHOUSE_READERS").ok_or("no LAKEHOUSE_READERS: start deploy/bench")?;
    let mut command = process::command(Path::new(&python));
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR"));
    // -B: no compiled files beside the sources. A file, since Sail does not start in a program given as text.
    command.arg("-B").arg(deploy.join("src/bench").join(program)).args(arguments);
    command.env("PYTHONPATH", deploy.join("readers"));
    Ok(command)
}

/// Runs such a program to its end, and reads the one JSON document that it prints.
pub(crate) fn answer<T: DeserializeOwned>(program: &str, arguments: impl IntoIterator<Item = OsString>) -> Result<T> {
    let output = command(program, arguments)?.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout)?),
        false => Err("the reader has failed".into()),
    }
}
