//! Small bounds make every path run with few entries; the oracle is a plain map. What is special about rewrites is in
//! `rewrites.rs`; that they go together with everything else is shown here.
mod rewrites;

use super::*;
use crate::row_map::{FileMap, Piece, Place, RowMap};
use merge::{due, merge_span};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;

const SMALL: Shape = Shape {
    young: 24,
    log: 3_000,
    fan: 3,
    smallest: 32,
    young_share: 4,
    most_runs: 16,
    moved: Weight { files: 12, bytes: 1 << 20 },
};
const SETTINGS: Settings = Settings { memory: 1 << 20, sync: false };

fn key(id: u64) -> KeyHash {
    KeyHash(xxhash_rust::xxh3::xxh3_128(&id.to_le_bytes()))
}

fn entry(id: u64, file: u32, row: u32) -> Entry {
    Entry::new(key(id), Some(RowAddress { file, row }))
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    sort_entries(&mut entries);
    entries
}

fn open(dir: &Path) -> Opened {
    KeyIndex::open_shaped(dir, SETTINGS, SMALL).unwrap()
}

fn ready(dir: &Path) -> KeyIndex {
    match open(dir) {
        Opened::Ready(index) => index,
        Opened::Absent(_) => panic!("absent"),
        Opened::Damaged { reason, .. } => panic!("damaged: {reason}"),
    }
}

fn absent(dir: &Path) -> KeyIndex {
    let Opened::Absent(index) = open(dir) else { panic!("not absent") };
    index
}

fn rest(index: &KeyIndex) {
    while lock(&index.shared.state).merging {
        std::thread::yield_now();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Newest entry per key, by id; files by path, because numbers that were never applied may come again after a restart.
#[derive(Clone, Default, PartialEq, Debug)]
struct Oracle {
    entries: BTreeMap<u64, Option<(String, u32)>>,
    dead: Vec<String>,
}

impl Oracle {
    fn live(&self, id: u64) -> Option<(&str, u32)> {
        let (path, row) = self.entries.get(&id)?.as_ref()?;
        (!self.dead.contains(path)).then_some((path, *row))
    }

    /// Replaced files are live, so what is dead stays dead.
    fn follow(&mut self, map: &RowMap) {
        for entry in self.entries.values_mut() {
            let Some(file) = entry.as_ref().and_then(|(path, _)| map.files.get(path)) else { continue };
            let place = file.place(entry.as_ref().expect("it has a file").1);
            *entry = place.map(|place| (map.outputs[place.output as usize].clone(), place.row));
        }
    }

    /// By lookups of all ids below `ids`, whole and one by one, and by a scan. `Err`: damage was noticed.
    fn compare(&self, index: &KeyIndex, ids: u64) -> Result<()> {
        let mut by_key: Vec<(KeyHash, u64)> = (0..ids).map(|id| (key(id), id)).collect();
        by_key.sort();
        let keys: Vec<_> = by_key.iter().map(|(key, _)| *key).collect();
        let mut found = vec![];
        index.lookup(&keys, &mut found)?;
        let name = |address: RowAddress| (index.path_of(address.file).expect("found in a live file"), address.row);
        let mut scanned = index.scan();
        for (&(key, id), &address) in by_key.iter().zip(&found) {
            assert_eq!(address.map(name), self.live(id), "id {id}");
            if let Some(address) = address {
                assert_eq!(scanned.next().expect("the scan ends early")?, (key, address));
            }
        }
        assert!(scanned.next().is_none());
        for i in (0..keys.len()).step_by(keys.len() / 7 + 1) {
            let mut one = vec![];
            index.lookup(&keys[i..=i], &mut one)?;
            assert_eq!(one, found[i..=i]);
        }
        Ok(())
    }
}

/// A random writer and what should have come of it.
struct Writer {
    random: fastrand::Rng,
    ids: u64,
    applied: Oracle,
    pending: Oracle,
    live: Vec<String>,
    pending_files: Vec<String>,
    steps: u32,
    /// Oracle at each snapshot.
    history: BTreeMap<i64, Oracle>,
}

impl Writer {
    fn new(seed: u64, ids: u64) -> Self {
        let empty = || Oracle::default();
        let random = fastrand::Rng::with_seed(seed);
        let (live, pending_files, history) = (vec![], vec![], BTreeMap::new());
        Self { random, ids, applied: empty(), pending: empty(), live, pending_files, steps: 0, history }
    }

    fn add_file(&mut self, index: &mut KeyIndex) {
        self.steps += 1;
        let path = format!("data/{}.parquet", self.steps);
        let number = index.add_file(&path);
        assert_eq!((index.number_of(&path), index.path_of(number)), (Some(number), Some(&*path)));
        self.pending_files.push(path);
    }

    fn add_pending(&mut self, index: &mut KeyIndex) -> Result<()> {
        if self.pending_files.is_empty() || self.random.u8(..3) == 0 {
            self.add_file(index);
        }
        let most = [2, 2, 30, 90][self.random.usize(..4)];
        let mut ids: Vec<u64> = (0..self.random.usize(..=most)).map(|_| self.random.u64(..self.ids)).collect();
        ids.sort();
        ids.dedup();
        let mut entries = vec![];
        for (id, row) in ids.into_iter().zip(0..) {
            let known = !self.live.is_empty() && self.random.u8(..6) == 0;
            let paths = if known { &self.live } else { &self.pending_files };
            let path = &paths[self.random.usize(..paths.len())];
            let address = (self.random.u8(..5) > 0).then(|| (path.clone(), row));
            let file = |path: &str| index.number_of(path).unwrap();
            let packed = address.as_ref().map(|(path, row)| RowAddress { file: file(path), row: *row });
            entries.push(Entry::new(key(id), packed));
            self.pending.entries.insert(id, address);
        }
        index.add_pending(sorted(entries))
    }

    fn apply(&mut self, index: &mut KeyIndex) -> Result<()> {
        let mut dead = vec![];
        if self.random.u8(..4) == 0 {
            for _ in 0..self.random.usize(..3).min(self.live.len()) {
                let path = self.live.swap_remove(self.random.usize(..self.live.len()));
                dead.push(index.number_of(&path).unwrap());
                self.pending.dead.push(path);
            }
        }
        let snapshot = self.random.i64(..);
        self.history.insert(snapshot, self.pending.clone());
        index.apply(snapshot, &dead)?;
        assert_eq!(index.snapshot(), Some(snapshot));
        self.live.append(&mut self.pending_files);
        self.applied = self.pending.clone();
        assert!(dead.iter().all(|&number| index.path_of(number).is_none()));
        Ok(())
    }

    /// Some live files, each whole or in pieces, into some outputs, in order or shuffled.
    fn follow_rewrite(&mut self, index: &mut KeyIndex) -> Result<()> {
        let random = &mut self.random;
        let count = random.usize(..5).min(self.live.len());
        let replaced: Vec<String> =
            (0..count).map(|_| self.live.swap_remove(random.usize(..self.live.len()))).collect();
        self.steps += 1;
        let mut map = RowMap::default();
        map.outputs.extend((0..random.u32(1..4)).map(|output| format!("data/{}-{output}.parquet", self.steps)));
        if random.u8(..4) == 0 {
            // One that is replaced as well, one that is known.
            map.outputs.extend(replaced.first().cloned());
            map.outputs.extend(self.live.first().cloned());
        }
        for path in replaced.iter().map(String::as_str).chain(["data/unknown.parquet"]) {
            map.files.insert(path.to_owned(), file_map(map.outputs.len() as u32, random));
        }
        let snapshot = random.i64(..);
        self.applied.follow(&map);
        self.history.insert(snapshot, self.applied.clone());
        index.follow_rewrite(snapshot, &map)?;
        assert_eq!(index.snapshot(), Some(snapshot));
        self.pending.follow(&map);
        let came = map.outputs.iter().filter(|path| !self.live.contains(path)).cloned().collect::<Vec<_>>();
        self.live.extend(came);
        let number = |path: &str| index.number_of(path);
        assert!(map.outputs.iter().all(|path| number(path).is_some()));
        assert!(replaced.iter().all(|path| number(path).is_none() || map.outputs.contains(path)));
        assert_eq!(number("data/unknown.parquet"), None);
        Ok(())
    }

    fn forget_pending(&mut self) {
        self.pending = self.applied.clone();
        self.pending_files.clear();
    }
}

/// Of 90 rows, into outputs that other files go to as well.
fn file_map(outputs: u32, random: &mut fastrand::Rng) -> FileMap {
    let dropped: RoaringBitmap = {
        let every = random.u32(1..8);
        (0..90).filter(|_| random.u32(..every) == 0 && every < 7).collect()
    };
    if random.bool() {
        let piece = |first| Piece { first, place: Place { output: random.u32(..outputs), row: random.u32(..500) } };
        let pieces = [0, 13, 14, 50].into_iter().filter(|_| dropped.len() < 90).map(piece).collect();
        return FileMap::InOrder { dropped, pieces };
    }
    let mut rows: Vec<u32> = (0..90).collect();
    random.shuffle(&mut rows);
    let mut place = |row| Place { output: random.u32(..outputs), row };
    FileMap::Listed(rows.into_iter().map(|row| (!dropped.contains(row)).then(|| place(row))).collect())
}

fn steps_agree_with_a_map(seed: u64, steps: u32, ids: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    let mut writer = Writer::new(seed, ids);
    for _ in 0..steps {
        match writer.random.u8(..23) {
            0..9 => writer.add_pending(&mut index).unwrap(),
            9..16 => writer.apply(&mut index).unwrap(),
            20.. => writer.follow_rewrite(&mut index).unwrap(),
            16 => writer.add_file(&mut index),
            17 => {
                index.discard_pending();
                writer.forget_pending();
            }
            18 => rest(&index),
            _ => {
                let snapshot = index.snapshot();
                drop(index);
                index = if snapshot.is_some() { ready(dir.path()) } else { absent(dir.path()) };
                assert_eq!(index.snapshot(), snapshot);
                writer.forget_pending();
            }
        }
        writer.pending.compare(&index, ids).unwrap();
        assert!(lens(&index.shared.runs()).len() <= SMALL.most_runs + 2);
    }
}

#[test]
fn random_steps_agree_with_a_map() {
    for seed in 0..30 {
        println!("seed {seed}");
        steps_agree_with_a_map(seed, 200, [60, 400, 3_000][seed as usize % 3]);
    }
}

#[test]
fn damage_is_noticed_or_does_not_matter() {
    let mut random = fastrand::Rng::with_seed(5);
    let mut outcomes = [0; 3];
    for seed in 0..25 {
        let dir = tempfile::tempdir().unwrap();
        let mut index = absent(dir.path());
        let mut writer = Writer::new(seed, 300);
        for _ in 0..random.u32(1..40) {
            writer.add_pending(&mut index).unwrap();
            if random.u8(..4) == 0 {
                writer.follow_rewrite(&mut index).unwrap();
            }
            writer.apply(&mut index).unwrap();
        }
        if random.bool() {
            writer.follow_rewrite(&mut index).unwrap();
        }
        rest(&index);
        drop(index);
        for name in names(dir.path()) {
            let path = dir.path().join(&name);
            let whole = std::fs::read(&path).unwrap();
            for _ in 0..12 {
                let copy = tempfile::tempdir().unwrap();
                for name in names(dir.path()) {
                    std::fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
                }
                std::fs::write(copy.path().join(&name), damage(&whole, &mut random)).unwrap();
                outcomes[damaged_index_is_right(copy.path(), &writer, &mut random)] += 1;
            }
        }
    }
    println!("damaged at opening, at use, right answers: {outcomes:?}");
    assert!(outcomes.iter().all(|&count| count > 50), "{outcomes:?}");
}

fn damage(whole: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    match random.u8(..4) {
        _ if bytes.is_empty() => bytes.push(random.u8(..)),
        0 => bytes.truncate(random.usize(..bytes.len())),
        1 => {
            let from = random.usize(..bytes.len());
            let to = bytes.len().min(from + random.usize(1..5_000));
            bytes[from..to].fill(0);
        }
        kind => {
            // Directories, footers and checksums stand at the end.
            let begin = if kind == 2 { bytes.len().saturating_sub(80) } else { 0 };
            let at = random.usize(begin..bytes.len());
            bytes[at] ^= 1 << random.u8(..8);
        }
    }
    bytes
}

/// 0: damage seen when opened, 1: when used, 2: all answers are those of an applied snapshot.
fn damaged_index_is_right(dir: &Path, writer: &Writer, random: &mut fastrand::Rng) -> usize {
    let mut index = match open(dir) {
        Opened::Ready(index) => index,
        Opened::Absent(_) => panic!("the manifest is there"),
        Opened::Damaged { index, .. } => {
            assert_eq!((index.snapshot(), names(dir)), (None, vec!["lock".into()]));
            return 0;
        }
    };
    let oracle = &writer.history[&index.snapshot().unwrap()];
    let mut used = || {
        oracle.compare(&index, writer.ids)?;
        // Merges must not launder damage either.
        let mut after = oracle.clone();
        let file = index.add_file("after");
        for round in 0..40 {
            let id = random.u64(..writer.ids);
            after.entries.insert(id, Some(("after".into(), round)));
            index.add_pending(vec![entry(id, file, round)])?;
            index.apply(i64::from(round), &[])?;
        }
        rest(&index);
        index.apply(0, &[])?;
        after.compare(&index, writer.ids)
    };
    match used() {
        Ok(()) => 2,
        Err(IndexError::Damaged(_)) => {
            index.clear().unwrap();
            assert_eq!((index.snapshot(), names(dir)), (None, vec!["lock".into()]));
            1
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_damaged_run_stops_its_merge_and_nothing_else_until_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    let file = index.add_file("a");
    index.add_pending(sorted((0..1_000).map(|id| entry(id, file, id as u32)).collect())).unwrap();
    index.apply(1, &[]).unwrap();
    let run = names(dir.path()).into_iter().find(|name| name.starts_with("run-")).unwrap();
    let path = dir.path().join(run);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[12_000] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let failed = (2..100).find_map(|snapshot| {
        let from = snapshot as u64 * 50;
        let entries = sorted((from..from + 50).map(|id| entry(id, file, 0)).collect());
        index.add_pending(entries).and_then(|()| index.apply(snapshot, &[])).err()
    });
    assert!(matches!(failed, Some(IndexError::Damaged(_))), "{failed:?}");
    index.clear().unwrap();
    let file = index.add_file("b");
    assert!(file > 0, "numbers are not used twice");
    index.add_pending(vec![entry(1, file, 7)]).unwrap();
    index.apply(5, &[]).unwrap();
    drop(index);
    assert_eq!(ready(dir.path()).snapshot(), Some(5));
}

#[test]
fn an_unknown_format_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    index.apply(1, &[]).unwrap();
    drop(index);
    let path = dir.path().join("manifest");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] += 1;
    let content = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..content]).to_le_bytes();
    bytes[content..].copy_from_slice(&crc);
    std::fs::write(&path, bytes).unwrap();
    let Opened::Damaged { reason, index } = open(dir.path()) else { panic!("opened") };
    assert!(reason.contains("unknown format"), "{reason}");
    assert_eq!(index.snapshot(), None);
}

#[test]
fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let index = absent(dir.path());
    assert!(matches!(KeyIndex::open(dir.path(), SETTINGS), Err(IndexError::InUse)));
    drop(index);
    absent(dir.path());
}

#[test]
fn small_batches_go_to_the_log_alone() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { sync: true, ..SETTINGS };
    let Opened::Absent(mut index) = KeyIndex::open(dir.path(), settings).unwrap() else { panic!("not absent") };
    for snapshot in 0..300 {
        let file = index.add_file(&format!("{snapshot}"));
        index.add_pending(vec![entry(snapshot % 200, file, 3)]).unwrap();
        index.apply(snapshot as i64, &[]).unwrap();
    }
    assert_eq!(names(dir.path()), ["lock", "log-1", "manifest"]);
    drop(index);
    let Opened::Ready(index) = KeyIndex::open(dir.path(), settings).unwrap() else { panic!("not ready") };
    assert_eq!((index.snapshot(), index.stats().entries, index.files().live().count()), (Some(299), 200, 300));
    let mut found = vec![];
    index.lookup(&[key(1)], &mut found).unwrap();
    assert_eq!(found, [Some(RowAddress { file: 201, row: 3 })]);
}

#[test]
fn an_unfinished_record_is_cut_off_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    let file = index.add_file("a");
    for snapshot in 1..=3 {
        index.add_pending(vec![entry(snapshot, file, 0)]).unwrap();
        index.apply(snapshot as i64, &[]).unwrap();
    }
    drop(index);
    let log = dir.path().join("log-1");
    let bytes = std::fs::read(&log).unwrap();
    std::fs::write(&log, &bytes[..bytes.len() - 1]).unwrap();
    let mut index = ready(dir.path());
    assert_eq!(index.snapshot(), Some(2));
    index.add_pending(vec![entry(4, file, 0)]).unwrap();
    index.apply(4, &[]).unwrap();
    drop(index);
    let index = ready(dir.path());
    let ids: Vec<_> = index.scan().map(|live| live.unwrap().0).collect();
    let mut expected = [key(1), key(2), key(4)];
    expected.sort();
    assert_eq!((index.snapshot(), ids), (Some(4), expected.to_vec()));
}

#[test]
fn lookups_are_right_while_runs_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { young: 100, fan: 2, smallest: 1_000, most_runs: 8, ..SMALL };
    let Opened::Absent(mut index) = KeyIndex::open_shaped(dir.path(), SETTINGS, shape).unwrap() else { panic!() };
    let mut keys: Vec<(KeyHash, u64)> = (0..20_000).map(|id| (key(id), id)).collect();
    keys.sort();
    let hashes: Vec<_> = keys.iter().map(|(key, _)| *key).collect();
    let mut last = vec![None; keys.len()];
    let mut merging = 0;
    for snapshot in 0..120u64 {
        let file = index.add_file(&format!("{snapshot}"));
        let from = snapshot * 700 % 17_000;
        index.add_pending(sorted((from..from + 3_000).map(|id| entry(id, file, id as u32)).collect())).unwrap();
        index.apply(snapshot as i64, &[]).unwrap();
        assert!(index.stats().runs <= shape.most_runs + 1);
        (from..from + 3_000).for_each(|id| last[id as usize] = Some(RowAddress { file, row: id as u32 }));
        merging += u32::from(lock(&index.shared.state).merging);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut found = vec![];
                    index.lookup(&hashes, &mut found).unwrap();
                    assert!(keys.iter().zip(found).all(|((_, id), found)| found == last[*id as usize]));
                });
            }
        });
    }
    assert!(merging > 10, "merges ran beside {merging} of 120 lookups");
    let live = index.scan().inspect(|live| assert!(live.is_ok())).count();
    assert_eq!(live, last.iter().flatten().count());
}

#[test]
fn two_threads_load_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    let file = index.add_file("a");
    let load = index.bulk_load();
    // 600 chunks of 50, more than are merged at a time; each chunk repeats ten keys of its neighbour.
    std::thread::scope(|scope| {
        for half in 0..2u64 {
            let load = &load;
            scope.spawn(move || {
                for chunk in (0..600).filter(|chunk| chunk % 2 == half) {
                    let ids = chunk * 40..chunk * 40 + 50;
                    load.add(ids.rev().map(|id| entry(id, file, id as u32)).collect()).unwrap();
                }
            });
        }
    });
    let loaded = load.finish(&mut index, 9).unwrap();
    assert_eq!(loaded, Loaded { entries: 24_010, duplicates: 599 * 10 });
    drop(index);
    let index = ready(dir.path());
    assert_eq!((index.snapshot(), index.stats().runs, index.stats().entries), (Some(9), 1, 24_010));
    assert!(
        index.scan().all(|live| live.is_ok_and(|(key_hash, at)| key_hash == key(at.row.into()) && at.file == file))
    );
}

#[test]
fn the_last_added_of_equal_keys_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    let (file, other) = (index.add_file("a"), u32::MAX - 1);
    let load = index.bulk_load();
    for chunk in 0..700 {
        load.add(vec![entry(1, file, 2 * chunk), entry(2, other, 0), entry(1, file, 2 * chunk + 1)]).unwrap();
    }
    assert_eq!(load.finish(&mut index, 1).unwrap(), Loaded { entries: 1, duplicates: 700 * 3 - 2 });
    let mut found = vec![];
    index.lookup(&[key(1)], &mut found).unwrap();
    assert_eq!(found, [Some(RowAddress { file, row: 1_399 })]);
}

#[test]
fn a_load_is_whole_or_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    let file = index.add_file("a");
    let load = index.bulk_load();
    load.add(vec![entry(1, file, 1)]).unwrap();
    drop(load);
    assert_eq!(names(dir.path()), ["lock"]);

    let load = index.bulk_load();
    load.add(vec![entry(1, file, 1)]).unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert!(load.add(vec![entry(2, file, 1)]).is_err());
    assert!(matches!(load.finish(&mut index, 1), Err(IndexError::Incomplete)));
    index.clear().unwrap();

    let file = index.add_file("a");
    index.add_pending(vec![entry(1, file, 1)]).unwrap();
    index.apply(1, &[]).unwrap();
    let load = index.bulk_load();
    load.add(vec![entry(2, file, 1)]).unwrap();
    assert!(matches!(load.finish(&mut index, 2), Err(IndexError::NotEmpty)));
    assert_eq!((index.snapshot(), names(dir.path())), (Some(1), vec!["log-1".into(), "manifest".into()]));
}

#[test]
fn a_path_that_comes_back_gets_a_new_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    let old = index.add_file("a");
    index.add_pending(sorted(vec![entry(1, old, 1), entry(2, old, 2)])).unwrap();
    index.apply(1, &[]).unwrap();
    let new = index.add_file("a");
    assert_ne!(old, new);
    index.add_pending(vec![entry(1, new, 1)]).unwrap();
    index.apply(2, &[old]).unwrap();
    drop(index);
    let mut index = ready(dir.path());
    assert_eq!((index.number_of("a"), index.path_of(old), index.path_of(new)), (Some(new), None, Some("a")));
    assert_eq!(index.files().live().collect::<Vec<_>>(), [(new, "a")]);
    let found: Vec<_> = index.scan().map(|live| live.unwrap()).collect();
    assert_eq!(found, [(key(1), RowAddress { file: new, row: 1 })]);
    assert!(index.add_file("b") > new);
}

#[test]
fn a_discarded_file_is_unknown_and_its_number_is_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    index.add_file("a");
    index.apply(1, &[]).unwrap();
    let number = index.add_file("b");
    index.discard_pending();
    assert_eq!((index.number_of("b"), index.path_of(number), index.files().is_live(number)), (None, None, false));
    assert!(index.add_file("b") > number);
    index.apply(2, &[]).unwrap();
    drop(index);
    assert_eq!(ready(dir.path()).files().live().count(), 2);
}

#[test]
fn a_pending_batch_of_many_parts_stays_few_runs_and_can_be_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = absent(dir.path());
    let file = index.add_file("a");
    index.add_pending(sorted((0..20).map(|id| entry(id, file, 0)).collect())).unwrap();
    index.apply(1, &[]).unwrap();
    for part in 1..200 {
        index
            .add_pending(sorted((part * 10..part * 10 + 40).map(|id| entry(id, file, part as u32)).collect()))
            .unwrap();
    }
    let stats = index.stats();
    assert!(stats.runs < 15 && stats.pending > 2_000, "{stats:?}");
    assert_eq!(index.scan().count(), 2_030);
    index.discard_pending();
    assert_eq!((index.scan().count(), index.stats().pending), (20, 0));
    assert_eq!(names(dir.path()), ["lock", "log-1", "manifest"]);
}

fn check_due(lens: &[u64], expected: Option<Range>) {
    assert_eq!(due(lens, &SHAPE), expected, "{lens:?}");
}

type Range = std::ops::Range<usize>;

#[test]
fn runs_are_merged_by_class_and_all_when_the_young_weigh_enough() {
    const K: u64 = 1_000;
    check_due(&[], None);
    check_due(&[5 * K], None);
    check_due(&[100 * K, 10 * K, 10 * K], None);
    check_due(&[100 * K, 20 * K, 10 * K], Some(0..3));
    check_due(&[1_000 * K, 10 * K, 10 * K, 10 * K], None);
    check_due(&[1_000 * K, 10 * K, 10 * K, 10 * K, 9 * K], Some(1..5));
    check_due(&[9_000 * K, 100 * K, 10 * K, 10 * K, 10 * K], None);
    check_due(&[9_000 * K, 100 * K, 10 * K, 10 * K, 10 * K, 10 * K], Some(2..6));
    check_due(&[9_000 * K, 100 * K, 100 * K, 100 * K, 100 * K, 10 * K], Some(1..5));
    // Small runs below a larger one count with it.
    check_due(&[9_000 * K, 10 * K, 10 * K, 10 * K, 100 * K], Some(1..5));
}
