//! What a pipeline's worker last said of itself, in `<local_state>/<pipeline>/worker.json`, so that `status` on the same
//! machine can name the code of a halt. Disposable like all local state; nothing but that answer relies on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lakehouse_core::error::Problem;
use serde::{Deserialize, Serialize};
use tracing::debug;

/// A worker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Running,
    /// Waits before it resumes from the cut.
    Retrying,
    Halted,
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerState {
    pub(crate) state: Phase,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
    /// Milliseconds since 1970.
    pub(crate) at: i64,
}

impl WorkerState {
    pub(crate) fn new(state: Phase, problem: Option<&Problem>) -> Self {
        Self {
            state,
            code: problem.map(|problem| problem.code.to_owned()),
            message: problem.map(|problem| problem.message.clone()),
            at: chrono::Utc::now().timestamp_millis(),
        }
    }

    /// Replaces the file as a whole. Failing costs a word in `status`, so it is no error.
    pub(crate) fn write(&self, local_state: &Path, pipeline: &str) {
        if let Err(error) = self.try_write(&file(local_state, pipeline)) {
            debug!(pipeline, %error, "worker state cannot be written");
        }
    }

    fn try_write(&self, file: &Path) -> io::Result<()> {
        let draft = file.with_extension("json.draft");
        fs::create_dir_all(file.parent().expect("a file in a pipeline's folder"))?;
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, file)
    }

    /// `None` where there is none, or none that can be read.
    pub(crate) fn read(local_state: &Path, pipeline: &str) -> Option<Self> {
        serde_json::from_slice(&fs::read(file(local_state, pipeline)).ok()?).ok()
    }
}

fn file(local_state: &Path, pipeline: &str) -> PathBuf {
    local_state.join(pipeline).join("worker.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(WorkerState::read(folder.path(), "p"), None);
        let problem = Problem::halt("GAP", "p", "the slot has forgotten", "resync");
        let state = WorkerState::new(Phase::Halted, Some(&problem));
        state.write(folder.path(), "p");
        assert_eq!(WorkerState::read(folder.path(), "p"), Some(state));
        fs::write(file(folder.path(), "p"), b"{").unwrap();
        assert_eq!(WorkerState::read(folder.path(), "p"), None);
    }
}
