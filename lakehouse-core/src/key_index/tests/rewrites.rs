//! Rewrites, one thing at a time.
use super::*;

/// The rows of one file, in order and without some, to the begin of another.
fn moved_to(from: &str, to: &str, dropped: &[u32]) -> RowMap {
    let pieces = vec![Piece { first: 0, place: Place { output: 0, row: 0 } }];
    let map = FileMap::InOrder { dropped: dropped.iter().copied().collect(), pieces };
    RowMap { outputs: vec![to.into()], files: [(from.into(), map)].into() }
}

/// `None`: absent.
fn find(index: &KeyIndex, id: u64) -> Option<(String, u32)> {
    let mut found = vec![];
    index.lookup(&[key(id)], &mut found).unwrap();
    found[0].map(|at| (index.path_of(at.file).unwrap().to_owned(), at.row))
}

fn at(path: &str, row: u32) -> Option<(String, u32)> {
    Some((path.into(), row))
}

/// Rows 0 to 999 of file `a`, with their number as id, in one run.
fn thousand(dir: &Path) -> KeyIndex {
    let mut index = absent(dir);
    let file = index.add_file("a");
    index.add_pending(sorted((0..1_000).map(|id| entry(id, file, id as u32)).collect())).unwrap();
    index.apply(1, &[]).unwrap();
    index
}

#[test]
fn an_address_is_led_through_rewrites_until_its_file_dies() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = thousand(dir.path());
    let a = index.number_of("a").unwrap();
    index.follow_rewrite(2, &moved_to("a", "b", &[3, 4])).unwrap();
    assert_eq!((index.number_of("a"), index.path_of(a), index.files().is_live(a)), (None, None, false));
    let b = index.number_of("b").unwrap();
    // Row 7 of `b` is deleted, row 8 of it changed before the next rewrite.
    let c = index.add_file("c");
    index.add_pending(sorted(vec![Entry::new(key(9), None), entry(10, c, 0)])).unwrap();
    index.apply(3, &[]).unwrap();
    index.follow_rewrite(4, &moved_to("b", "d", &[7, 8])).unwrap();
    let expected = [at("d", 2), None, None, at("d", 3), None, at("c", 0), at("d", 7), at("d", 995)];
    for reopened in [false, true] {
        if reopened {
            drop(index);
            index = ready(dir.path());
        }
        assert_eq!([2, 3, 4, 5, 9, 10, 11, 999].map(|id| find(&index, id)), expected);
        assert_eq!((index.snapshot(), index.stats().moved), (Some(4), 2));
    }
    let d = index.number_of("d").unwrap();
    assert!(!index.files().is_live(b) && index.files().live().count() == 2);
    // A number of a file that moved says nothing.
    index.apply(5, &[a]).unwrap();
    assert_eq!(find(&index, 2), at("d", 2));
    index.apply(6, &[d]).unwrap();
    assert_eq!(index.scan().count(), 1);
    // The file comes back, its rows do not.
    index.add_file("a");
    index.apply(7, &[]).unwrap();
    assert_eq!((find(&index, 2), find(&index, 10)), (None, at("c", 0)));
}

#[test]
fn pending_entries_follow_a_rewrite_and_stay_pending() {
    for (count, spilled) in [(5, false), (60, true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut index = thousand(dir.path());
        let (a, pending) = (index.number_of("a").unwrap(), index.add_file("p"));
        index.add_pending(vec![entry(0, a, 20)]).unwrap();
        index.apply(2, &[]).unwrap();
        index
            .add_pending(sorted((1..count).map(|id| entry(id, if id == 2 { a } else { pending }, 30)).collect()))
            .unwrap();
        assert_eq!(!index.pending.runs.is_empty(), spilled);
        index.follow_rewrite(3, &moved_to("a", "b", &[0])).unwrap();
        let found = |index: &KeyIndex| [0, 1, 2, 500].map(|id| find(index, id));
        assert_eq!(found(&index), [at("b", 19), at("p", 30), at("b", 29), at("b", 499)]);
        // The index moves on without the pending entries, and forgets nothing that they need.
        drop(index);
        index = ready(dir.path());
        assert_eq!(found(&index), [at("b", 19), at("b", 0), at("b", 1), at("b", 499)]);
        let pending = index.add_file("p");
        let b = index.number_of("b").unwrap();
        index
            .add_pending(sorted((1..count).map(|id| entry(id, if id == 2 { b } else { pending }, 30)).collect()))
            .unwrap();
        index.follow_rewrite(4, &moved_to("b", "c", &[5])).unwrap();
        for round in 0..40 {
            assert_eq!(found(&index), [at("c", 18), at("p", 30), at("c", 29), at("c", 498)], "round {round}");
            index.add_pending(vec![entry(2_000 + round, pending, 0)]).unwrap();
            index.apply(5 + round as i64, &[]).unwrap();
        }
        index.follow_rewrite(99, &moved_to("c", "d", &[18])).unwrap();
        drop(index);
        assert_eq!(found(&ready(dir.path())), [None, at("p", 30), at("d", 28), at("d", 497)]);
    }
}

#[test]
fn rewrites_are_forgotten_and_do_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = thousand(dir.path());
    let (mut most, mut merged) = (0, 0);
    for step in 0..400 {
        let (from, to) = (format!("{step}"), format!("{}", step + 1));
        let from = if step == 0 { "a" } else { &from };
        index.follow_rewrite(step, &moved_to(from, &to, &[])).unwrap();
        assert_eq!(find(&index, 77), at(&to, 77));
        rest(&index);
        let moved = index.stats().moved;
        merged += u32::from(moved == 0);
        most = most.max(moved);
    }
    // No entry came, so the proportions of the runs asked for nothing.
    assert!(most == SMALL.moved.files && merged > 20, "{most} {merged}");
    index.apply(1_000, &[]).unwrap();
    assert!(index.files().moved().rewrites().len() <= SMALL.moved.files);
    drop(index);
    let mut index = ready(dir.path());
    assert!(index.stats().moved <= SMALL.moved.files);

    let file = index.add_file("last");
    for snapshot in 0..40 {
        let entries = (0..30).map(|id| entry(2_000 + snapshot as u64 * 30 + id, file, 0)).collect();
        index.add_pending(sorted(entries)).unwrap();
        index.apply(snapshot, &[]).unwrap();
        rest(&index);
    }
    index.apply(41, &[]).unwrap();
    assert!(index.files().moved().is_empty(), "a merge of everything was due by the proportions");
    assert_eq!((find(&index, 77), index.scan().count()), (at("400", 77), 2_200));
}

#[test]
fn a_rewrite_stays_known_to_a_merge_that_began_before_it() {
    for reopened in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut index = thousand(dir.path());
        rest(&index);
        let runs = index.shared.runs();
        let early = Job::begin(&index.shared, true);
        index.follow_rewrite(2, &moved_to("a", "b", &[1])).unwrap();
        merge_span(&index.shared, &runs, &early).unwrap();
        index.apply(3, &[]).unwrap();
        if reopened {
            drop(index);
            index = ready(dir.path());
        }
        // The new run has old addresses, though it came to stand after the rewrite.
        assert_eq!((index.shared.runs().len(), index.stats().moved), (1, 1));
        assert_eq!([0, 1, 2].map(|id| find(&index, id)), [at("b", 0), None, at("b", 1)]);

        let late = Job::begin(&index.shared, true);
        index.follow_rewrite(4, &moved_to("b", "c", &[0])).unwrap();
        merge_span(&index.shared, &index.shared.runs(), &late).unwrap();
        index.apply(5, &[]).unwrap();
        assert_eq!((index.stats().entries, index.stats().moved), (999, 1));
        assert_eq!([0, 1, 2].map(|id| find(&index, id)), [None, None, at("c", 0)]);
        merge_span(&index.shared, &index.shared.runs(), &Job::begin(&index.shared, true)).unwrap();
        index.apply(6, &[]).unwrap();
        assert_eq!((index.stats().entries, index.files().moved().rewrites().len()), (998, 0));
        assert_eq!(find(&index, 999), at("c", 997));
    }
}

#[test]
fn a_dropped_row_hides_older_entries_of_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = thousand(dir.path());
    let file = index.add_file("b");
    index.add_pending(sorted((0..50).map(|id| entry(id, file, id as u32)).collect())).unwrap();
    index.apply(2, &[]).unwrap();
    index.follow_rewrite(3, &moved_to("b", "c", &(0..50).collect::<Vec<_>>())).unwrap();
    let runs = index.shared.runs();
    assert_eq!(runs.len(), 2, "the younger one holds too little for a merge");
    merge_span(&index.shared, &runs[1..], &Job::begin(&index.shared, false)).unwrap();
    assert_eq!((find(&index, 7), find(&index, 50), index.scan().count()), (None, at("a", 50), 950));
}

#[test]
fn a_merge_of_young_runs_writes_new_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = thousand(dir.path());
    let a = index.number_of("a").unwrap();
    index.add_pending(sorted((0..30).map(|id| entry(id, a, 100 + id as u32)).collect())).unwrap();
    index.follow_rewrite(2, &moved_to("a", "b", &[0, 107])).unwrap();
    // Only the pending run needs the rewrite when this is merged.
    merge_span(&index.shared, &index.shared.runs(), &Job::begin(&index.shared, true)).unwrap();
    let b = index.number_of("b").unwrap();
    for part in 1..3 {
        index.add_pending(sorted((0..30).map(|id| entry(2_000 * part + id, b, 0)).collect())).unwrap();
    }
    assert_eq!((index.pending.runs.len(), index.stats().moved), (1, 0), "pending runs were merged");
    index.apply(3, &[]).unwrap();
    assert!(index.files().moved().is_empty());
    assert_eq!([6, 7, 8, 30].map(|id| find(&index, id)), [at("b", 105), None, at("b", 106), at("b", 29)]);
}

#[test]
fn young_entries_need_no_rewrite() {
    for in_manifest in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut index = absent(dir.path());
        let file = index.add_file("a");
        index.add_pending(sorted((0..9).map(|id| entry(id, file, id as u32)).collect())).unwrap();
        index.apply(1, &[]).unwrap();
        while in_manifest && !lock(&index.shared.journal).wants_manifest(SMALL.log) {
            index.apply(1, &[]).unwrap();
        }
        index.follow_rewrite(2, &moved_to("a", "b", &[4])).unwrap();
        drop(index);
        let index = ready(dir.path());
        assert!(index.files().moved().is_empty(), "there is no run");
        assert_eq!([3, 4, 5].map(|id| find(&index, id)), [at("b", 3), None, at("b", 4)]);
        assert_eq!(names(dir.path()).contains(&"log-2".into()), in_manifest);
    }
}

#[test]
fn a_torn_rewrite_leaves_the_state_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = thousand(dir.path());
    let file = index.add_file("b");
    index.add_pending(vec![entry(1, file, 5)]).unwrap();
    index.apply(2, &[]).unwrap();
    let before = std::fs::read(dir.path().join("log-1")).unwrap().len();
    let listed = FileMap::Listed((0..9).map(|row| Some(Place { output: 1, row: 8 - row })).collect());
    let mut map = moved_to("a", "c", &[2]);
    map.outputs.push("d".into());
    map.files.insert("b".into(), listed);
    index.follow_rewrite(3, &map).unwrap();
    drop(index);
    let whole = std::fs::read(dir.path().join("log-1")).unwrap();
    for end in before..=whole.len() {
        let copy = tempfile::tempdir().unwrap();
        names(dir.path()).iter().for_each(|name| {
            std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        });
        std::fs::write(copy.path().join("log-1"), &whole[..end]).unwrap();
        let index = ready(copy.path());
        let found = [0, 1, 2, 3].map(|id| find(&index, id));
        if end < whole.len() {
            assert_eq!((index.snapshot(), found), (Some(2), [at("a", 0), at("b", 5), at("a", 2), at("a", 3)]));
        } else {
            assert_eq!((index.snapshot(), found), (Some(3), [at("c", 0), at("d", 3), None, at("c", 2)]));
        }
    }
}

#[test]
fn what_cannot_be_followed_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = thousand(dir.path());
    index.add_file("p");
    let mut beyond = moved_to("a", "b", &[]);
    beyond.outputs.clear();
    for map in [moved_to("p", "b", &[]), beyond] {
        assert!(matches!(index.follow_rewrite(2, &map), Err(IndexError::NotFollowed(_))));
        assert_eq!((index.snapshot(), find(&index, 5), index.stats().moved), (Some(1), at("a", 5), 0));
    }
    index.clear().unwrap();
    index.follow_rewrite(3, &moved_to("a", "b", &[])).unwrap();
    drop(index);
    let index = ready(dir.path());
    assert_eq!(
        (index.snapshot(), index.files().live().map(|(_, path)| path).collect::<Vec<_>>()),
        (Some(3), vec!["b"])
    );
}

/// The record of a rewrite, changed but with a right checksum.
fn with_checksum(dir: &Path, mut record: Vec<u8>) -> Vec<u8> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&crc32fast::hash(&std::fs::read(dir.join("manifest")).unwrap()).to_le_bytes());
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    record[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
    record
}

#[test]
fn a_record_of_a_rewrite_that_is_none_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = thousand(dir.path());
    let listed = (0..20).map(|row| Some(Place { output: 1, row: 19 - row })).collect();
    let mut map = moved_to("a", "c", &[2, 900]);
    map.outputs.push("d".into());
    map.files.insert("b".into(), FileMap::Listed(listed));
    index.add_file("b");
    index.apply(2, &[]).unwrap();
    drop(index);
    // A new manifest, so that the rewrite is the first record.
    let mut index = ready(dir.path());
    let mut snapshot = 2;
    while !std::fs::read(log(dir.path())).unwrap().is_empty() {
        snapshot += 1;
        index.apply(snapshot, &[]).unwrap();
    }
    index.follow_rewrite(snapshot + 1, &map).unwrap();
    drop(index);
    let whole = std::fs::read(log(dir.path())).unwrap();
    assert_eq!(with_checksum(dir.path(), whole.clone()), whole);
    let mut outcomes = [0; 2];
    let mut random = fastrand::Rng::with_seed(6);
    for place in 8..whole.len() {
        let copy = tempfile::tempdir().unwrap();
        names(dir.path()).iter().for_each(|name| {
            std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        });
        let mut record = whole.clone();
        record[place] ^= 1 << random.u8(..8);
        std::fs::write(log(copy.path()), with_checksum(dir.path(), record)).unwrap();
        match open(copy.path()) {
            Opened::Ready(mut index) => {
                outcomes[0] += 1;
                assert!(index.scan().all(|live| live.is_ok()));
                index.follow_rewrite(9, &moved_to("c", "e", &[1])).unwrap();
            }
            Opened::Damaged { .. } => outcomes[1] += 1,
            Opened::Absent(_) => panic!("the manifest is there"),
        }
    }
    println!("other rewrite, damage: {outcomes:?}");
    assert!(outcomes.iter().all(|&count| count > 50), "{outcomes:?}");
}

fn log(dir: &Path) -> std::path::PathBuf {
    let names = names(dir);
    dir.join(names.iter().find(|name| name.starts_with("log-")).unwrap())
}

#[test]
fn lookups_are_right_while_rewrites_are_followed_and_runs_merged() {
    const ROWS: u32 = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { young: 100, fan: 2, smallest: 1_000, most_runs: 8, ..SMALL };
    let Opened::Absent(mut index) = KeyIndex::open_shaped(dir.path(), SETTINGS, shape).unwrap() else { panic!() };
    let mut random = fastrand::Rng::with_seed(3);
    let mut oracle: BTreeMap<KeyHash, (String, u32)> = BTreeMap::new();
    let mut files: Vec<String> = vec![];
    let mut merging = 0;
    for snapshot in 0..150u32 {
        let path = format!("data/{snapshot}");
        let file = index.add_file(&path);
        let from = snapshot * 700 % 17_000;
        let ids = (0..ROWS).map(|row| (u64::from(from + row), row));
        index.add_pending(sorted(ids.clone().map(|(id, row)| entry(id, file, row)).collect())).unwrap();
        index.apply(i64::from(snapshot), &[]).unwrap();
        ids.for_each(|(id, row)| drop(oracle.insert(key(id), (path.clone(), row))));
        files.push(path);
        merging += u32::from(lock(&index.shared.state).merging);
        if random.bool() {
            let mut map = RowMap { outputs: vec![format!("moved/{snapshot}")], ..RowMap::default() };
            let mut row = 0;
            for path in
                (0..3.min(files.len())).map(|_| files.swap_remove(random.usize(..files.len()))).collect::<Vec<_>>()
            {
                let dropped = (0..10).map(|_| random.u32(..ROWS)).collect();
                let pieces = vec![Piece { first: 0, place: Place { output: 0, row } }];
                map.files.insert(path, FileMap::InOrder { dropped, pieces });
                row += 10 * ROWS;
            }
            index.follow_rewrite(i64::from(snapshot), &map).unwrap();
            oracle = std::mem::take(&mut oracle)
                .into_iter()
                .filter_map(|(key, (path, row))| match map.files.get(&path) {
                    None => Some((key, (path, row))),
                    Some(file) => file.place(row).map(|place| (key, (map.outputs[0].clone(), place.row))),
                })
                .collect();
            files.extend(map.outputs);
        }
        let scanned = index.scan().map(|live| live.unwrap());
        let named = scanned.map(|(key, at)| (key, (index.path_of(at.file).unwrap().to_owned(), at.row)));
        assert!(named.eq(oracle.iter().map(|(key, place)| (*key, place.clone()))), "at {snapshot}");
    }
    assert!(merging > 10, "merges ran beside {merging} of 150 lookups");
}
