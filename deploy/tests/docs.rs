//! The pages for users say nothing that the sources do not: every code has its part in `troubleshooting.md`, every link
//! leads somewhere, and every verb exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Where codes are given.
const SOURCES: [&str; 5] = ["api/src", "cdc-dynamodb/src", "cdc-postgres/src", "lakehouse-core/src", "maintenance/src"];

/// Words that look like codes and are none. A code that is missing here and in the page fails the test, so a new word
/// has to be looked at once.
const WORDS: [&str; 28] = [
    "BOOL",
    "BS",
    "DYNAMODB_JSON",
    "EUC_JP",
    "FULL_EXPORT",
    "IDENTIFY_SYSTEM",
    "INCREMENTAL_EXPORT",
    "ISO",
    "KEYS_ONLY",
    "KMS",
    "LAKEHOUSE__",
    "LATIN1",
    "LATIN9",
    "LOGNAME",
    "NEW_AND_OLD_IMAGES",
    "NEW_IMAGE",
    "NS",
    "NULL",
    "OLD_IMAGE",
    "SQL_ASCII",
    "SS",
    "USER",
    "UTC",
    "UTF8",
    "WIN1252",
    "WRONG",
    "OUTPUT_CLOSED",
    "EXPORT_SNAPSHOT",
];

/// Lines whose literals are names of arguments, environment variables and table headings.
const NOT_CODES: [&str; 5] = ["value_name", "env!(", "env = \"", "answer::table([", "let headers = ["];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("deploy lies in the repository").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below a folder with this ending, and not of tests.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if name != "tests" {
                found.extend(files(&path, ending));
            }
        } else if name.ends_with(ending) && !["tests.rs", "fake.rs"].contains(&name) {
            found.push(path);
        }
    }
    found
}

fn is_code(word: &str) -> bool {
    let upper = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    word.len() > 1 && word.starts_with(|first: char| first.is_ascii_uppercase()) && word.bytes().all(upper)
}

/// Codes in the product part of a source file: its literals of upper-case letters.
fn codes_in(source: &str) -> BTreeSet<String> {
    // Tests stand last in a file.
    let product = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut codes = BTreeSet::new();
    for line in product.lines() {
        let line = line.split("//").next().unwrap_or_default();
        if NOT_CODES.iter().any(|mark| line.contains(mark)) {
            continue;
        }
        let literals = line.split('"').skip(1).step_by(2).filter(|word| is_code(word) && !WORDS.contains(word));
        codes.extend(literals.map(str::to_owned));
    }
    codes
}

/// Every code with a file that gives it.
fn codes() -> BTreeMap<String, PathBuf> {
    let repository = repository();
    let mut codes = BTreeMap::new();
    for folder in SOURCES {
        for file in files(&repository.join(folder), ".rs") {
            codes.extend(codes_in(&read(&file)).into_iter().map(|code| (code, file.clone())));
        }
    }
    codes
}

/// Headings that are a code, with the text below.
fn headings(page: &str) -> BTreeMap<&str, String> {
    let mut headings: BTreeMap<&str, String> = BTreeMap::new();
    let mut current = None;
    for line in page.lines() {
        if line.starts_with('#') {
            current = line.strip_prefix("### ").map(|title| title.trim_matches('`')).filter(|title| is_code(title));
            current
                .into_iter()
                .for_each(|code| assert!(headings.insert(code, String::new()).is_none(), "{code} twice"));
        } else if let Some(text) = current.and_then(|code| headings.get_mut(code)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    headings
}

fn pages() -> Vec<PathBuf> {
    let repository = repository();
    let mut pages = files(&repository.join("deploy/docs"), ".md");
    pages.push(repository.join("README.md"));
    pages
}

#[test]
fn every_code_has_a_heading_in_troubleshooting_and_every_heading_a_code() {
    let page = read(&repository().join("deploy/docs/troubleshooting.md"));
    let (codes, headings) = (codes(), headings(&page));
    let missing: Vec<_> = codes.iter().filter(|(code, _)| !headings.contains_key(code.as_str())).collect();
    assert!(missing.is_empty(), "codes without a heading `### CODE` (or words for WORDS above): {missing:#?}");
    let invented: Vec<_> = headings.keys().filter(|code| !codes.contains_key(**code)).collect();
    assert!(invented.is_empty(), "headings of codes that no source gives: {invented:?}");
}

#[test]
fn every_code_says_what_it_means_what_is_safe_and_what_to_do() {
    let page = read(&repository().join("deploy/docs/troubleshooting.md"));
    for (code, text) in headings(&page) {
        let meaning = text.split("**Safe:**").next().unwrap_or_default().trim();
        assert!(!meaning.is_empty(), "{code} has no meaning");
        for part in ["**Safe:**", "**Do:**"] {
            assert_eq!(text.matches(part).count(), 1, "{code}: {part}");
        }
    }
}

#[test]
fn the_search_finds_codes_of_every_shape() {
    let codes = codes();
    for known in [
        "GAP",
        "PERM",
        "DISK_FULL",
        "CONFIG_PARTITION",
        "TLS_EXPIRED",
        "SCHEMA_CHANGED",
        "SLOT_BUSY",
        "KEY_UNMAPPABLE",
        "FENCED",
        "NO_IDENTITY",
        "WAIT_TIMEOUT",
    ] {
        assert!(codes.contains_key(known), "{known}");
    }
    assert!(codes_in("#[cfg(test)]\nmod tests {\n\"GAP\"").is_empty());
    assert!(codes_in("// \"GAP\"").is_empty());
}

#[test]
fn every_link_leads_to_a_file() {
    for page in pages() {
        let text = read(&page);
        let folder = page.parent().expect("a page lies in a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !link.is_empty() && !link.contains("://") {
                assert!(folder.join(link).exists(), "{}: {link}", page.display());
            }
        }
    }
}

#[test]
fn every_verb_on_a_page_exists() {
    let cli = read(&repository().join("api/src/cli.rs"));
    let body = cli.split("pub(crate) enum Verb {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("the verbs");
    let variants =
        body.lines().filter_map(|line| line.strip_prefix("    ").filter(|line| line.starts_with(char::is_uppercase)));
    let name = |line: &str| line.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_lowercase();
    let mut known: BTreeSet<String> = variants.map(name).collect();
    let later = cli.split("LATER: [&str;").nth(1).and_then(|rest| rest.split("];").next()).expect("the later verbs");
    known.extend(later.split('"').skip(1).step_by(2).map(str::to_owned));
    assert!(known.contains("verify") && known.contains("rollback"), "{known:?}");
    for page in pages() {
        let text = read(&page);
        // In code only: `lakehouse VERB`, or a line of a block that begins with it.
        let calls = text.split("`lakehouse ").skip(1).chain(text.split("\nlakehouse ").skip(1));
        for call in calls {
            let mut words = call.split('`').next().unwrap_or_default().split_whitespace();
            let verb = words.find(|word| !word.starts_with('-')).unwrap_or_default();
            let verb = verb.trim_end_matches(|c: char| !c.is_alphanumeric());
            let is_placeholder = verb.is_empty() || verb.chars().all(char::is_uppercase);
            assert!(is_placeholder || known.contains(verb), "{}: lakehouse {verb}", page.display());
        }
    }
}

#[test]
fn every_test_on_a_page_exists() {
    let mut named = 0;
    for page in pages() {
        let text = read(&page);
        for (file, test) in text.split('`').filter_map(|code| code.split_once(".rs::")) {
            let source = read(&repository().join(format!("{file}.rs")));
            assert!(source.contains(&format!("fn {test}(")), "{}: {file}.rs::{test}", page.display());
            named += 1;
        }
    }
    assert!(named > 30, "{named} tests are named");
}
