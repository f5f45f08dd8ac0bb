//! What a chain shows, and that it stays one whoever writes to it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::entry::LONGEST;
use super::*;
use crate::digest::sha256;

const CANARY: &str = "canary-5d0e";
const NOBODY: Expected = Expected { head: None, at_least: None };

struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    /// As a process of its own has it.
    fn audit(&self) -> Audit {
        audit(&self.file())
    }

    /// A trail of so many entries, half of them outcomes; its bytes.
    async fn written(&self, entries: u32) -> Vec<u8> {
        let audit = self.audit();
        for number in 0..entries / 2 {
            let intent = audit.intent(act(&format!("request-{number}"))).await.unwrap();
            intent.outcome(Ok(()), json!({"snapshot_id": number.to_string()})).await.unwrap();
        }
        fs::read(self.file()).unwrap()
    }

    fn report(&self, expected: &Expected) -> Report {
        verify(&self.file(), expected).unwrap()
    }
}

fn audit(file: &Path) -> Audit {
    Audit::new(Some(&AuditConfig { file: file.to_owned(), rows: true }), Via::Http)
}

fn act(request_id: &str) -> Act {
    Act {
        action: "rollback",
        principal: "ann".to_owned(),
        subject: "app.orders".to_owned(),
        request_id: request_id.to_owned(),
        reason: Some("said \"no\",\nand meant it \u{2028} 本".to_owned()),
        detail: json!({"from": "12", "to": "7"}),
    }
}

fn walked(bytes: &[u8]) -> Report {
    verify::walk(bytes, &NOBODY).unwrap()
}

fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').collect()
}

fn json_lines(file: &Path) -> Vec<Value> {
    lines(&fs::read(file).unwrap()).into_iter().map(|line| serde_json::from_slice(line).unwrap()).collect()
}

fn refused<T>(ended: Result<T, Failure>) -> &'static str {
    ended.err().expect("refused").problem.code
}

#[tokio::test]
async fn an_entry_says_who_what_and_why_and_never_more() {
    let scene = Scene::new();
    scene.written(2).await;
    let entries = json_lines(&scene.file());
    let [intent, outcome] = &entries[..] else { panic!("two entries") };
    let keys = "sequence at kind via action principal subject request_id reason detail previous hash";
    let mut expected: Vec<&str> = keys.split(' ').collect();
    expected.sort_unstable();
    let mut found: Vec<&str> = intent.as_object().unwrap().keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!((&intent["kind"], &intent["via"], &intent["sequence"]), (&json!("intent"), &json!("http"), &json!(1)));
    assert_eq!(intent["reason"], json!(act("").reason));
    assert_eq!(intent["previous"], json!("0".repeat(64)));
    assert_eq!((&outcome["kind"], &outcome["previous"]), (&json!("outcome"), &intent["hash"]));
    assert_eq!((&outcome["request_id"], &outcome["reason"]), (&intent["request_id"], &Value::Null));
    assert_eq!(outcome["detail"], json!({"snapshot_id": "0", "code": null}));
    let at = intent["at"].as_str().unwrap();
    assert_eq!((at.len(), at.ends_with('Z')), ("2026-01-01T00:00:00.000000Z".len(), true), "{at}");
    assert_eq!(fs::metadata(scene.file()).unwrap().permissions().mode() & 0o007, 0, "not for everybody");
}

#[tokio::test]
async fn the_hash_is_that_of_the_line_without_it() {
    let scene = Scene::new();
    let bytes = scene.written(2).await;
    let first = std::str::from_utf8(lines(&bytes)[0]).unwrap();
    let (body, rest) = first.rsplit_once(",\"hash\":\"").unwrap();
    assert_eq!(rest, format!("{}\"}}\n", sha256(format!("{body}}}").as_bytes())));
    let members: Vec<usize> = ["{\"sequence\":1,", ",\"at\":", ",\"kind\":", ",\"previous\":"]
        .iter()
        .map(|member| body.find(member).expect(member))
        .collect();
    assert!(members.is_sorted(), "{body}");
}

#[tokio::test]
async fn every_byte_that_is_another_one_is_found() {
    let scene = Scene::new();
    let bytes = scene.written(50).await;
    let whole = walked(&bytes);
    assert_eq!((whole.verdict, whole.entries, whole.sequence, whole.line), ("sound", 50, 50, None));
    assert_eq!(scene.report(&NOBODY), whole);
    for (at, byte) in bytes.iter().copied().enumerate() {
        let line = lines(&bytes[..=at]).len() as u64;
        for other in [byte ^ 1, b' '] {
            if other == byte {
                continue;
            }
            let mut changed = bytes.clone();
            changed[at] = other;
            let report = walked(&changed);
            assert_eq!((report.verdict, report.line), ("unsound", Some(line)), "byte {at} as {other:#x}");
            assert_eq!(report.entries, line - 1, "byte {at} as {other:#x}");
        }
    }
}

#[tokio::test]
async fn a_byte_more_or_less_is_found_and_any_other_value_of_one() {
    let scene = Scene::new();
    let bytes = scene.written(6).await;
    for at in 0..bytes.len() {
        for other in [bytes[at] ^ 0x20, bytes[at] ^ 0x80, b'\n', b'\r', b'0', b'"'] {
            let changed = [&bytes[..at], &[other], &bytes[at + 1..]].concat();
            let verdict = if other == bytes[at] { "sound" } else { "unsound" };
            assert_eq!(walked(&changed).verdict, verdict, "byte {at} as {other:#x}");
        }
        let less = [&bytes[..at], &bytes[at + 1..]].concat();
        assert_eq!(walked(&less).verdict, "unsound", "without byte {at}");
        for more in [b' ', b'\n', b'\r', b'}', b'0'] {
            let more = [&bytes[..at], &[more], &bytes[at..]].concat();
            assert_eq!(walked(&more).verdict, "unsound", "more before byte {at}");
        }
    }
    for more in [&b"\n"[..], b" ", b"{}\n"] {
        assert_eq!(walked(&[&bytes[..], more].concat()).verdict, "unsound", "{more:?} at the end");
    }
}

#[tokio::test]
async fn lines_that_were_removed_doubled_or_moved_are_found() {
    let scene = Scene::new();
    let bytes = scene.written(50).await;
    let all = lines(&bytes);
    let check = |changed: &[&[u8]], line: usize, what: &str| {
        let report = walked(&changed.concat());
        assert_eq!((report.verdict, report.line), ("unsound", Some(line as u64)), "{what}: {report:?}");
    };
    for one in 0..49 {
        let mut changed = all.clone();
        changed.remove(one);
        check(&changed, one + 1, &format!("without line {}", one + 1));
    }
    for one in 0..50 {
        for place in 0..=50 {
            let mut changed = all.clone();
            changed.insert(place, all[one]);
            // Beside its original the second of the two is the wrong one.
            let wrong = if place == one { one + 1 } else { place };
            check(&changed, wrong + 1, &format!("line {} again at {}", one + 1, place + 1));
        }
        for other in one + 1..50 {
            let mut changed = all.clone();
            changed.swap(one, other);
            check(&changed, one + 1, &format!("lines {} and {} in each other's place", one + 1, other + 1));
        }
    }
}

#[tokio::test]
async fn an_end_that_was_cut_off_is_found_by_who_has_noted_it() {
    let scene = Scene::new();
    let bytes = scene.written(10).await;
    let noted = scene.report(&NOBODY);
    let expected = [
        Expected { head: Some(noted.hash.clone()), at_least: None },
        Expected { head: None, at_least: Some(noted.entries) },
    ];
    scene.written(4).await;
    for expected in &expected {
        assert_eq!(scene.report(expected).verdict, "sound", "a trail may have grown: {expected:?}");
    }
    for kept in 0..10 {
        fs::write(scene.file(), lines(&bytes)[..kept].concat()).unwrap();
        assert_eq!(scene.report(&NOBODY).verdict, "sound", "the file alone does not show it");
        for expected in &expected {
            let report = scene.report(expected);
            assert_eq!((report.verdict, report.line, report.entries), ("unsound", None, kept as u64), "{expected:?}");
        }
    }
}

#[tokio::test]
async fn a_chain_that_was_made_anew_from_its_middle_has_another_head() {
    let scene = Scene::new();
    let bytes = scene.written(10).await;
    let head = Some(scene.report(&NOBODY).hash);
    fs::write(scene.file(), lines(&bytes)[..5].concat()).unwrap();
    scene.written(6).await;
    assert_eq!(scene.report(&NOBODY).verdict, "sound");
    assert_eq!(scene.report(&Expected { head, at_least: None }).verdict, "unsound");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_in_several_processes_keep_one_chain() {
    let scene = Scene::new();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let audit = scene.audit();
            tokio::spawn(async move {
                for number in 0..10 {
                    let intent = audit.intent(act(&format!("{writer}-{number}"))).await.unwrap();
                    intent.outcome_now(&Ok(()), Value::Null);
                }
                audit.entries().get()
            })
        })
        .collect();
    let mut counted = 0;
    for writer in writers {
        counted += writer.await.unwrap();
    }
    let report = scene.report(&NOBODY);
    assert_eq!((report.verdict, report.entries, counted), ("sound", 80, 80), "{report:?}");
    let ids: Vec<String> =
        json_lines(&scene.file()).iter().map(|line| line["request_id"].as_str().unwrap().to_owned()).collect();
    for id in &ids {
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 2, "{id}");
    }
}

#[tokio::test]
async fn behind_a_torn_line_nothing_is_written_until_the_file_is_moved_away() {
    let scene = Scene::new();
    let bytes = scene.written(4).await;
    let last = lines(&bytes)[3].len();
    let audit = scene.audit();
    for gone in 1..last {
        let torn = &bytes[..bytes.len() - gone];
        fs::write(scene.file(), torn).unwrap();
        let report = scene.report(&NOBODY);
        assert_eq!((report.verdict, report.line, report.sequence), ("unsound", Some(4), 3), "{gone} bytes are missing");
        assert_eq!(refused(audit.intent(act("more")).await), "AUDIT_DAMAGED");
        assert_eq!(refused(audit.check().await), "AUDIT_DAMAGED");
        assert_eq!(fs::read(scene.file()).unwrap(), torn, "what is torn stays as it is");
    }
    fs::rename(scene.file(), scene.folder.path().join("old.jsonl")).unwrap();
    audit.intent(act("more")).await.unwrap().outcome(Ok(()), Value::Null).await.unwrap();
    let report = scene.report(&NOBODY);
    assert_eq!((report.verdict, report.entries), ("sound", 2), "a new chain");
}

#[tokio::test]
async fn what_follows_no_sound_line_is_not_written() {
    for last in [&b"\n"[..], b"{}\n", b"\0\0\0\0", b"[1]\n\n", vec![b'x'; 3 << 20].as_slice(), b"\xff\xfe\n"] {
        let scene = Scene::new();
        fs::write(scene.file(), last).unwrap();
        assert_eq!(refused(scene.audit().intent(act("x")).await), "AUDIT_DAMAGED");
        assert_eq!(scene.report(&NOBODY).line, Some(1));
        assert_eq!(fs::read(scene.file()).unwrap(), last);
    }
}

#[tokio::test]
async fn a_line_as_long_as_may_be_is_followed_and_a_longer_one_refused() {
    let scene = Scene::new();
    let audit = scene.audit();
    let with = |length: usize| Act { reason: Some("x".repeat(length)), ..act("long") };
    audit.intent(with(0)).await.unwrap().outcome_now(&Ok(()), Value::Null);
    let empty = lines(&fs::read(scene.file()).unwrap())[0].len();
    let room = usize::try_from(LONGEST).unwrap() - empty;
    for length in [5_000, 70_000, room - 100, room] {
        audit.intent(with(length)).await.unwrap().outcome_now(&Ok(()), Value::Null);
    }
    let length = fs::metadata(scene.file()).unwrap().len();
    assert_eq!(refused(audit.intent(with(room + 1_000)).await), "AUDIT_UNWRITABLE");
    assert_eq!(fs::metadata(scene.file()).unwrap().len(), length);
    audit.intent(with(1)).await.unwrap().outcome_now(&Ok(()), Value::Null);
    assert_eq!(scene.report(&NOBODY).verdict, "sound");
}

#[tokio::test]
async fn without_a_durable_entry_there_is_no_intent() {
    let scene = Scene::new();
    // A disk that is full, a file that is a folder, a folder that is not there.
    let folder = scene.folder.path();
    for file in [Path::new("/dev/full"), folder, &folder.join("nowhere/audit.jsonl")] {
        let audit = audit(file);
        assert_eq!(refused(audit.intent(act("x")).await), "AUDIT_UNWRITABLE", "{}", file.display());
        assert_eq!(refused(audit.read(act("x")).await), "AUDIT_UNWRITABLE", "{}", file.display());
        // A refusal stands all the same.
        audit.refused(act("x")).await;
        assert_eq!(audit.entries().get(), 0);
    }
    assert_eq!(refused(verify(&folder.join("nowhere"), &NOBODY)), "AUDIT_UNREADABLE");
}

#[test]
fn a_writer_that_is_stopped_with_the_file_does_not_hold_others_up_for_ever() {
    let scene = Scene::new();
    let holder = File::create(scene.file()).unwrap();
    holder.lock().unwrap();
    let begun = Instant::now();
    let ended = trail::append(&scene.file(), begun + Duration::from_millis(50), |_| unreachable!("it has no turn"));
    assert_eq!(refused(ended), "AUDIT_UNWRITABLE");
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(holder);
    trail::check(&scene.file(), Instant::now()).unwrap();
}

#[tokio::test]
async fn what_failed_is_an_outcome_too() {
    let scene = Scene::new();
    let intent = scene.audit().intent(act("x")).await.unwrap();
    let failure = Failure::failed("FENCED", "app", format!("says {CANARY}"), "nothing");
    assert_eq!(refused(intent.outcome(Err::<(), _>(failure), json!({"operation": null})).await), "FENCED");
    let outcome = &json_lines(&scene.file())[1];
    assert_eq!(outcome["detail"], json!({"operation": null, "code": "FENCED"}));
    assert!(!outcome.to_string().contains(CANARY), "the message may hold anything");
}

#[tokio::test]
async fn without_a_trail_everything_is_let_through_and_reads_may_be_left_out() {
    let nowhere = Audit::new(None, Via::CommandLine);
    nowhere.check().await.unwrap();
    nowhere.refused(act("x")).await;
    let intent = nowhere.intent(act("x")).await.unwrap();
    assert!(!intent.is_kept() && !nowhere.is_kept());
    intent.outcome(Ok(()), Value::Null).await.unwrap();

    let scene = Scene::new();
    let audit = Audit::new(Some(&AuditConfig { file: scene.file(), rows: false }), Via::Http);
    assert!(!audit.read(act("x")).await.unwrap().is_kept());
    assert!(!scene.file().exists());
    assert!(audit.intent(act("x")).await.unwrap().is_kept());
}

#[test]
fn a_flood_of_refusals_is_counted_and_not_written() {
    let mut refusals = Refusals::default();
    let begin = Instant::now();
    let taken = |refusals: &mut Refusals, at: Duration| (0..1_000).filter(|_| refusals.take(begin + at)).count();
    assert_eq!(taken(&mut refusals, Duration::ZERO), 10);
    assert_eq!(taken(&mut refusals, Duration::from_millis(999)), 0);
    assert_eq!(taken(&mut refusals, Duration::from_millis(1_001)), 10);
    assert_eq!(refusals.left_out(), 990 + 1_000 + 990);
    refusals.told(2_000);
    assert_eq!(refusals.left_out(), 980);
    // A clock that went back, and it cannot: no panic, no more entries.
    assert_eq!(taken(&mut refusals, Duration::ZERO), 0);
}

#[tokio::test]
async fn the_next_entry_of_any_kind_tells_of_refusals_without_one() {
    let scene = Scene::new();
    let audit = scene.audit();
    let begun = Instant::now();
    for _ in 0..30 {
        audit.refused(act("x")).await;
    }
    let written = json_lines(&scene.file()).len();
    let quick = begun.elapsed() < Duration::from_secs(1);
    assert!(written < 30 || !quick, "{written} of 30");
    audit.intent(act("y")).await.unwrap().outcome_now(&Ok(()), Value::Null);
    let told: u64 =
        json_lines(&scene.file()).iter().filter_map(|line| line["detail"]["refusals_left_out"].as_u64()).sum();
    assert_eq!(written as u64 + told, 30);
    assert_eq!(scene.report(&NOBODY).verdict, "sound");
}

#[tokio::test]
async fn a_verification_ends_where_the_trail_stood_when_it_began() {
    let scene = Scene::new();
    let bytes = scene.written(4).await;
    let mut file = OpenOptions::new().append(true).open(scene.file()).unwrap();
    // A line that is being written is behind a lock; one that nobody writes is torn.
    file.lock().unwrap();
    file.write_all(&lines(&bytes)[0][..10]).unwrap();
    let verification = std::thread::spawn({
        let path = scene.file();
        move || verify(&path, &NOBODY).unwrap()
    });
    std::thread::sleep(Duration::from_millis(50));
    file.set_len(bytes.len() as u64).unwrap();
    drop(file);
    assert_eq!(verification.join().unwrap().verdict, "sound");
}

fn numbers(page: &Page) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.sequence).collect()
}

fn paged(scene: &Scene, from: Option<Mark>, most: usize) -> Option<Page> {
    page::read(&scene.file(), from, most).unwrap()
}

#[tokio::test]
async fn pages_lead_from_the_newest_entry_to_the_first_whatever_is_added_meanwhile() {
    let scene = Scene::new();
    scene.written(10).await;
    let first = paged(&scene, None, 4).unwrap();
    assert_eq!(numbers(&first), [10, 9, 8, 7]);
    scene.written(2).await;
    let second = paged(&scene, first.next, 4).unwrap();
    assert_eq!(numbers(&second), [6, 5, 4, 3]);
    let last = paged(&scene, second.next, 4).unwrap();
    assert_eq!((numbers(&last), last.next), (vec![2, 1], None));
    assert_eq!(numbers(&paged(&scene, None, 1).unwrap()), [12]);
    let written = json_lines(&scene.file());
    let shown = serde_json::to_value(&last.entries).unwrap();
    for key in "sequence at kind via action principal subject request_id reason detail hash".split(' ') {
        assert_eq!(shown[0][key], written[1][key], "{key}");
    }
}

#[tokio::test]
async fn a_page_of_long_entries_ends_before_it_is_full() {
    let scene = Scene::new();
    let audit = scene.audit();
    for _ in 0..10 {
        let long = Act { reason: Some("x".repeat(900_000)), ..act("long") };
        drop(audit.intent(long).await.unwrap());
    }
    let first = paged(&scene, None, 100).unwrap();
    assert_eq!(numbers(&first), [10, 9, 8, 7, 6]);
    let second = paged(&scene, first.next, 100).unwrap();
    assert_eq!((numbers(&second), second.next), (vec![5, 4, 3, 2, 1], None));
}

#[tokio::test]
async fn a_page_shows_nothing_that_was_not_written() {
    let scene = Scene::new();
    assert!(paged(&scene, None, 10).unwrap().entries.is_empty(), "no file, and no entries yet");
    let bytes = scene.written(6).await;
    let next = paged(&scene, None, 2).unwrap().next;
    // The third of six lines: a page that ends before it holds, and one that comes to it does not.
    let at: usize = lines(&bytes)[..2].iter().map(|line| line.len()).sum();
    let mut changed = bytes.clone();
    changed[at + 20] ^= 1;
    fs::write(scene.file(), &changed).unwrap();
    assert_eq!(numbers(&paged(&scene, None, 3).unwrap()), [6, 5, 4]);
    assert_eq!(refused(page::read(&scene.file(), None, 4)), "AUDIT_DAMAGED");
    // A whole line that is gone.
    let gone = [&bytes[..at], &bytes[at + lines(&bytes)[2].len()..]].concat();
    fs::write(scene.file(), gone).unwrap();
    assert_eq!(refused(page::read(&scene.file(), None, 4)), "AUDIT_DAMAGED");
    // Another trail in its place, a longer and a shorter one.
    for entries in [8, 2] {
        fs::remove_file(scene.file()).unwrap();
        scene.written(entries).await;
        assert!(paged(&scene, next.clone(), 10).is_none(), "{entries}");
    }
    fs::remove_file(scene.file()).unwrap();
    assert!(paged(&scene, next, 10).is_none());
}
