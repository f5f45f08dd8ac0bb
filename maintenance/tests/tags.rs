//! Tags that people set: given once, moved only by who has seen where they stand, kept through any expiry, and settled
//! whatever becomes of the answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::between::{Between, Meddler};
use crate::support::{Lake, Story, age_local_files, block_on, eager, maintain, temporary_folder};
use async_trait::async_trait;
use iceberg::TableUpdate;
use iceberg::spec::{SnapshotReference, SnapshotRetention};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::commit::Maintainer;
use lakehouse_core::error::{Problem, Reaction};
use lakehouse_core::tags::{TagName, remove, set, tagged};
use tempfile::TempDir;

async fn story() -> (TempDir, Story) {
    let folder = temporary_folder();
    let story = Story::on(Lake::local(folder.path()).await).await;
    (folder, story)
}

fn name(text: &str) -> TagName {
    TagName::new(text).expect("a name")
}

fn code(done: Result<(), Problem>) -> &'static str {
    done.map_or_else(|problem| problem.code, |()| "")
}

async fn at(lake: &Lake, tag: &TagName) -> Option<i64> {
    tagged(&lake.load().await, tag).expect("no branch")
}

async fn is_kept(lake: &Lake, snapshot: i64) -> bool {
    lake.load().await.metadata.snapshot_by_id(snapshot).is_some()
}

/// Everything is old, and only the newest snapshot is kept but for its name.
async fn expire(lake: &Lake) {
    age_local_files(lake, |_| false).await;
    maintain(lake, &eager(1)).await.expect("a run");
}

#[test]
fn a_tagged_snapshot_outlives_any_expiry_until_its_name_is_taken_away() {
    block_on(async {
        let (_folder, mut story) = story().await;
        let maintainer = story.lake.maintainer();
        let (plain, kept) = (name("before-import"), TagName::protected("audit").expect("a name"));
        let first = story.put(0..10).await;
        let second = story.change(10..20, [3]).await;
        set(&maintainer, &story.lake.name, &plain, first, None).await.expect("a tag");
        set(&maintainer, &story.lake.name, &kept, second, None).await.expect("a tag");
        // Another engine gives it an age, which has passed.
        let retention = SnapshotRetention::Tag { max_ref_age_ms: Some(1) };
        let reference = SnapshotReference::new(second, retention);
        let ref_name = kept.as_str().to_owned();
        story.lake.change_metadata(vec![TableUpdate::SetSnapshotRef { ref_name, reference }]).await;
        let unnamed = story.put(20..22).await;
        for key in 22..26 {
            story.change([key], [key - 20]).await;
            expire(&story.lake).await;
        }
        assert!(is_kept(&story.lake, first).await && is_kept(&story.lake, second).await);
        assert!(!is_kept(&story.lake, unnamed).await, "nothing expires here");
        // Reads what is kept, files and all.
        story.oracle.check(&story.lake).await;

        remove(&maintainer, &story.lake.name, &plain, first).await.expect("it was there");
        remove(&maintainer, &story.lake.name, &kept, second).await.expect("it was there");
        story.put([26]).await;
        expire(&story.lake).await;
        assert!(!is_kept(&story.lake, first).await && !is_kept(&story.lake, second).await);
        story.oracle.check(&story.lake).await;
    });
}

/// M-5, pyiceberg 0.12: the table's log begins behind the newest snapshot that has left. Else a time in the gap would be
/// answered by the older one, which is kept by its name.
#[test]
fn the_log_names_nothing_before_what_has_expired_whatever_is_kept_by_a_tag() {
    block_on(async {
        let (_folder, mut story) = story().await;
        let tagged = story.put(0..3).await;
        story.lake.tag("audit", tagged).await;
        let gone = story.put(3..6).await;
        let head = story.put(6..9).await;
        expire(&story.lake).await;
        assert!(is_kept(&story.lake, tagged).await && !is_kept(&story.lake, gone).await);
        let table = story.lake.load().await;
        let log: Vec<i64> = table.metadata.history().iter().map(|entry| entry.snapshot_id).collect();
        let rewritten = table.snapshot_id().expect("a head");
        assert_eq!(log, [head, rewritten], "{tagged} is kept and {gone} has left");
    });
}

#[test]
fn a_name_is_given_once_and_moved_only_by_who_has_seen_where_it_stands() {
    block_on(async {
        let (_folder, mut story) = story().await;
        let (maintainer, table) = (story.lake.maintainer(), story.lake.name.clone());
        let (first, second) = (story.put(0..3).await, story.put(3..6).await);
        let tag = name("v1");
        let set = |tag: TagName, to: i64, seen: Option<i64>| {
            let (maintainer, table) = (maintainer.clone(), table.clone());
            async move { code(set(&maintainer, &table, &tag, to, seen).await) }
        };
        assert_eq!(set(tag.clone(), 1, None).await, "SNAPSHOT_UNKNOWN");
        assert_eq!(set(tag.clone(), first, Some(second)).await, "TAG_MOVED");
        assert_eq!(at(&story.lake, &tag).await, None);
        assert_eq!(set(tag.clone(), first, None).await, "");
        let before = story.lake.load().await.metadata_location;
        // Repeated it is done already, whatever was seen; nothing is committed.
        for seen in [None, Some(first), Some(second)] {
            assert_eq!(set(tag.clone(), first, seen).await, "", "{seen:?}");
        }
        for seen in [None, Some(second)] {
            assert_eq!(set(tag.clone(), second, seen).await, "TAG_MOVED", "{seen:?}");
        }
        assert_eq!(code(remove(&maintainer, &table, &tag, second).await), "TAG_MOVED");
        assert_eq!(story.lake.load().await.metadata_location, before);
        assert_eq!(set(tag.clone(), second, Some(first)).await, "");
        assert_eq!(at(&story.lake, &tag).await, Some(second));
        assert_eq!(code(remove(&maintainer, &table, &tag, second).await), "");
        assert_eq!(code(remove(&maintainer, &table, &tag, second).await), "TAG_MOVED");

        let kept = TagName::protected("v1").expect("a name");
        assert_eq!(set(kept.clone(), first, None).await, "");
        assert_eq!(set(kept.clone(), second, Some(first)).await, "TAG_MOVED", "a protected name never moves");
        let branch = SnapshotReference::new(first, SnapshotRetention::branch(None, None, None));
        let update = TableUpdate::SetSnapshotRef { ref_name: "theirs".to_owned(), reference: branch };
        story.lake.change_metadata(vec![update]).await;
        assert_eq!(set(name("theirs"), second, Some(first)).await, "TAG_NAME", "a branch stays one");
        // None of it has moved the table: its writer goes on where it was.
        story.put(6..8).await;
        story.oracle.check(&story.lake).await;
    });
}

/// Others are quicker a few times, and then an answer is lost: its commit has landed.
struct Unlucky {
    /// Commits before ours.
    others: AtomicUsize,
    losses: AtomicUsize,
}

fn is_due(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[async_trait]
impl Meddler for Unlucky {
    async fn commit(
        &self,
        inner: &dyn Catalog,
        base: &LoadedTable,
        updates: Vec<TableUpdate>,
    ) -> Result<Swap, Problem> {
        if is_due(&self.others) {
            let moved = ("moved".to_owned(), base.token.clone());
            inner.commit(base, vec![TableUpdate::SetProperties { updates: [moved].into() }]).await?;
        }
        let swap = inner.commit(base, updates).await?;
        match swap {
            Swap::Landed(_) if is_due(&self.losses) => Ok(Swap::Unknown("the answer is lost".to_owned())),
            swap => Ok(swap),
        }
    }
}

#[test]
fn a_tag_is_set_against_others_and_without_an_answer() {
    block_on(async {
        let (_folder, mut story) = story().await;
        let first = story.put(0..3).await;
        let maintainer = |others: usize, losses: usize| Maintainer {
            catalog: Arc::new(Between {
                inner: Arc::clone(&story.lake.catalog),
                meddler: Unlucky { others: others.into(), losses: losses.into() },
            }),
            ..story.lake.maintainer()
        };
        let (table, tag) = (story.lake.name.clone(), name("v1"));
        set(&maintainer(3, 1), &table, &tag, first, None).await.expect("a tag");
        assert_eq!(at(&story.lake, &tag).await, Some(first));
        remove(&maintainer(3, 1), &table, &tag, first).await.expect("it was there");
        assert_eq!(at(&story.lake, &tag).await, None);
        let problem = set(&maintainer(usize::MAX, 0), &table, &tag, first, None).await.expect_err("it never rests");
        assert_eq!((problem.code, problem.reaction), ("TABLE_MOVED", Reaction::Retry));
        assert_eq!(at(&story.lake, &tag).await, None);
    });
}
