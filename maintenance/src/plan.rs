//! Which files are worth rewriting, and together with which. Pure.
//!
//! Small files are merged by size class, each class by a factor of [`Targets::fan`]: so a row is rewritten once per class
//! however often small files come, and a partition of n files has O(log n) small ones. A file that has lost many of its
//! rows is rewritten whatever its size. Files of one partition stay in the order in which they were written.
//!
//! One deleted row in a file makes engines read all of it in a slower way, and each further one costs them as much as 15 to
//! 50 rows that are there (`deploy/bench churn`): far fewer than a rewrite is worth by itself slow a table down. So deleted
//! rows are kept few for readers' sake, in the dirtiest files first and within a budget of its own; a table and a file
//! that nobody changes any more are left clean; and a partition of next to nothing is one clean file after each run.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::view::FileView;

/// The order of rows in the files that compaction writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// That of the files that are replaced: the cheapest, and the one under which deletes are forwarded without a list.
    #[default]
    AsWritten,
    /// By these columns.
    Sorted(Vec<String>),
    /// Along a Z-curve over these columns, for filters on any of them.
    ZOrder(Vec<String>),
}

/// What compaction aims at.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// Size of a data file.
    pub file_bytes: u64,
    /// Small files of one size class before they are merged; classes grow by the same factor.
    pub fan: usize,
    /// Share of deleted rows from which a file is rewritten.
    pub deleted_share: f64,
    /// Share of deleted rows that readers of a partition are left with. From 1 on nothing is done for their sake alone.
    pub read_cost_share: f64,
    /// Behind so much time without a commit a table is quiet: fragments are merged and deletes are applied, however few.
    pub quiet_after: Duration,
    /// Behind so much time without a new delete a file is cold: its deletes are applied, however few, beside a writer that
    /// never pauses.
    pub cold_after: Duration,
    pub order: Order,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            file_bytes: 256 << 20,
            fan: 8,
            deleted_share: 0.1,
            read_cost_share: 0.0025,
            quiet_after: Duration::from_secs(600),
            cold_after: Duration::from_secs(24 * 3_600),
            order: Order::AsWritten,
        }
    }
}

impl Targets {
    /// Smaller data files are fragments.
    pub fn fragment_bytes(&self) -> u64 {
        self.file_bytes / 8
    }

    /// Files are rewritten for readers' sake alone, too.
    fn spares_readers(&self) -> bool {
        self.read_cost_share < 1.0
    }
}

/// Files of the lowest class are smaller than this, and to rewrite so little costs next to nothing.
const SMALLEST: u64 = 1 << 20;
/// Input bytes of one group: what one rewrite may have to do again.
const GROUP_BYTES: u64 = 1 << 30;
/// Rows of one group that is sorted: where each has gone is kept in memory, 12 bytes a row.
const SORTED_ROWS: u64 = 8_000_000;

/// Why files are rewritten, or what lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    SmallFiles,
    DeletedRows,
    ReadCost,
    DanglingDeletes,
    EqualityDeletes,
    Manifests,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SmallFiles => "small-files",
            Self::DeletedRows => "deleted-rows",
            Self::ReadCost => "read-cost",
            Self::DanglingDeletes => "dangling-deletes",
            Self::EqualityDeletes => "equality-deletes",
            Self::Manifests => "manifests",
        }
    }
}

/// When a plan is made, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub now: i64,
    /// When the table was committed to.
    pub last_commit: i64,
}

impl Clock {
    fn is_quiet(self, targets: &Targets) -> bool {
        self.has_passed(targets.quiet_after, self.last_commit)
    }

    fn is_cold(self, file: &FileView, targets: &Targets) -> bool {
        self.has_passed(targets.cold_after, file.last_deleted)
    }

    fn has_passed(self, wait: Duration, since: i64) -> bool {
        let passed = u64::try_from(self.now.saturating_sub(since)).unwrap_or(0);
        Duration::from_millis(passed) >= wait
    }
}

/// Files of one partition that are rewritten together, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub reason: Reason,
    pub files: Vec<FileView>,
}

impl Group {
    fn of<'a>(reason: Reason, files: impl IntoIterator<Item = &'a FileView>) -> Self {
        Self { reason, files: files.into_iter().cloned().collect() }
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    pub fn deleted(&self) -> u64 {
        self.files.iter().map(|file| file.deleted).sum()
    }
}

/// The groups of one partition's files, the most useful first.
pub fn groups(files: &[FileView], targets: &Targets, clock: Clock) -> Vec<Group> {
    if is_tiny(files, targets) {
        return tiny(files);
    }
    let (dirty, clean): (Vec<_>, Vec<_>) = files.iter().partition(|file| is_dirty(file, targets));
    let (small_dirty, large_dirty): (Vec<_>, Vec<_>) = dirty.into_iter().partition(|file| is_small(file, targets));
    let mut groups: Vec<Group> = large_dirty.into_iter().map(|file| Group::of(Reason::DeletedRows, [file])).collect();
    let clean = clean.into_iter().filter(|file| is_small(file, targets)).collect();
    let mut small = mergeable(clean, targets, clock);
    let reason = if small.is_empty() { Reason::DeletedRows } else { Reason::SmallFiles };
    small.extend(small_dirty);
    for files in packed(small, targets) {
        // One small file without deletes would come out as it went in.
        if files.len() > 1 || is_dirty(&files[0], targets) {
            groups.push(Group { reason, files });
        }
    }
    groups.extend(for_readers(files, &groups, targets, clock));
    groups
}

/// Which of the small files are merged now.
fn mergeable<'a>(mut small: Vec<&'a FileView>, targets: &Targets, clock: Clock) -> Vec<&'a FileView> {
    small.sort_by_key(|file| file.live_bytes());
    let mut classes: BTreeMap<u32, usize> = BTreeMap::new();
    small.iter().for_each(|file| *classes.entry(class_of(file, targets)).or_default() += 1);
    // The lowest classes join the highest one that is due: they would be rewritten into it soon anyway.
    let highest = classes.iter().rev().find(|(_, files)| **files >= targets.fan).map(|(class, _)| *class);
    let due = highest.map_or(0, |class| small.iter().take_while(|file| class_of(file, targets) <= class).count());
    let worth = if clock.is_quiet(targets) { worth_merging(&small, targets) } else { 0 };
    small.truncate(due.max(worth));
    small
}

/// How many fragments, of files by size, are worth merging where no more will come: none is more than [`Targets::fan`] times
/// all that are smaller, as it would be rewritten for next to nothing.
fn worth_merging(small: &[&FileView], targets: &Targets) -> usize {
    let (mut below, mut worth) = (0, 0);
    for (place, file) in small.iter().enumerate().take_while(|(_, file)| is_fragment(file, targets)) {
        if place > 0 && file.live_bytes() <= below * targets.fan as u64 {
            worth = place + 1;
        }
        below += file.live_bytes();
    }
    worth
}

/// All of the partition is next to nothing.
fn is_tiny(files: &[FileView], targets: &Targets) -> bool {
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    targets.spares_readers() && bytes <= SMALLEST
}

fn tiny(files: &[FileView]) -> Vec<Group> {
    match files {
        [] => Vec::new(),
        [only] if only.deleted == 0 => Vec::new(),
        [only] => vec![Group::of(Reason::DeletedRows, [only])],
        all => vec![Group::of(Reason::SmallFiles, all)],
    }
}

/// Of the files that are in no group yet the dirtiest ones, until the partition's deleted rows are as few as readers may be
/// left with; those that are cold; and of a quiet table all.
fn for_readers(files: &[FileView], groups: &[Group], targets: &Targets, clock: Clock) -> Vec<Group> {
    if !targets.spares_readers() {
        return Vec::new();
    }
    let taken: HashSet<&str> = groups.iter().flat_map(|group| &group.files).map(|file| file.path.as_str()).collect();
    let mut dirtiest: Vec<&FileView> =
        files.iter().filter(|file| file.deleted > 0 && !taken.contains(file.path.as_str())).collect();
    let rate = |file: &FileView| file.deleted as f64 / file.bytes.max(1) as f64;
    dirtiest.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
    let mut left: u64 = dirtiest.iter().map(|file| file.deleted).sum();
    let tolerated = targets.read_cost_share * files.iter().map(|file| file.records).sum::<u64>() as f64;
    let is_quiet = clock.is_quiet(targets);
    let mut chosen = Vec::new();
    for file in dirtiest {
        if left as f64 > tolerated || is_quiet || clock.is_cold(file, targets) {
            left -= file.deleted;
            chosen.push(file);
        }
    }
    let (fragments, whole): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|file| is_fragment(file, targets));
    let fragments = packed(fragments, targets).into_iter().map(|files| Group { reason: Reason::ReadCost, files });
    fragments.chain(whole.into_iter().map(|file| Group::of(Reason::ReadCost, [file]))).collect()
}

/// It has lost many of its rows, or several delete files speak of it, as other engines write them.
fn is_dirty(file: &FileView, targets: &Targets) -> bool {
    let share = targets.deleted_share * file.records as f64;
    file.deleted > 0 && (file.deleted as f64 >= share || file.deletes.len() > 1)
}

/// Smaller than three quarters of what is aimed at.
fn is_small(file: &FileView, targets: &Targets) -> bool {
    file.live_bytes() < targets.file_bytes / 4 * 3
}

/// So small that readers pay for opening it rather than for what it holds.
fn is_fragment(file: &FileView, targets: &Targets) -> bool {
    file.live_bytes() < targets.fragment_bytes()
}

fn class_of(file: &FileView, targets: &Targets) -> u32 {
    let fan = u64::try_from(targets.fan.max(2)).unwrap_or(2);
    (file.live_bytes() / SMALLEST).max(1).ilog(fan)
}

/// In the order in which they were written, closed before it outgrows [`GROUP_BYTES`], or [`SORTED_ROWS`].
fn packed(mut files: Vec<&FileView>, targets: &Targets) -> Vec<Vec<FileView>> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let most_rows = if targets.order == Order::AsWritten { u64::MAX } else { SORTED_ROWS };
    let mut packs: Vec<Vec<FileView>> = Vec::new();
    let (mut bytes, mut rows) = (0, 0);
    for file in files {
        match packs.last_mut() {
            Some(pack) if bytes + file.bytes <= GROUP_BYTES && rows + file.records <= most_rows => {
                pack.push(file.clone());
            }
            _ => {
                packs.push(vec![file.clone()]);
                (bytes, rows) = (0, 0);
            }
        }
        bytes += file.bytes;
        rows += file.records;
    }
    packs
}

#[cfg(test)]
mod tests {
    use iceberg::spec::Struct;

    use super::*;

    /// Files by size in MiB and share of deleted rows in percent, as `12` or `12-5`; groups as their places in the list.
    fn check(script: &str, quiet: bool, expected: &[&[usize]]) {
        let quiet_after = if quiet { Duration::ZERO } else { Duration::MAX };
        check_with(script, &Targets { quiet_after, fan: 4, read_cost_share: 1.0, ..Targets::default() }, expected);
    }

    /// A file's number of days since its last delete may follow: `12-5-1`; it is as old as the clock without one.
    fn check_with(script: &str, targets: &Targets, expected: &[&[usize]]) {
        let day = 24 * 3_600_000;
        let clock = Clock { now: 100 * day, last_commit: 100 * day };
        let file = |(place, word): (usize, &str)| {
            let mut parts = word.split('-').map(|part| part.parse::<u64>().unwrap());
            let (size, deleted) = (parts.next().unwrap(), parts.next().unwrap_or(0));
            let days = i64::try_from(parts.next().unwrap_or(0)).unwrap();
            FileView {
                path: format!("{place:04}"),
                spec_id: 0,
                partition: Struct::empty(),
                bytes: size << 20,
                records: 1_000,
                deletes: Vec::new(),
                deleted: deleted * 10,
                last_deleted: (100 - days) * day,
            }
        };
        let files: Vec<FileView> = script.split_whitespace().enumerate().map(file).collect();
        let place = |file: &FileView| file.path.parse::<usize>().unwrap();
        let found: Vec<Vec<usize>> =
            groups(&files, targets, clock).iter().map(|group| group.files.iter().map(place).collect()).collect();
        assert_eq!(found, expected, "{script}");
    }

    #[test]
    fn small_files_are_merged_when_a_class_is_full() {
        check("", false, &[]);
        check("1 1 1", false, &[]);
        check("1 1 1 1", false, &[&[0, 1, 2, 3]]);
        check("250 1 1 1 1", false, &[&[1, 2, 3, 4]]);
        check("16 1 16 1 16 16 1", false, &[&[0, 1, 2, 3, 4, 5, 6]]);
        check("200 240", true, &[]);
        check("100", true, &[]);
    }

    #[test]
    fn fragments_of_a_quiet_table_are_merged_unless_one_is_far_larger_than_the_rest() {
        check("30 8", true, &[&[0, 1]]);
        check("30 7", true, &[]);
        check("30 1 1", true, &[&[1, 2]]);
        check("30 1 2 6", true, &[&[0, 1, 2, 3]]);
        check("33 33", true, &[]);
    }

    #[test]
    fn readers_are_left_with_few_deleted_rows_and_the_dirtiest_files_go_first() {
        let check = |script, share, expected| {
            let targets = Targets { fan: 4, read_cost_share: share, ..Targets::default() };
            check_with(script, &targets, expected);
        };
        check("250-2 250-2 250-2 250", 0.02, &[]);
        check("250-2 250-4 250-3 250", 0.02, &[&[1]]);
        check("250-2 200-3 250-3 250-4", 0.01, &[&[3], &[1], &[2]]);
        check("250-20 250-2", 0.01, &[&[0]]);
        // Fragments become one file, files that are none stay what they are.
        check("20-5 250-5 20-5 20", 0.005, &[&[0, 2], &[1]]);
        check("250-9", 1.0, &[]);
    }

    #[test]
    fn a_file_that_loses_no_more_rows_is_left_clean() {
        let check = |script, share, expected| {
            let targets = Targets { fan: 4, read_cost_share: share, ..Targets::default() };
            check_with(script, &targets, expected);
        };
        check("250-1-2 250-2 250", 0.05, &[&[0]]);
        check("250-1-1 20-1-9 20-1 20-2-2", 0.05, &[&[1, 3], &[0]]);
        check("250-1-2 250-2", 1.0, &[]);
        let quiet = Targets { quiet_after: Duration::ZERO, ..Targets::default() };
        check_with("250-2 250-1 250", &quiet, &[&[0], &[1]]);
    }

    #[test]
    fn next_to_nothing_is_one_clean_file_after_each_run() {
        let of = |files: &[(u64, u64)]| {
            let file = |(place, &(bytes, deleted)): (usize, &(u64, u64))| FileView {
                path: format!("{place:04}"),
                spec_id: 0,
                partition: Struct::empty(),
                bytes,
                records: 1_000,
                deletes: Vec::new(),
                deleted,
                last_deleted: 0,
            };
            let files: Vec<FileView> = files.iter().enumerate().map(file).collect();
            let groups = groups(&files, &Targets::default(), Clock { now: 0, last_commit: 0 });
            groups.iter().map(|group| (group.reason, group.files.len())).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[(SMALLEST, 0)]), []);
        assert_eq!(of(&[(SMALLEST, 1)]), [(Reason::DeletedRows, 1)]);
        assert_eq!(of(&[(10, 0), (10, 1)]), [(Reason::SmallFiles, 2)]);
        assert_eq!(of(&[(SMALLEST, 0), (10, 0)]), []);
    }

    #[test]
    fn files_that_have_lost_rows_are_rewritten_whatever_their_size() {
        check("250-9 250-10", false, &[&[1]]);
        check("1-50", false, &[&[0]]);
        check("1-50 1 1-50", false, &[&[0, 2]]);
        check("250-15 1 1 1 1-20 1", false, &[&[0], &[1, 2, 3, 4, 5]]);
    }

    #[test]
    fn groups_have_a_bound() {
        check("180 180 180 180 180 180 180 180", false, &[&[0, 1, 2, 3, 4], &[5, 6, 7]]);
    }
}
