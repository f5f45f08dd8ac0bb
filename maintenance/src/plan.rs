//! Which files are worth rewriting, and together with which. Pure.
//!
//! Small files are merged by size class, each class by a factor of [`Targets::fan`]: so a row is rewritten once per class
//! however often small files come, and a partition of n files has O(log n) small ones. A file that has lost many of its
//! rows is rewritten whatever its size. Files of one partition stay in the order in which they were written.

use std::collections::BTreeMap;

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
    /// Nothing is written to the table at the moment: what is small is merged, however few files there are.
    pub quiet: bool,
    pub order: Order,
}

impl Default for Targets {
    fn default() -> Self {
        Self { file_bytes: 256 << 20, fan: 8, deleted_share: 0.1, quiet: false, order: Order::AsWritten }
    }
}

/// Files of the lowest class are smaller than this.
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
    DanglingDeletes,
    EqualityDeletes,
    Manifests,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SmallFiles => "small-files",
            Self::DeletedRows => "deleted-rows",
            Self::DanglingDeletes => "dangling-deletes",
            Self::EqualityDeletes => "equality-deletes",
            Self::Manifests => "manifests",
        }
    }
}

/// Files of one partition that are rewritten together, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub reason: Reason,
    pub files: Vec<FileView>,
}

impl Group {
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    pub fn deleted(&self) -> u64 {
        self.files.iter().map(|file| file.deleted).sum()
    }
}

/// The groups of one partition's files, the most useful first.
pub fn groups(files: &[FileView], targets: &Targets) -> Vec<Group> {
    let mut classes: BTreeMap<u32, Vec<&FileView>> = BTreeMap::new();
    let mut groups = Vec::new();
    let (dirty, clean): (Vec<_>, Vec<_>) = files.iter().partition(|file| is_dirty(file, targets));
    for file in clean.into_iter().filter(|file| is_small(file, targets)) {
        classes.entry(class_of(file, targets)).or_default().push(file);
    }
    // The lowest classes join the highest one that is due: they would be rewritten into it soon anyway.
    let due = |files: &Vec<&FileView>| files.len() >= targets.fan;
    let highest = classes.iter().rev().find(|(_, files)| due(files)).map(|(class, _)| *class);
    let quiet = targets.quiet.then(|| classes.keys().next_back().copied()).flatten();
    let mut small: Vec<&FileView> = match highest.max(quiet) {
        Some(class) => classes.range(..=class).flat_map(|(_, files)| files.iter().copied()).collect(),
        None => Vec::new(),
    };
    let (small_dirty, large_dirty): (Vec<_>, Vec<_>) = dirty.into_iter().partition(|file| is_small(file, targets));
    for file in large_dirty {
        groups.push(Group { reason: Reason::DeletedRows, files: vec![file.clone()] });
    }
    let reason = if small.is_empty() { Reason::DeletedRows } else { Reason::SmallFiles };
    small.extend(&small_dirty);
    small.sort_by(|a, b| a.path.cmp(&b.path));
    for files in packed(small, targets) {
        // One small file without deletes would come out as it went in.
        if files.len() > 1 || is_dirty(&files[0], targets) {
            groups.push(Group { reason, files });
        }
    }
    groups
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

fn class_of(file: &FileView, targets: &Targets) -> u32 {
    let fan = u64::try_from(targets.fan.max(2)).unwrap_or(2);
    (file.live_bytes() / SMALLEST).max(1).ilog(fan)
}

/// In order, closed before it outgrows [`GROUP_BYTES`], or [`SORTED_ROWS`].
fn packed(files: Vec<&FileView>, targets: &Targets) -> Vec<Vec<FileView>> {
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
        let file = |(place, word): (usize, &str)| {
            let (size, deleted) = word.split_once('-').unwrap_or((word, "0"));
            FileView {
                path: format!("{place:04}"),
                spec_id: 0,
                partition: Struct::empty(),
                bytes: size.parse::<u64>().unwrap() << 20,
                records: 1_000,
                deletes: Vec::new(),
                deleted: deleted.parse::<u64>().unwrap() * 10,
            }
        };
        let files: Vec<FileView> = script.split_whitespace().enumerate().map(file).collect();
        let targets = Targets { quiet, fan: 4, ..Targets::default() };
        let place = |file: &FileView| file.path.parse::<usize>().unwrap();
        let found: Vec<Vec<usize>> =
            groups(&files, &targets).iter().map(|group| group.files.iter().map(place).collect()).collect();
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
        check("100 1", true, &[&[0, 1]]);
        check("100", true, &[]);
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
