//! What must hold at every end, whatever happened before: rows at every snapshot, chains, histories, cuts, epochs.

use std::collections::{BTreeMap, HashMap};

use iceberg::spec::SnapshotRef;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::Cut;
use lakehouse_core::commit::properties::{self, TableState};
use lakehouse_core::foreign::is_ours;
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableName;

use super::bank::{self, LEFT, PURSE, RIGHT};
use super::script::{Row, Told};
use super::world::{World, unreadable};
use super::{Violation, ensure, reading};

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub snapshots: usize,
    pub cuts: usize,
    /// Faults that were reached.
    pub fired: usize,
}

pub async fn check(world: &World) -> Result<Report, Violation> {
    world.slot.check()?;
    check_epochs(world)?;
    let mut checker = Checker { world, mirrors: HashMap::new(), histories: HashMap::new() };
    for (number, table) in world.script.tables.iter().enumerate() {
        if table.has_mirror() {
            checker.mirror(number).await?;
        }
        if table.has_history() {
            checker.history(number).await?;
        }
    }
    let cuts = checker.cuts()?;
    let snapshots = checker.mirrors.len() + checker.histories.len();
    Ok(Report { snapshots, cuts, fired: world.ground.fired() })
}

/// Nobody lands behind a successor: neither in a table that it has written, nor in the control table.
fn check_epochs(world: &World) -> Result<(), Violation> {
    let mut tables: BTreeMap<String, u64> = BTreeMap::new();
    let mut owners: BTreeMap<u64, String> = BTreeMap::new();
    let mut cut = Position::START;
    for landing in world.ground.landings() {
        let epoch = tables.entry(landing.table.clone()).or_default();
        ensure(landing.epoch >= *epoch, "epoch order", || {
            format!("{}: epoch {} lands behind {epoch}", landing.table, landing.epoch)
        })?;
        *epoch = landing.epoch;
        let Some(control) = landing.control else { continue };
        let owner = control.owner.unwrap_or_default();
        let first = owners.entry(control.epoch).or_insert_with(|| owner.clone());
        ensure(*first == owner, "epoch order", || format!("epoch {} has two owners", control.epoch))?;
        let position = control.cut.map_or(Position::START, |cut| cut.position);
        ensure(position >= cut, "cut order", || format!("the cut goes back from {cut} to {position}"))?;
        cut = position;
    }
    Ok(())
}

struct Checker<'a> {
    world: &'a World,
    /// By table and snapshot.
    mirrors: HashMap<(String, i64), Vec<Row>>,
    histories: HashMap<(String, i64), Vec<Told>>,
}

impl Checker<'_> {
    async fn load(&self, name: &TableName) -> Result<LoadedTable, Violation> {
        let loaded = self.world.catalog.load(name, None).await.map_err(|problem| unreadable(&problem))?;
        loaded.ok_or_else(|| Violation::new("missing table", name.to_string()))
    }

    async fn mirror(&mut self, number: usize) -> Result<(), Violation> {
        let script = &self.world.script;
        let table = &script.tables[number];
        let loaded = self.load(&table.mirror()).await?;
        let mut before = 0;
        let mut chain = Chain::default();
        let mut kept = reading::Kept::new();
        for snapshot in in_order(&loaded) {
            let id = snapshot.snapshot_id();
            let read = reading::rows(&self.world.storage, &loaded, id, &mut kept).await;
            let (rows, deletes) = read.map_err(|problem| unreadable(&problem))?;
            ensure(deletes <= 1, "delete files", || {
                format!("{}: {deletes} delete files for one data file", table.name)
            })?;
            // A rewrite, ours or another engine's, keeps the rows, and stands beside the chain.
            if is_rewrite(&snapshot) {
                let expected = script.rows_at(number, chain.reached.unwrap_or(script.consistent_point));
                ensure(rows == expected, "rows at a rewrite", || {
                    format!("{} at {:?}: {}", table.name, chain.reached, difference(&rows, &expected))
                })?;
                self.mirrors.insert((table.mirror().to_string(), id), rows);
                continue;
            }
            let place = chain.follow(self.world, table.name, &snapshot)?;
            let expected = script.rows_at(number, place.unwrap_or(script.consistent_point));
            match place {
                Some(to) => ensure(rows == expected, "rows at a snapshot", || {
                    format!("{} at {to}: {}", table.name, difference(&rows, &expected))
                })?,
                None => ensure(rows.iter().all(|row| expected.contains(row)), "rows of a copy", || {
                    format!("{}: {}", table.name, difference(&rows, &expected))
                })?,
            }
            if number == PURSE && place.is_some() && script.tables[number].name == "public.purse" {
                let sum = bank::sum(&rows);
                ensure(sum == bank::PURSES, "bank sum at a snapshot", || format!("{} holds {sum}", table.name))?;
            }
            check_counts(&snapshot, before, rows.len(), table.name)?;
            before = rows.len();
            self.mirrors.insert((table.mirror().to_string(), id), rows);
        }
        chain.ends(&loaded, script.end())
    }

    async fn history(&mut self, number: usize) -> Result<(), Violation> {
        let script = &self.world.script;
        let table = &script.tables[number];
        let name = table.mirror().history();
        let loaded = self.load(&name).await?;
        let mut chain = Chain::default();
        let mut kept = reading::Kept::new();
        let mut rewritten = false;
        for snapshot in in_order(&loaded) {
            let id = snapshot.snapshot_id();
            let read = reading::told(&self.world.storage, &loaded, id, &mut kept).await;
            let mut told = read.map_err(|problem| unreadable(&problem))?;
            // Files in the order of their paths are changes in order, until some of them are rewritten into a later one.
            rewritten |= is_rewrite(&snapshot);
            if rewritten {
                told.sort_by_key(|told| (told.position, told.ordinal));
            }
            if is_rewrite(&snapshot) {
                let reached = chain.reached.unwrap_or(script.consistent_point);
                let expected = script.told(number, script.consistent_point, reached);
                ensure(told == expected, "history at a rewrite", || {
                    format!("{name} at {reached}: {}", difference(&told, &expected))
                })?;
                self.histories.insert((name.to_string(), id), told);
                continue;
            }
            let to = chain.follow(self.world, &name.name, &snapshot)?;
            let to = to.ok_or_else(|| Violation::new("chain", format!("{name}: a snapshot without a position")))?;
            let expected = script.told(number, script.consistent_point, to);
            ensure(told == expected, "every change once and in order", || {
                format!("{name} at {to}: {}", difference(&told, &expected))
            })?;
            self.histories.insert((name.to_string(), id), told);
        }
        chain.ends(&loaded, script.end())
    }

    /// Every cut that ever landed shows one moment of the database. Returns how many there were.
    fn cuts(&self) -> Result<usize, Violation> {
        let landings = self.world.ground.landings();
        let mut cuts: Vec<Cut> = landings.into_iter().filter_map(|landing| landing.control?.cut).collect();
        cuts.dedup_by(|a, b| a.position == b.position && a.tables == b.tables);
        let end = cuts.last().map(|cut| cut.position);
        ensure(end == Some(self.world.script.end()), "the end is reached", || format!("the last cut is at {end:?}"))?;
        let mut began = false;
        for cut in &cuts {
            ensure(cut.left.is_empty(), "left tables", || format!("{:?}", cut.left))?;
            began |= !cut.tables.is_empty();
            if began {
                self.cut(cut)?;
            }
        }
        Ok(cuts.len())
    }

    fn cut(&self, cut: &Cut) -> Result<(), Violation> {
        let script = &self.world.script;
        let mut bank = 0;
        for (number, table) in script.tables.iter().enumerate() {
            let named = |name: &TableName| {
                let id = cut.tables.get(&name.to_string()).and_then(|id| id.parse::<i64>().ok());
                let missing = || Violation::new("cut", format!("the cut at {} does not name {name}", cut.position));
                id.map(|id| (name.to_string(), id)).ok_or_else(missing)
            };
            let unknown = |(name, id): &(String, i64)| {
                Violation::new("cut", format!("the cut at {} names snapshot {id} of {name}, not there", cut.position))
            };
            if table.has_mirror() {
                let key = named(&table.mirror())?;
                let rows = self.mirrors.get(&key).ok_or_else(|| unknown(&key))?;
                let expected = script.rows_at(number, cut.position);
                ensure(*rows == expected, "rows at a cut", || {
                    format!("{} at {}: {}", table.name, cut.position, difference(rows, &expected))
                })?;
                if [LEFT, RIGHT].contains(&number) && script.tables[LEFT].name == "public.left" {
                    bank += bank::sum(rows);
                }
            }
            if table.has_history() {
                let key = named(&table.mirror().history())?;
                let told = self.histories.get(&key).ok_or_else(|| unknown(&key))?;
                let expected = script.told(number, script.consistent_point, cut.position);
                ensure(*told == expected, "history at a cut", || {
                    format!("{} at {}: {}", key.0, cut.position, difference(told, &expected))
                })?;
            }
        }
        let banked = script.tables[LEFT].name == "public.left";
        ensure(!banked || bank == bank::BANK, "bank sum at a cut", || format!("{bank} at {}", cut.position))
    }
}

/// True for a snapshot that moves no position and keeps all rows.
pub fn is_rewrite(snapshot: &SnapshotRef) -> bool {
    let kind = snapshot.summary().additional_properties.get(properties::KIND);
    !is_ours(snapshot) || kind.is_some_and(|kind| kind == properties::KIND_COMPACTION)
}

/// The snapshots of a table, oldest first.
pub fn in_order(table: &LoadedTable) -> Vec<SnapshotRef> {
    let mut snapshots: Vec<SnapshotRef> = table.metadata.snapshots().cloned().collect();
    snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
    snapshots
}

fn noted<T: std::str::FromStr>(snapshot: &SnapshotRef, key: &str) -> Option<T> {
    snapshot.summary().additional_properties.get(key)?.parse().ok()
}

/// Ranges of one table: each begins where the one before ends, and ends at a boundary of the source.
#[derive(Default)]
struct Chain {
    reached: Option<Position>,
}

impl Chain {
    fn follow(&mut self, world: &World, table: &str, snapshot: &SnapshotRef) -> Result<Option<Position>, Violation> {
        let (from, to) = (noted::<Position>(snapshot, properties::FROM), noted::<Position>(snapshot, properties::TO));
        let kind: String = noted(snapshot, properties::KIND).unwrap_or_default();
        ensure(from == self.reached, "chain", || {
            format!("{table}: a snapshot from {from:?} to {to:?} follows one that ends at {:?}", self.reached)
        })?;
        ensure(kind == "copy" || to > from, "chain", || format!("{table}: a change goes from {from:?} to {to:?}"))?;
        if let Some(to) = to {
            let boundaries = world.script.boundaries();
            ensure(boundaries.contains(&to), "whole transactions", || format!("{table}: {to} is no boundary"))?;
            self.reached = Some(to);
        }
        Ok(to)
    }

    fn ends(&self, table: &LoadedTable, end: Position) -> Result<(), Violation> {
        let state = TableState::of(table).map_err(|problem| unreadable(&problem))?;
        let name = &table.name;
        ensure(state.position == self.reached && self.reached.is_some(), "position", || {
            format!("{name}: property {:?}, last snapshot {:?}", state.position, self.reached)
        })?;
        ensure(self.reached <= Some(end), "position", || format!("{name} stands behind the end of the source"))
    }
}

/// The summary's numbers are those of the rows.
fn check_counts(snapshot: &SnapshotRef, before: usize, after: usize, table: &str) -> Result<(), Violation> {
    let number = |key: &str| noted::<i64>(snapshot, key).unwrap_or(0);
    let total = number("total-records") - number("total-position-deletes");
    ensure(total == after as i64, "totals", || format!("{table}: {after} rows, the summary comes to {total}"))?;
    let kind: String = noted(snapshot, properties::KIND).unwrap_or_default();
    let expected = before as i64 + number(properties::INSERTED) - number(properties::DELETED);
    ensure(kind == "copy" || expected == after as i64, "counts", || {
        format!("{table}: {before} rows became {after}, the summary says {expected}")
    })
}

/// What is missing and what is too much, shortened.
pub fn difference<T: Ord + Clone + std::fmt::Debug>(found: &[T], expected: &[T]) -> String {
    let mut counts: BTreeMap<&T, i64> = BTreeMap::new();
    found.iter().for_each(|row| *counts.entry(row).or_default() += 1);
    expected.iter().for_each(|row| *counts.entry(row).or_default() -= 1);
    let pick = |wanted: fn(i64) -> bool| -> Vec<&T> {
        counts.iter().filter(|(_, count)| wanted(**count)).map(|(row, _)| *row).take(4).collect()
    };
    format!(
        "missing {:?}, too much {:?}{}",
        pick(|n| n < 0),
        pick(|n| n > 0),
        match counts.values().all(|&n| n == 0) {
            true => " (another order)",
            false => "",
        }
    )
}
