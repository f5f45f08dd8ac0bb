//! From snapshot to snapshot over the manifests that come and go: what is live, how often, and how much it comes to.
//!
//! Cost follows the difference between neighbouring snapshots. Pure: all is in the inventory.

use std::collections::{BTreeSet, HashMap};

use iceberg::spec::DataContentType;

use super::findings::{Check, CheckName, Findings};
use super::inventory::{Inventory, KeptSnapshot};
use crate::catalog::LoadedTable;
use crate::foreign::is_ours;
use crate::live::Totals;

pub(super) struct Counted {
    pub(super) live_paths: Check,
    pub(super) counters: Check,
    /// What concerns delete files beside their contents; the check goes on in `deletes`.
    pub(super) deletes: Findings,
}

pub(super) fn count(inventory: &Inventory, table: &LoadedTable) -> Counted {
    let mut counting = Counting::new(inventory);
    for kept in &inventory.snapshots {
        counting.step(kept);
    }
    counting.look_at_head(table);
    let (whole, all) = (counting.whole, inventory.snapshots.len());
    let snapshots = match all - whole {
        0 => format!("{all} snapshots"),
        unread => format!("{whole} snapshots; {unread} more could not be read"),
    };
    Counted {
        live_paths: counting.live_paths.check(format!("{snapshots}, {} files", inventory.files.len())),
        counters: counting.counters.check(snapshots),
        deletes: counting.deletes,
    }
}

struct Counting<'a> {
    inventory: &'a Inventory,
    /// Manifests of the last snapshot that was whole.
    manifests: Vec<u32>,
    /// Times that each file is live there.
    times: Vec<u32>,
    /// Live delete files that name each data file alone.
    deletes_of: HashMap<u32, u32>,
    doubled: BTreeSet<u32>,
    totals: Totals,
    whole: usize,
    live_paths: Findings,
    counters: Findings,
    deletes: Findings,
}

impl<'a> Counting<'a> {
    fn new(inventory: &'a Inventory) -> Self {
        Self {
            inventory,
            manifests: Vec::new(),
            times: vec![0; inventory.files.len()],
            deletes_of: HashMap::new(),
            doubled: BTreeSet::new(),
            totals: Totals::default(),
            whole: 0,
            live_paths: Findings::new(CheckName::LivePaths),
            counters: Findings::new(CheckName::Counters),
            deletes: Findings::new(CheckName::Deletes),
        }
    }

    fn step(&mut self, kept: &KeptSnapshot) {
        let Some(next) = &kept.manifests else { return };
        self.whole += 1;
        let (gone, come) = difference(&self.manifests, next);
        let already = self.doubled.clone();
        let inventory = self.inventory;
        let files =
            |manifests: Vec<u32>| manifests.into_iter().flat_map(|n| inventory.manifest(n).live.iter().copied());
        for file in files(gone) {
            self.leave(file);
        }
        let mut new = Vec::new();
        for file in files(come) {
            if self.enter(file) {
                new.push(file);
            }
        }
        self.manifests.clone_from(next);
        let id = kept.snapshot.snapshot_id();
        for &file in self.doubled.difference(&already) {
            self.live_paths.fail(format!("snapshot {id} has {} more than once", inventory.file(file).path));
        }
        new.into_iter().for_each(|file| self.check_delete(file, id));
        self.check_counters(kept);
    }

    /// True if the file was not live before.
    fn enter(&mut self, number: u32) -> bool {
        let times = &mut self.times[number as usize];
        *times += 1;
        if *times > 1 {
            self.doubled.insert(number);
            return false;
        }
        self.add(number, u64::wrapping_add);
        if let Some(data) = self.data_of(number) {
            *self.deletes_of.entry(data).or_default() += 1;
        }
        true
    }

    fn leave(&mut self, number: u32) {
        let times = &mut self.times[number as usize];
        *times -= 1;
        if *times == 1 {
            self.doubled.remove(&number);
        }
        if *times > 0 {
            return;
        }
        self.add(number, u64::wrapping_sub);
        if let Some(data) = self.data_of(number)
            && let Some(count) = self.deletes_of.get_mut(&data)
        {
            *count -= 1;
        }
    }

    fn add(&mut self, number: u32, by: fn(u64, u64) -> u64) {
        let file = self.inventory.file(number);
        let totals = &mut self.totals;
        totals.bytes = by(totals.bytes, file.bytes);
        match file.content {
            DataContentType::Data => {
                totals.data_files = by(totals.data_files, 1);
                totals.records = by(totals.records, file.records);
            }
            DataContentType::PositionDeletes => {
                totals.delete_files = by(totals.delete_files, 1);
                totals.deleted_positions = by(totals.deleted_positions, file.records);
            }
            DataContentType::EqualityDeletes => totals.delete_files = by(totals.delete_files, 1),
        }
    }

    /// The data file that a delete file names.
    fn data_of(&self, number: u32) -> Option<u32> {
        let referenced = self.inventory.file(number).delete.as_ref()?.referenced.as_ref()?;
        self.inventory.number_of(referenced)
    }

    /// A delete file that has just become live.
    fn check_delete(&mut self, number: u32, snapshot: i64) {
        let file = self.inventory.file(number);
        let Some(referenced) = file.delete.as_ref().and_then(|delete| delete.referenced.as_ref()) else {
            return;
        };
        let data = self.inventory.number_of(referenced).filter(|&data| self.times[data as usize] > 0);
        let Some(data) = data else {
            // Left behind by a rewrite it is harmless; new, it has lost its rows (protocol B9).
            if file.added_by == snapshot {
                let message = format!("snapshot {snapshot} deletes rows of {referenced}, which is not live there");
                self.deletes.fail(message);
            }
            return;
        };
        if self.deletes_of.get(&data).is_some_and(|&count| count > 1) {
            self.deletes.fail(format!("snapshot {snapshot} has more than one delete file for {referenced}"));
        }
        if file.sequence_number < self.inventory.file(data).sequence_number {
            self.deletes
                .fail(format!("{} is older than the file whose rows it deletes, so it does nothing", file.path));
        }
    }

    /// Deletes that are without effect, or that every reader pays for. What is behind the head is paid for by nobody.
    fn look_at_head(&mut self, table: &LoadedTable) {
        let inventory = self.inventory;
        let Some(live) = inventory.head(table).and_then(|head| inventory.live_in(head)) else {
            return;
        };
        for number in live {
            let file = inventory.file(number);
            if file.content == DataContentType::EqualityDeletes {
                self.deletes.fail(format!("{}: an equality delete file", file.path));
            }
            let referenced = file.delete.as_ref().and_then(|delete| delete.referenced.as_ref());
            let data = referenced.and_then(|path| inventory.number_of(path));
            if referenced.is_some() && data.is_none_or(|data| self.times[data as usize] == 0) {
                self.deletes.note(format!("{} is dangling: its data file is gone", file.path));
            }
        }
    }

    /// Only of our own snapshots: other engines count in their own ways.
    fn check_counters(&mut self, kept: &KeptSnapshot) {
        if !is_ours(&kept.snapshot) {
            return;
        }
        let (Some(added), Some(removed)) = (self.inventory.added_in(kept), self.inventory.removed_in(kept)) else {
            return;
        };
        let (added, removed) = (self.sum(added), self.sum(removed));
        let totals = self.totals;
        let expected = [
            ("total-data-files", totals.data_files, true),
            ("total-records", totals.records, true),
            ("total-delete-files", totals.delete_files, true),
            ("total-position-deletes", totals.deleted_positions, true),
            ("total-files-size", totals.bytes, true),
            ("added-data-files", added.data_files, true),
            ("added-records", added.records, true),
            ("added-delete-files", added.delete_files, true),
            ("added-position-deletes", added.deleted_positions, true),
            ("added-files-size", added.bytes, true),
            // A commit that empties the table does not say which delete files go with it.
            ("deleted-data-files", removed.data_files, false),
            ("deleted-records", removed.records, false),
            ("removed-delete-files", removed.delete_files, false),
            ("removed-position-deletes", removed.deleted_positions, false),
        ];
        let id = kept.snapshot.snapshot_id();
        let summary = &kept.snapshot.summary().additional_properties;
        for (key, counted, always) in expected {
            let said = summary.get(key);
            let right = match said {
                None => !always || (counted == 0 && !key.starts_with("total-")),
                Some(said) => said.parse() == Ok(counted),
            };
            if !right {
                let said = said.map_or("nothing", String::as_str);
                self.counters.fail(format!("snapshot {id} says {key} = {said}, counted are {counted}"));
            }
        }
    }

    fn sum(&self, files: impl Iterator<Item = u32>) -> Totals {
        let mut sum = Totals::default();
        for file in files.map(|number| self.inventory.file(number)) {
            sum.bytes += file.bytes;
            match file.content {
                DataContentType::Data => {
                    sum.data_files += 1;
                    sum.records += file.records;
                }
                DataContentType::PositionDeletes => {
                    sum.delete_files += 1;
                    sum.deleted_positions += file.records;
                }
                DataContentType::EqualityDeletes => sum.delete_files += 1,
            }
        }
        sum
    }
}

/// What is only in `old`, and what is only in `new`; both ascending, with multiplicity.
fn difference(old: &[u32], new: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    let (mut a, mut b) = (old.iter().copied().peekable(), new.iter().copied().peekable());
    loop {
        match (a.peek(), b.peek()) {
            (None, None) => return (gone, come),
            (Some(left), Some(right)) if left == right => {
                a.next();
                b.next();
            }
            (Some(left), right) if right.is_none_or(|right| left < right) => gone.extend(a.next()),
            _ => come.extend(b.next()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_snapshots_are_told_apart_by_their_manifests() {
        assert_eq!(difference(&[1, 2, 3], &[2, 3, 4]), (vec![1], vec![4]));
        assert_eq!(difference(&[], &[1, 1]), (vec![], vec![1, 1]));
        assert_eq!(difference(&[1, 1, 5], &[1]), (vec![1, 5], vec![]));
        assert_eq!(difference(&[7], &[1, 9]), (vec![7], vec![1, 9]));
    }
}
