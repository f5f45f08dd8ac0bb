//! The ranges of positions that snapshots claim, along the main line (protocol B3), and the table's own position.

use std::collections::{HashMap, HashSet};

use super::findings::{Check, CheckName, Findings, skipped};
use super::inventory::Inventory;
use super::{Role, files, guarded};
use crate::catalog::LoadedTable;
use crate::commit::properties::{self, TableState};
use crate::foreign::is_ours;
use crate::position::Position;
use crate::schema::POSITION;
use crate::storage::Storage;

/// The kept snapshots as links of a chain.
#[derive(Debug)]
pub(super) struct Lineage {
    /// Oldest first.
    links: Vec<Link>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    id: i64,
    kind: Kind,
    from: Option<Position>,
    to: Option<Position>,
    epoch: Option<u64>,
    /// The snapshot before it is kept too.
    joined: bool,
    /// An ancestor of the head, or the head; and, where snapshots between are expired, older than those.
    main: bool,
    /// A property that cannot be read.
    damaged: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Change,
    Copy,
    /// Of ours, and moves no position.
    Other(String),
    Foreign(String),
}

impl Lineage {
    pub(super) fn of(table: &LoadedTable) -> Self {
        let metadata = &table.metadata;
        let mut ancestors = HashSet::new();
        let mut next = table.snapshot_id().and_then(|id| metadata.snapshot_by_id(id));
        let mut first = i64::MAX;
        while let Some(snapshot) = next
            && ancestors.insert(snapshot.snapshot_id())
        {
            first = snapshot.sequence_number();
            next = snapshot.parent_snapshot_id().and_then(|id| metadata.snapshot_by_id(id));
        }
        let mut snapshots: Vec<_> = metadata.snapshots().collect();
        snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
        let link = |snapshot: &&iceberg::spec::SnapshotRef| {
            let id = snapshot.snapshot_id();
            let joined = snapshot.parent_snapshot_id().is_some_and(|parent| metadata.snapshot_by_id(parent).is_some());
            let main = ancestors.contains(&id) || snapshot.sequence_number() < first;
            Link { joined, main, ..Link::of(snapshot) }
        };
        Self { links: snapshots.iter().map(link).collect() }
    }

    /// `from(n) == to(n−1)`, no gap and no overlap; a new copy begins a new chain.
    pub(super) fn chain(&self) -> Check {
        let mut findings = Findings::new(CheckName::Chain);
        let mut reached: Option<Position> = None;
        let mut known = false;
        let (mut changes, mut copies, mut foreign) = (0, 0, 0);
        let (mut first, mut epoch) = (None, 0);
        // What a whole copy has replaced harms nobody any more.
        let whole = |link: &Link| link.main && link.kind == Kind::Copy && link.to.is_some();
        let copied = self.links.iter().rposition(whole).unwrap_or(0);
        for (place, link) in self.links.iter().enumerate() {
            let id = link.id;
            if let Some(key) = link.damaged {
                findings.fail(format!("snapshot {id} has an unreadable {key}"));
                known = false;
                continue;
            }
            if let Kind::Foreign(operation) = &link.kind {
                foreign += 1;
                let beside = if link.main { "" } else { ", beside the main line" };
                findings.note(format!("snapshot {id} is another engine's ({operation}){beside}"));
                continue;
            }
            if !link.main {
                let aside = format!("snapshot {id} is not an ancestor of the head: the table was set back behind it");
                match place < copied {
                    true => findings.note(format!("{aside}, and copied anew since")),
                    false => findings.fail(aside),
                }
                continue;
            }
            if link.epoch.is_some_and(|of| of < epoch) {
                findings.fail(format!("snapshot {id} has an epoch below {epoch}, its predecessor's"));
            }
            epoch = epoch.max(link.epoch.unwrap_or(0));
            known &= link.joined || changes + copies == 0;
            match &link.kind {
                Kind::Foreign(_) => {}
                Kind::Copy => {
                    copies += 1;
                    (known, reached) = (true, link.to);
                }
                Kind::Other(kind) => {
                    if known && link.to.is_some() && link.to != reached {
                        findings.fail(format!("snapshot {id} ({kind}) moves the position: {}", told(reached, link.to)));
                    }
                }
                Kind::Change => {
                    changes += 1;
                    first = first.or(link.from);
                    link.check_range(known, reached, &mut findings);
                    (known, reached) = (true, link.to);
                }
            }
        }
        let range = match (first, reached) {
            (Some(first), Some(last)) => format!(" from {first} to {last}"),
            _ => String::new(),
        };
        findings.check(format!("{changes} change, {copies} copy and {foreign} foreign snapshots{range}"))
    }

    /// The last position that a snapshot on the main line claims, and whether a copy has begun behind it.
    fn newest(&self) -> (Option<Position>, bool) {
        let ours = || self.links.iter().rev().filter(|link| link.main && !matches!(link.kind, Kind::Foreign(_)));
        let copying = ours().next().is_some_and(|link| link.kind == Kind::Copy && link.to.is_none());
        (ours().find_map(|link| link.to), copying)
    }

    /// The range of each change and the end of each copy, by snapshot.
    fn ranges(&self) -> HashMap<i64, (Option<Position>, Position)> {
        self.links.iter().filter_map(|link| Some((link.id, (link.from, link.to?)))).collect()
    }
}

impl Link {
    fn of(snapshot: &iceberg::spec::SnapshotRef) -> Self {
        let summary = &snapshot.summary().additional_properties;
        let mut damaged = None;
        let mut position = |key: &'static str| {
            let parsed = summary.get(key).map(|text| text.parse::<Position>());
            if matches!(parsed, Some(Err(_))) {
                damaged = Some(key);
            }
            parsed.and_then(Result::ok)
        };
        let (from, to) = (position(properties::FROM), position(properties::TO));
        let epoch = summary.get(properties::EPOCH).map(|text| text.parse());
        if matches!(epoch, Some(Err(_))) {
            damaged = Some(properties::EPOCH);
        }
        let kind = match (is_ours(snapshot), summary.get(properties::KIND).map(String::as_str)) {
            (false, _) => Kind::Foreign(snapshot.summary().operation.as_str().to_owned()),
            (true, Some("change")) => Kind::Change,
            (true, Some("copy")) => Kind::Copy,
            (true, other) => Kind::Other(other.unwrap_or("no kind").to_owned()),
        };
        let epoch = epoch.and_then(Result::ok);
        Self { id: snapshot.snapshot_id(), kind, from, to, epoch, joined: false, main: false, damaged }
    }

    fn check_range(&self, known: bool, reached: Option<Position>, findings: &mut Findings) {
        let Self { id, from, to, .. } = self;
        match (from, to) {
            (Some(from), Some(to)) if from < to => {}
            _ => {
                findings.fail(format!("snapshot {id} has no range of changes: {}", told(*from, *to)));
                return;
            }
        }
        if known && *from != reached {
            let kind = match from.cmp(&reached) {
                std::cmp::Ordering::Less => "overlap",
                _ => "gap",
            };
            findings.fail(format!("{kind} at snapshot {id}: {}", told(reached, *from)));
        }
        if !known && reached.is_some() && *from < reached {
            findings.fail(format!("overlap at snapshot {id}: {}", told(reached, *from)));
        }
    }
}

/// Two positions as a report shows them.
fn told(left: Option<Position>, right: Option<Position>) -> String {
    let text = |position: Option<Position>| position.map_or("none".to_owned(), |position| position.to_string());
    format!("{}, then {}", text(left), text(right))
}

/// The property is the `to` of the newest change, and no row of a history or a quarantine lies outside the range that brought it.
pub(super) fn position(
    storage: &Storage,
    table: &LoadedTable,
    role: Role,
    lineage: &Lineage,
    inventory: &Inventory,
) -> Check {
    if role == Role::Foreign {
        return skipped(CheckName::Position, "no pipeline writes this table");
    }
    let mut findings = Findings::new(CheckName::Position);
    let property = match TableState::of(table) {
        Ok(state) => state.position,
        Err(problem) => {
            findings.fail(problem.to_string());
            return findings.check("");
        }
    };
    let (newest, copying) = lineage.newest();
    match (property, newest) {
        (None, _) if copying => findings.note("the copy is not done"),
        (None, None) | (Some(_), None) => findings.note("no kept snapshot tells a position"),
        (property, newest) if property == newest => {}
        (property, newest) => {
            findings.fail(format!("the newest change and cdc.position differ: {}", told(newest, property)));
        }
    }
    if matches!(role, Role::History | Role::Quarantine) {
        check_rows(storage, table, role, property, lineage, inventory, &mut findings);
    }
    findings.check(property.map_or("no position".to_owned(), |position| format!("position {position}")))
}

fn check_rows(
    storage: &Storage,
    table: &LoadedTable,
    role: Role,
    property: Option<Position>,
    lineage: &Lineage,
    inventory: &Inventory,
    findings: &mut Findings,
) {
    let Some(field) = table.metadata.current_schema().field_by_name(POSITION) else {
        return;
    };
    let Some(live) = inventory.head(table).and_then(|head| inventory.live_in(head)) else {
        return;
    };
    let ranges = lineage.ranges();
    for file in live.map(|number| inventory.file(number)).filter(|file| file.records > 0) {
        let found = match guarded(|| files::long_bounds(storage, &file.path, field.id)) {
            Ok(Some((lowest, highest))) => {
                (Position::new(lowest.cast_unsigned()), Position::new(highest.cast_unsigned()))
            }
            // Rows that a copy has read have none.
            Ok(None) if role == Role::Quarantine => continue,
            Ok(None) => {
                findings.note(format!("{} has no statistics of its positions", file.path));
                continue;
            }
            Err(why) => {
                findings.note(format!("{} cannot be read: {why}", file.path));
                continue;
            }
        };
        if Some(found.1) > property {
            findings.fail(format!("{} has a row at {}, behind the table's position", file.path, found.1));
        }
        if let Some((Some(from), to)) = ranges.get(&file.added_by)
            && (found.0 <= *from || found.1 > *to)
        {
            let (path, by) = (&file.path, file.added_by);
            findings.fail(format!("{path} has rows from {} to {}, outside of snapshot {by}", found.0, found.1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `copy>5` `5>9` (a change) `=9` (ours, other) `foreign`; a leading `|`: the snapshot before is expired; `~`: beside
    /// the main line.
    fn check(script: &str) -> Check {
        let link = |(word, id): (&str, i64)| {
            let (joined, word) = word.strip_prefix('|').map_or((true, word), |word| (false, word));
            let (main, word) = word.strip_prefix('~').map_or((true, word), |word| (false, word));
            let position = |text: &str| text.parse().ok().map(Position::new);
            let (kind, from, to) = match word.split_once('>') {
                Some(("copy", to)) => (Kind::Copy, None, position(to)),
                Some((from, to)) => (Kind::Change, position(from), position(to)),
                None if word == "foreign" => (Kind::Foreign("replace".into()), None, None),
                None => (Kind::Other("compaction".into()), None, position(&word[1..])),
            };
            Link { id, kind, from, to, epoch: Some(1), joined: joined && id > 1, main, damaged: None }
        };
        Lineage { links: script.split_whitespace().zip(1..).map(link).collect() }.chain()
    }

    #[test]
    fn ranges_that_join_are_sound() {
        for script in ["", "copy> copy>5 5>9 9>12", "5>9 9>12", "copy>5 5>9 =9 foreign 9>12", "5>9 |12>13 13>14"] {
            let check = check(script);
            assert!(check.ok, "{script}: {}", check.detail);
        }
        assert!(check("copy>5 foreign 5>9").detail.contains("snapshot 2 is another engine's (replace)"));
    }

    #[test]
    fn a_new_copy_begins_a_new_chain() {
        assert!(check("copy>5 5>9 copy> copy>20 20>21").ok);
        assert!(check("copy>5 5>9 ~9>12 copy>20 20>21").ok, "what was set back is copied anew");
        assert!(!check("copy>5 5>9 copy> 9>12").ok, "changes before the copy is done");
    }

    #[test]
    fn gaps_and_overlaps_are_named() {
        for (script, said) in [
            ("copy>5 6>9", "gap at snapshot 2: 0/5, then 0/6"),
            ("copy>5 4>9", "overlap at snapshot 2"),
            ("copy>5 5>9 5>9", "overlap at snapshot 3"),
            ("copy>5 5>9 =8", "moves the position"),
            ("5>9 |8>13", "overlap at snapshot 2"),
            ("copy>5 5>5", "no range of changes"),
            ("copy>5 ?>9", "no range of changes: none, then 0/9"),
            ("copy>5 5>9 ~9>12 9>13", "not an ancestor"),
            ("copy>5 5>9 copy>20 ~20>21 20>22", "not an ancestor"),
        ] {
            let check = check(script);
            assert!(!check.ok && check.detail.contains(said), "{script}: {}", check.detail);
        }
    }

    #[test]
    fn an_epoch_never_falls() {
        let link = |id, epoch| Link {
            id,
            kind: Kind::Change,
            from: Some(Position::new(epoch)),
            to: Some(Position::new(epoch + 1)),
            epoch: Some(10 - epoch),
            joined: id > 1,
            main: true,
            damaged: None,
        };
        assert!(Lineage { links: vec![link(1, 5)] }.chain().ok);
        assert!(!Lineage { links: vec![link(1, 5), link(2, 6)] }.chain().ok);
    }
}
