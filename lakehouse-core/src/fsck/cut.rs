//! The control table: cuts ascend, and the latest names what is there (protocol C1, C6, C7).

use iceberg::spec::SnapshotRef;

use super::findings::{Check, CheckName, Findings};
use super::load;
use crate::catalog::{Catalog, LoadedTable};
use crate::commit::{ControlState, Cut, properties};
use crate::error::Problem;
use crate::position::Position;
use crate::schema::TableName;

pub(super) async fn check(catalog: &dyn Catalog, table: &LoadedTable) -> Result<Check, Problem> {
    let mut findings = Findings::new(CheckName::Cut);
    let state = match ControlState::of(table) {
        Ok(state) => state,
        Err(problem) => {
            findings.fail(problem.to_string());
            return Ok(findings.check(""));
        }
    };
    let recorded = recorded(table, &mut findings);
    check_order(&recorded, &mut findings);
    check_newest(&state, recorded.last(), &mut findings);
    let Some(cut) = &state.cut else {
        return Ok(findings.check("no cut yet"));
    };
    for (name, id) in &cut.tables {
        check_named(catalog, cut, name, id, &mut findings).await?;
    }
    for (source, left) in &cut.left {
        findings.note(format!("{source} has left the cut at {} ({})", left.position, left.code));
    }
    let (count, tables, position) = (recorded.len(), cut.tables.len(), cut.position);
    Ok(findings.check(format!("{count} snapshots; the latest cut is at {position} with {tables} tables")))
}

/// One control commit as its snapshot tells it.
struct Recorded {
    id: i64,
    epoch: u64,
    cut: Option<Cut>,
}

fn recorded(table: &LoadedTable, findings: &mut Findings) -> Vec<Recorded> {
    let mut snapshots: Vec<&SnapshotRef> = table.metadata.snapshots().collect();
    snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
    let mut all = Vec::new();
    for snapshot in snapshots {
        let id = snapshot.snapshot_id();
        let summary = &snapshot.summary().additional_properties;
        let Some(epoch) = summary.get(properties::EPOCH) else {
            findings.note(format!("snapshot {id} is another engine's"));
            continue;
        };
        let cut = summary.get(properties::CUT).map(|text| serde_json::from_str(text)).transpose();
        match (epoch.parse(), cut) {
            (Ok(epoch), Ok(cut)) => all.push(Recorded { id, epoch, cut }),
            _ => findings.fail(format!("snapshot {id} has an unreadable epoch or cut")),
        }
    }
    all
}

/// Positions and epochs never fall; the cut of another source begins anew.
fn check_order(recorded: &[Recorded], findings: &mut Findings) {
    for pair in recorded.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        if after.epoch < before.epoch {
            findings.fail(format!("snapshot {} has epoch {} behind {}", after.id, after.epoch, before.epoch));
        }
        match (&before.cut, &after.cut) {
            (Some(old), Some(new)) if old.source != new.source => {
                findings.note(format!("snapshot {} goes on with another source", after.id));
            }
            (Some(old), Some(new)) if new.position < old.position => {
                let (id, to, from) = (after.id, new.position, old.position);
                findings.fail(format!("the cut of snapshot {id} is at {to}, behind {from}"));
            }
            (Some(_), None) => findings.fail(format!("snapshot {} has lost the cut", after.id)),
            _ => {}
        }
        if after.cut.as_ref().is_some_and(|cut| cut.epoch > after.epoch) {
            findings.fail(format!("the cut of snapshot {} has an epoch above its commit's", after.id));
        }
    }
}

fn check_newest(state: &ControlState, newest: Option<&Recorded>, findings: &mut Findings) {
    let Some(newest) = newest else {
        if state.cut.is_some() {
            findings.note("no kept snapshot tells the cut");
        }
        return;
    };
    if newest.cut != state.cut {
        findings.fail(format!("the cut of snapshot {} and the property cdc.cut differ", newest.id));
    }
    if newest.epoch != state.epoch {
        findings.fail(format!("epoch {} of snapshot {} and cdc.epoch {} differ", newest.epoch, newest.id, state.epoch));
    }
}

/// The snapshot that the cut names is the table at the cut's position: nothing later, nothing missing.
async fn check_named(
    catalog: &dyn Catalog,
    cut: &Cut,
    name: &str,
    id: &str,
    findings: &mut Findings,
) -> Result<(), Problem> {
    let (Ok(table), Ok(id)) = (name.parse::<TableName>(), id.parse::<i64>()) else {
        findings.fail(format!("the cut names {name} at {id}, which is no table or no snapshot"));
        return Ok(());
    };
    let table = match load(catalog, &table).await? {
        Some(Ok(table)) => table,
        Some(Err(problem)) => {
            findings.fail(format!("{name} cannot be read: {problem}"));
            return Ok(());
        }
        None => {
            findings.fail(format!("the cut names {name}, which is not in the catalog"));
            return Ok(());
        }
    };
    let Some(named) = table.metadata.snapshot_by_id(id) else {
        findings.fail(format!("the cut names snapshot {id} of {name}, which is gone"));
        return Ok(());
    };
    if let Some(to) = position_of(named).filter(|to| *to > cut.position) {
        findings.fail(format!("snapshot {id} of {name} is at {to}, beyond the cut at {}", cut.position));
    }
    let later = table.metadata.snapshots().filter(|other| other.sequence_number() > named.sequence_number());
    let is_change = |other: &&SnapshotRef| {
        let kind = other.summary().additional_properties.get(properties::KIND);
        kind.is_some_and(|kind| kind == "change")
    };
    for other in later.filter(is_change) {
        if let Some(to) = position_of(other).filter(|to| *to <= cut.position) {
            let other = other.snapshot_id();
            findings.fail(format!("the cut at {} misses snapshot {other} of {name}, which ends at {to}", cut.position));
        }
    }
    Ok(())
}

fn position_of(snapshot: &SnapshotRef) -> Option<Position> {
    snapshot.summary().additional_properties.get(properties::TO)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// `epoch:position`, or `epoch` alone before the first cut.
    fn check(script: &str) -> Check {
        let cut = |(source, position): (&str, &str), epoch| Cut {
            lanes: Default::default(),
            read_until: None,
            source: source.to_owned(),
            position: Position::new(position.parse().unwrap()),
            epoch,
            committed_at: 0,
            tables: BTreeMap::new(),
            left: BTreeMap::new(),
        };
        let one = |(word, id): (&str, i64)| {
            let (epoch, rest) = word.split_once(':').map_or((word, None), |(epoch, rest)| (epoch, Some(rest)));
            let epoch = epoch.parse().unwrap();
            let cut =
                rest.map(|rest| cut(rest.split_once('@').map_or(("a", rest), |(at, source)| (source, at)), epoch));
            Recorded { id, epoch, cut }
        };
        let recorded: Vec<Recorded> = script.split_whitespace().zip(1..).map(one).collect();
        let mut findings = Findings::new(CheckName::Cut);
        check_order(&recorded, &mut findings);
        findings.check("")
    }

    #[test]
    fn cuts_and_epochs_ascend() {
        for sound in ["", "1 1:5 1:9", "1:5 2:5 2:9", "1:9 2:4@other"] {
            assert!(check(sound).ok, "{sound}: {}", check(sound).detail);
        }
        for unsound in ["1:5 1:4", "2:5 1:6", "1:5 1"] {
            assert!(!check(unsound).ok, "{unsound}");
        }
    }
}
