//! Passes of maintenance that somebody has asked for, to be looked at: kept in memory, one at work at a time. A service that
//! is started anew knows none of them; what they have done stands in the history of maintenance.

use std::collections::VecDeque;

use lakehouse_core::schema::TableName;
use serde::Serialize;
use utoipa::ToSchema;

use crate::answer;
use crate::upkeep::TableReport;

/// Passes kept at a time; the oldest goes first. Each names the files of every table that it was for.
const PASSES: usize = 16;

/// How far one has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = MaintenanceState)]
pub(super) enum State {
    Running,
    Done,
    Failed,
}

/// One pass, as it is shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MaintenancePass)]
pub(super) struct Pass {
    pub(super) id: String,
    state: State,
    /// Of one that has failed before it came to any table.
    code: Option<&'static str>,
    by: String,
    reason: String,
    /// RFC 3339.
    begun_at: String,
    ended_at: Option<String>,
    /// What came of it, table by table; nothing while it is at work.
    tables: Vec<TableReport>,
    #[serde(skip)]
    pub(super) wanted: Vec<TableName>,
}

/// All that are kept, oldest first.
#[derive(Debug, Default)]
pub(super) struct Passes(VecDeque<Pass>);

impl Passes {
    /// A pass that is at work; nothing is begun while another one is.
    ///
    /// # Errors
    /// The other one's id.
    pub(super) fn begin(
        &mut self,
        id: &str,
        by: &str,
        reason: &str,
        wanted: &[TableName],
        now: i64,
    ) -> Result<(), String> {
        if let Some(running) = self.0.iter().find(|pass| pass.state == State::Running) {
            return Err(running.id.clone());
        }
        if self.0.len() == PASSES {
            self.0.pop_front();
        }
        self.0.push_back(Pass {
            id: id.to_owned(),
            state: State::Running,
            code: None,
            by: by.to_owned(),
            reason: reason.to_owned(),
            begun_at: answer::time(now),
            ended_at: None,
            tables: Vec::new(),
            wanted: wanted.to_vec(),
        });
        Ok(())
    }

    pub(super) fn end(&mut self, id: &str, ended: Result<Vec<TableReport>, &'static str>, now: i64) {
        let Some(pass) = self.0.iter_mut().find(|pass| pass.id == id) else { return };
        pass.ended_at = Some(answer::time(now));
        match ended {
            Ok(tables) => (pass.state, pass.tables) = (State::Done, tables),
            Err(code) => (pass.state, pass.code) = (State::Failed, Some(code)),
        }
    }

    pub(super) fn find(&self, id: &str) -> Option<&Pass> {
        self.0.iter().find(|pass| pass.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_at_work_at_a_time_and_the_oldest_are_forgotten() {
        let mut passes = Passes::default();
        let begin = |passes: &mut Passes, id: usize| passes.begin(&id.to_string(), "ann", "x", &[], 0);
        assert_eq!(begin(&mut passes, 0), Ok(()));
        assert_eq!(begin(&mut passes, 1), Err("0".to_owned()));
        passes.end("0", Err("CATALOG"), 1);
        let failed = passes.find("0").expect("kept");
        assert_eq!((failed.state, failed.code), (State::Failed, Some("CATALOG")));
        for id in 1..=PASSES {
            assert_eq!(begin(&mut passes, id), Ok(()), "{id}");
            passes.end(&id.to_string(), Ok(Vec::new()), 1);
        }
        assert_eq!(passes.0.len(), PASSES);
        assert!(passes.find("0").is_none());
        assert_eq!(passes.find("1").map(|pass| pass.state), Some(State::Done));
    }
}
