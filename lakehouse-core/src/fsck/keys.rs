//! Rows by their keys: the digest of each commit, and that no key stands twice in a mirror. Blocking.

use std::collections::{BTreeMap, HashMap};

use iceberg::spec::{DataContentType, Schema, Struct};

use super::findings::{Check, CheckName, Findings, skipped};
use super::inventory::{FileFacts, Inventory, KeptSnapshot};
use super::{Role, guarded};
use crate::catalog::LoadedTable;
use crate::commit::properties;
use crate::error::Problem;
use crate::foreign::is_ours;
use crate::live::LiveFile;
use crate::mirror::read_key_hashes;
use crate::read::{Projection, Rows, deleted_rows};
use crate::storage::Storage;

/// Keys of which half the hash is held at once: 8 bytes each.
const KEYS_AT_ONCE: u64 = 32_000_000;
/// Halves that stand twice and are looked at in full.
const SUSPECTS: usize = 1_000;

const NO_KEY: &str = "the table has no key: equal rows are told apart by counting them";

/// The key's columns, in the order in which hashes are made of them; `None` for a table without a key.
fn key_of(schema: &Schema) -> Result<Option<Projection>, Problem> {
    let key: Vec<i32> = schema.identifier_field_ids().collect();
    let fields = schema.as_struct().fields().iter().map(|field| field.id);
    let ids: Vec<i32> = fields.filter(|id| key.contains(id)).collect();
    if ids.is_empty() { Ok(None) } else { Projection::of(schema, &ids).map(Some) }
}

/// `cdc.digest` of each kept commit is the sum of the key hashes of all rows in the data files that it added.
pub(super) fn digest(storage: &Storage, table: &LoadedTable, role: Role, inventory: &Inventory) -> Check {
    match role {
        Role::Mirror => {}
        Role::History | Role::Quarantine | Role::Control => {
            return skipped(CheckName::Digest, "only mirrors have digests");
        }
        Role::Foreign => return skipped(CheckName::Digest, "no pipeline writes this table"),
    }
    if table.metadata.current_schema().identifier_field_ids().len() == 0 {
        return skipped(CheckName::Digest, NO_KEY);
    }
    let mut findings = Findings::new(CheckName::Digest);
    let mut right = 0;
    for kept in inventory.snapshots.iter().filter(|kept| is_ours(&kept.snapshot)) {
        let id = kept.snapshot.snapshot_id();
        let Some(said) = kept.snapshot.summary().additional_properties.get(properties::DIGEST) else {
            continue;
        };
        match sum_of_added(storage, table, inventory, kept) {
            Err(why) => findings.note(format!("snapshot {id} is not checked: {why}")),
            Ok(sum) if u128::from_str_radix(said, 16) == Ok(sum) => right += 1,
            Ok(sum) => findings.fail(format!("snapshot {id} says {said}, its rows come to {sum:032x}")),
        }
    }
    findings.check(format!("{right} snapshots recomputed"))
}

fn sum_of_added(
    storage: &Storage,
    table: &LoadedTable,
    inventory: &Inventory,
    kept: &KeptSnapshot,
) -> Result<u128, String> {
    let schema = kept.snapshot.schema(&table.metadata).map_err(|error| error.to_string())?;
    let key = key_of(&schema).map_err(|problem| problem.to_string())?.ok_or("it had no key")?;
    let added = inventory.added_in(kept).ok_or("not all of its manifests can be read")?;
    let mut sum = 0u128;
    for file in added.map(|number| inventory.file(number)).filter(|file| file.content == DataContentType::Data) {
        let read = guarded(|| {
            read_key_hashes(storage, &file.path, &key, Rows::Except(Default::default()), |keys, _| {
                sum = keys.iter().fold(sum, |sum, key| sum.wrapping_add(key.0));
                Ok(())
            })
        });
        read.map_err(|why| format!("{}: {why}", file.path))?;
    }
    Ok(sum)
}

/// No key stands twice among the live rows of the head. Half of each hash is compared, as many rows at a time as memory
/// allows; what is equal there is looked at in full.
pub(super) fn unique(storage: &Storage, table: &LoadedTable, role: Role, inventory: &Inventory) -> Check {
    if role != Role::Mirror {
        return skipped(CheckName::Keys, "only mirrors have keys");
    }
    let mut findings = Findings::new(CheckName::Keys);
    let key = match key_of(table.metadata.current_schema()) {
        Ok(Some(key)) => key,
        Ok(None) => return skipped(CheckName::Keys, NO_KEY),
        Err(problem) => {
            findings.fail(problem.to_string());
            return findings.check("");
        }
    };
    let Some(head) = inventory.head(table) else {
        return findings.check("no rows");
    };
    let Some(live) = live_files(inventory, head) else {
        findings.note("not all manifests of the head can be read");
        return findings.check("not checked");
    };
    let scan = Scan { storage, key, live };
    let rows: u64 = scan.live.values().map(|(file, _)| file.records).sum();
    let parts = rows.div_ceil(KEYS_AT_ONCE).max(1);
    let mut suspects: HashMap<u64, ()> = HashMap::new();
    let mut standing = 0u64;
    for part in 0..parts {
        let mut seen: Vec<u64> = Vec::new();
        scan.each(part == 0, &mut findings, |key, _, _| {
            let (high, low) = halves(key);
            if low % parts == part {
                seen.push(high);
            }
        });
        standing += seen.len() as u64;
        seen.sort_unstable();
        let twice = seen.chunk_by(|a, b| a == b).filter(|group| group.len() > 1).map(|group| (group[0], ()));
        suspects.extend(twice.take(SUSPECTS.saturating_sub(suspects.len())));
    }
    if !suspects.is_empty() {
        scan.name_doubled(&suspects, &mut findings);
    }
    findings.check(format!("{standing} live rows"))
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
fn halves(key: u128) -> (u64, u64) {
    ((key >> 64) as u64, key as u64)
}

/// The live data files of the head by path, each with the delete files that apply to it.
type LiveData<'a> = BTreeMap<&'a str, (&'a FileFacts, LiveFile)>;

struct Scan<'a> {
    storage: &'a Storage,
    key: Projection,
    live: LiveData<'a>,
}

impl Scan<'_> {
    /// All live rows: key hash, path, position. A file that cannot be read is noted once.
    fn each(&self, first: bool, findings: &mut Findings, mut take: impl FnMut(u128, &str, u32)) {
        for (path, (_, file)) in &self.live {
            let read = guarded(|| {
                let rows = Rows::Except(deleted_rows(self.storage, path, file)?);
                read_key_hashes(self.storage, path, &self.key, rows, |keys, positions| {
                    keys.into_iter().zip(positions).for_each(|(key, position)| take(key.0, path, position));
                    Ok(())
                })
            });
            if let (Err(why), true) = (read, first) {
                findings.note(format!("{path} is not checked: {why}"));
            }
        }
    }

    fn name_doubled(&self, suspects: &HashMap<u64, ()>, findings: &mut Findings) {
        let mut places: BTreeMap<u128, (u64, String)> = BTreeMap::new();
        self.each(false, findings, |key, path, position| {
            if suspects.contains_key(&halves(key).0) {
                let (count, first) = places.entry(key).or_default();
                *count += 1;
                if *count <= 2 {
                    let comma = if first.is_empty() { "" } else { ", " };
                    *first += &format!("{comma}row {position} of {path}");
                }
            }
        });
        for (key, (count, places)) in places.into_iter().filter(|(_, (count, _))| *count > 1) {
            findings.fail(format!("key {key:032x} stands {count} times: {places}"));
        }
    }
}

fn live_files<'a>(inventory: &'a Inventory, head: &KeptSnapshot) -> Option<LiveData<'a>> {
    let mut data = BTreeMap::new();
    let mut deletes = Vec::new();
    for number in inventory.live_in(head)? {
        let file = inventory.file(number);
        match file.content {
            DataContentType::Data => {
                let live = LiveFile {
                    spec_id: 0,
                    partition: Struct::empty(),
                    sequence_number: file.sequence_number,
                    records: file.records,
                    bytes: file.bytes,
                    deletes: Vec::new(),
                    equality: None,
                };
                data.insert(&*file.path, (file, live));
            }
            DataContentType::PositionDeletes => deletes.push(file),
            DataContentType::EqualityDeletes => {}
        }
    }
    for delete in deletes {
        let path = delete.path.to_string();
        let facts = delete.delete.as_ref();
        let bounded = facts.and_then(|facts| facts.paths.as_ref()).filter(|(lower, upper)| lower == upper);
        let alone = facts.and_then(|facts| facts.referenced.as_ref()).or(bounded.map(|(path, _)| path));
        match alone {
            Some(alone) => {
                if let Some((_, live)) = data.get_mut(alone.as_str()) {
                    live.deletes.push(path);
                }
            }
            // It may name any file of its partition.
            None => data.values_mut().filter(|(file, _)| file.placement == delete.placement).for_each(|(_, live)| {
                live.deletes.push(path.clone());
            }),
        }
    }
    Some(data)
}
