//! Tables without a key: rows are told apart by content and count (R55). Equal rows are interchangeable, so a batch only
//! changes how many there are: occurrences 0 … n−1 of a row exist, the last ones go, new ones come behind.

use std::collections::HashMap;

use super::{Mirror, index_problem};
use crate::batch::{KeyedChanges, Merged, Step};
use crate::error::Problem;
use crate::key_hash::hash_occurrence;
use crate::key_index::{Entry, KeyHash, RowAddress};

impl Mirror {
    pub(super) fn merge_occurrences(&self, keyed: &KeyedChanges) -> Result<Merged, Problem> {
        let groups: Vec<&[Step]> = keyed.steps.chunk_by(|a, b| a.key == b.key).collect();
        let rows: Vec<KeyHash> = groups.iter().map(|group| group[0].key).collect();
        let standing = self.count_occurrences(&rows)?;
        let mut occurrences: Vec<(KeyHash, Option<u32>)> = Vec::new();
        for (group, row) in groups.iter().zip(&rows) {
            let before = standing[row];
            let came: Vec<u32> = group.iter().filter(|step| step.comes()).map(|step| step.change()).collect();
            let went = (group.len() - came.len()) as u64;
            let after = (before + came.len() as u64).saturating_sub(went);
            let changes = came.iter().rev();
            let new = (before..after).zip(changes);
            occurrences.extend(new.map(|(n, &change)| (hash_occurrence(*row, n), Some(change))));
            occurrences.extend((after..before).map(|n| (hash_occurrence(*row, n), None)));
        }
        occurrences.sort_unstable_by_key(|(key, _)| *key);
        let (keys, last) = occurrences.into_iter().unzip();
        Ok(Merged { truncated: keyed.truncated, keys, last })
    }

    /// How often each row stands in the table: by doubling, then halving, so n equal rows cost O(log n) look-ups.
    fn count_occurrences(&self, rows: &[KeyHash]) -> Result<HashMap<KeyHash, u64>, Problem> {
        // For each row: at least `low` stand, fewer than or exactly `high` when known.
        let mut bounds: HashMap<KeyHash, (u64, Option<u64>)> = rows.iter().map(|row| (*row, (0, None))).collect();
        loop {
            let probe = |(low, high): (u64, Option<u64>)| match high {
                None => Some((low * 2).max(low + 1) - 1),
                Some(high) if low < high => Some(low + (high - low) / 2),
                Some(_) => None,
            };
            let mut probes: Vec<(KeyHash, KeyHash, u64)> = bounds
                .iter()
                .filter_map(|(row, bounds)| probe(*bounds).map(|n| (hash_occurrence(*row, n), *row, n)))
                .collect();
            if probes.is_empty() {
                return Ok(bounds.into_iter().map(|(row, (low, _))| (row, low)).collect());
            }
            probes.sort_unstable();
            let keys: Vec<KeyHash> = probes.iter().map(|(key, _, _)| *key).collect();
            let mut found = Vec::new();
            self.index.lookup(&keys, &mut found).map_err(|error| index_problem(&self.table, &error))?;
            for ((_, row, n), found) in probes.into_iter().zip(found) {
                let stands = found.is_some_and(|address| address.file >= self.open.valid_from.unwrap_or(0));
                let (low, high) = bounds.get_mut(&row).expect("every probe comes from a bound");
                if stands {
                    *low = n + 1;
                } else {
                    *high = Some(n);
                }
            }
        }
    }
}

impl Mirror {
    /// Index entries for rows that are added to the table as they are: content hash and row number in file `number`.
    pub(super) fn occurrence_entries(&self, rows: &[(KeyHash, u32)], number: u32) -> Result<Vec<Entry>, Problem> {
        let distinct: Vec<KeyHash> = rows.iter().map(|(row, _)| *row).collect();
        let mut next = self.count_occurrences(&distinct)?;
        let entry = |(row, place): &(KeyHash, u32)| {
            let n = next.get_mut(row).expect("every row was counted");
            *n += 1;
            Entry::new(hash_occurrence(*row, *n - 1), Some(RowAddress { file: number, row: *place }))
        };
        Ok(rows.iter().map(entry).collect())
    }
}
