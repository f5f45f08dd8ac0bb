//! What has led from one point of a table's past to another: where its history has that, or that it has not.

use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::recorded_cuts;
use lakehouse_core::fold::{Range, history_begins};
use lakehouse_core::read::TableReader;
use lakehouse_core::rollback::rows_position;

use super::{Kind, Lake, kind};
use crate::config::Config;
use crate::failure::Failure;

/// A part of a history, as it stands now: what is in it never changes.
pub(crate) struct Passage {
    pub(crate) history: LoadedTable,
    pub(crate) range: Range,
}

impl Passage {
    pub(crate) async fn open(&self, lake: &Lake) -> Result<TableReader, Failure> {
        Ok(TableReader::at(&lake.storage, &self.history, self.history.snapshot_id()).await?)
    }
}

impl Lake {
    /// All changes between the states of two snapshots.
    ///
    /// # Errors
    /// `HISTORY_INCOMPLETE` where the history does not have them all, `LOG_BACKWARD` where the second state is the older
    /// one, `CUT_NOT_REACHED` where the history may still lack some.
    pub(crate) async fn passage(
        &self,
        config: &Config,
        table: &LoadedTable,
        from: i64,
        to: i64,
    ) -> Result<Passage, Failure> {
        let name = || table.name.to_string();
        let incomplete = |message: String| {
            let remedy = "take points that the history covers, or ask what differs between these: mode net";
            Failure::failed("HISTORY_INCOMPLETE", name(), message, remedy)
        };
        // Before the history: what its cut holds is there when the history is looked at.
        let owner = self.pipeline_of(config, table).await?;
        let (_, _, control) =
            owner.ok_or_else(|| incomplete("no pipeline in the configuration follows it".to_owned()))?;
        let history = self.catalog.load(&table.name.history(), None).await?;
        let history = history.filter(|history| kind(history) == Kind::History);
        let history = history.ok_or_else(|| incomplete("the table keeps no history".to_owned()))?;
        let begins = history_begins(&history)?.ok_or_else(|| incomplete("its history has not begun yet".to_owned()))?;
        let position = |snapshot: i64| {
            let unknown = || incomplete(format!("the position of snapshot {snapshot} is not known any more"));
            rows_position(table, snapshot).ok_or_else(unknown)
        };
        let range = Range { after: position(from)?, up_to: position(to)? };
        if begins > range.after {
            let message = format!("its history begins at {begins}, and the log would begin at {}", range.after);
            return Err(incomplete(message));
        }
        if range.up_to < range.after {
            let message = format!("the log would lead from {} back to {}", range.after, range.up_to);
            let remedy = "exchange the points: changes are told as they have happened";
            return Err(Failure::usage("LOG_BACKWARD", name(), message, remedy));
        }
        // A history's own position stays behind where nothing changes: a cut with both tells that it has everything.
        let held = history.name.to_string();
        let reached =
            recorded_cuts(&control).iter().any(|cut| cut.position >= range.up_to && cut.tables.contains_key(&held));
        if !reached {
            let message = format!("no cut holds its history at {} yet", range.up_to);
            return Err(Failure::failed("CUT_NOT_REACHED", name(), message, "try again in a moment"));
        }
        Ok(Passage { history, range })
    }
}
