//! The layers of the configuration, and the one way to read a key from them: file < environment < flags. Defaults are
//! the reader's (`config.rs`).
//!
//! A key is known because somebody asks for it: when a section has been read, every key in it that nobody asked for is
//! an error which names the nearest one. No value of a key is ever shown unless the key takes one word of a closed set,
//! a number or a unit: what stands in the wrong place may be a secret.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::LazyLock;

use toml::{Table, Value};

use super::secret::SecretReference;
use crate::failure::Failure;
use crate::nearest::nearest;

/// Prefix of environment variables that override keys.
const PREFIX: &str = "LAKEHOUSE__";

/// Where the layers come from, lowest first.
pub(crate) struct Sources<'a> {
    pub(crate) file: &'a Path,
    pub(crate) environment: &'a [(String, String)],
    /// `KEY=VALUE`, the key as TOML writes it with dots.
    pub(crate) flags: &'a [String],
}

/// All layers as one tree.
pub(crate) struct Layers {
    file: PathBuf,
    root: Table,
    /// Keys that do not come from the file. Their values are texts, and get their type from who asks.
    overrides: BTreeMap<Vec<String>, Origin>,
}

/// Which layer a key comes from, if not from the file.
#[derive(Clone, Debug)]
enum Origin {
    Environment(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(key) => write!(f, "--set {key}"),
        }
    }
}

impl Layers {
    /// # Errors
    /// `CONFIG_FILE`, `CONFIG_SYNTAX` or `CONFIG_FLAG`.
    pub(crate) fn read(sources: &Sources<'_>) -> Result<Self, Failure> {
        let subject = sources.file.display().to_string();
        let text = std::fs::read_to_string(sources.file).map_err(|error| {
            let remedy = "name the file with --config or LAKEHOUSE_CONFIG, or write ./lakehouse.toml";
            Failure::usage("CONFIG_FILE", &subject, format!("the configuration cannot be read: {error}"), remedy)
        })?;
        // The library's own text shows the line, which may hold a secret.
        let root: Table = toml::from_str(&text).map_err(|error| {
            let message = format!("{}not TOML: {}", place(&text, error.span()), error.message());
            Failure::usage("CONFIG_SYNTAX", &subject, message, "correct the file")
        })?;
        let mut layers = Self { file: sources.file.to_owned(), root, overrides: BTreeMap::new() };
        for (name, value) in sources.environment {
            if let Some(key) = name.strip_prefix(PREFIX) {
                let path = key.split("__").map(str::to_owned).collect();
                layers.put(path, value, Origin::Environment(name.clone()));
            }
        }
        for flag in sources.flags {
            let (key, value) = flag.split_once('=').ok_or_else(|| invalid_flag(flag))?;
            let path = key_path(key).ok_or_else(|| invalid_flag(key))?;
            layers.put(path, value, Origin::Flag(key.trim().to_owned()));
        }
        Ok(layers)
    }

    pub(crate) fn root(&self) -> Section<'_> {
        Section { layers: self, path: Vec::new(), table: &self.root, asked: RefCell::default() }
    }

    /// Sets a text at a path; names are matched with those that exist without regard to case.
    fn put(&mut self, path: Vec<String>, value: &str, origin: Origin) {
        let mut table = &mut self.root;
        let mut place = Vec::new();
        let Some((last, parents)) = path.split_last() else {
            return;
        };
        for name in parents {
            let name = spelled(table, name);
            place.push(name.clone());
            // A key that gets keys below it was set as a whole in a lower layer, and that gives way.
            let entry = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            let Value::Table(inner) = entry else { unreachable!("made a table just above") };
            table = inner;
        }
        let name = spelled(table, last);
        place.push(name.clone());
        table.insert(name, Value::String(value.to_owned()));
        // What was set below the key has gone with its old value.
        self.overrides.retain(|path, _| !path.starts_with(&place));
        self.overrides.insert(place, origin);
    }
}

fn spelled(table: &Table, name: &str) -> String {
    let existing = table.keys().find(|key| key.eq_ignore_ascii_case(name));
    existing.cloned().unwrap_or_else(|| name.to_lowercase())
}

/// `a."b.c".d` as TOML reads it.
fn key_path(key: &str) -> Option<Vec<String>> {
    let mut table: Table = toml::from_str(&format!("{key} = 0")).ok()?;
    let mut path = Vec::new();
    loop {
        let (name, value) = std::mem::take(&mut table).into_iter().next()?;
        path.push(name);
        match value {
            Value::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}

fn invalid_flag(flag: &str) -> Failure {
    let key = flag.split('=').next().unwrap_or_default();
    let remedy = "write --set SECTION.KEY=VALUE, such as --set pipelines.app.commit_interval_seconds=1";
    Failure::usage("CONFIG_FLAG", format!("--set {key}"), "not of the form KEY=VALUE", remedy)
}

/// `line 3, column 7: `
fn place(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else {
        return String::new();
    };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
    format!("line {line}, column {column}: ")
}

/// One section of the configuration, being read.
pub(crate) struct Section<'a> {
    layers: &'a Layers,
    path: Vec<String>,
    table: &'a Table,
    /// Keys that somebody knows.
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// Ends the reading of a section.
    ///
    /// # Errors
    /// `CONFIG_UNKNOWN_KEY` for a key that nobody has asked for.
    pub(crate) fn finish(&self) -> Result<(), Failure> {
        let asked = self.asked.borrow();
        match self.table.keys().find(|key| !asked.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let known = asked.iter().copied();
                let remedy = match nearest(key, known.clone()) {
                    Some(name) => format!("the nearest known key is {name}; remove {key}, or correct it"),
                    None => "remove it".to_owned(),
                };
                Err(Failure::usage("CONFIG_UNKNOWN_KEY", self.subject(key), "no such key", remedy))
            }
        }
    }

    /// File or layer, and the path of this section.
    pub(crate) fn here(&self) -> String {
        self.subject_of(&self.path)
    }

    /// File or layer, and the path of a key of this section.
    pub(crate) fn subject(&self, key: &str) -> String {
        self.subject_of(&self.path_of(key))
    }

    fn subject_of(&self, path: &[String]) -> String {
        let shown = path.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(".");
        // The layer that set the key, or anything below it.
        let overridden = self.layers.overrides.iter().find(|(set, _)| set.starts_with(path));
        match overridden {
            Some((_, origin)) => format!("{origin}: {shown}"),
            None => format!("{}: {shown}", self.layers.file.display()),
        }
    }

    pub(crate) fn invalid(&self, key: &str, message: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure::usage("CONFIG_VALUE", self.subject(key), message, remedy)
    }

    pub(crate) fn missing(&self, key: &str) -> Failure {
        Failure::usage("CONFIG_MISSING_KEY", self.subject(key), "this key has no default", "add it")
    }

    pub(crate) fn has(&self, key: &'static str) -> bool {
        self.known(key);
        self.table.contains_key(key)
    }

    pub(crate) fn text(&self, key: &'static str) -> Result<Option<String>, Failure> {
        match (self.get(key), self.typed(key)) {
            (None, _) => Ok(None),
            (_, Some(Value::String(text))) => Ok(Some(text)),
            // Of a variable or a flag, what looks like a number may be meant as a text.
            (Some(Value::String(text)), _) => Ok(Some(text.clone())),
            _ => Err(self.wants(key, "a text in quotes")),
        }
    }

    pub(crate) fn number(&self, key: &'static str) -> Result<Option<u64>, Failure> {
        match self.typed(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => {
                u64::try_from(number).map(Some).map_err(|_| self.wants(key, "a number that is not negative"))
            }
            Some(_) => Err(self.wants(key, "a whole number")),
        }
    }

    /// A number from `from` to `to`.
    pub(crate) fn number_within(&self, key: &'static str, from: u64, to: u64) -> Result<Option<u64>, Failure> {
        match self.number(key)? {
            Some(number) if !(from..=to).contains(&number) => {
                Err(self.invalid(key, format!("{number} is out of range"), format!("choose from {from} to {to}")))
            }
            other => Ok(other),
        }
    }

    /// A part of a whole: above 0, and 1 at most.
    pub(crate) fn share(&self, key: &'static str) -> Result<Option<f64>, Failure> {
        let share = match self.typed(key) {
            None => return Ok(None),
            Some(Value::Float(share)) => share,
            Some(Value::Integer(1)) => 1.0,
            Some(_) => return Err(self.wants(key, "a number such as 0.1")),
        };
        match share > 0.0 && share <= 1.0 {
            true => Ok(Some(share)),
            false => Err(self.invalid(key, format!("{share} is out of range"), "choose above 0, and 1 at most")),
        }
    }

    /// The name of this section, which is the user's own, is not one that it may have.
    pub(crate) fn wrong_name(&self, remedy: &str) -> Failure {
        Failure::usage("CONFIG_NAME", self.here(), "not a valid name", remedy)
    }

    pub(crate) fn boolean(&self, key: &'static str) -> Result<Option<bool>, Failure> {
        match self.typed(key) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(value)),
            Some(_) => Err(self.wants(key, "true or false")),
        }
    }

    /// A list of texts. In the environment and in flags `a, b` will do.
    pub(crate) fn list(&self, key: &'static str) -> Result<Option<Vec<String>>, Failure> {
        let wrong = || self.wants(key, "a list of texts");
        match self.typed(key) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                let text = |item: Value| {
                    if let Value::String(text) = item { Ok(text) } else { Err(wrong()) }
                };
                items.into_iter().map(text).collect::<Result<_, _>>().map(Some)
            }
            Some(Value::String(text)) if self.is_overridden(key) => {
                Ok(Some(text.split(',').map(|item| item.trim().to_owned()).collect()))
            }
            Some(_) => Err(wrong()),
        }
    }

    /// A value with a unit, an address, or anything else that has a text.
    pub(crate) fn parsed<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Result<Option<T>, Failure> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error| self.invalid(key, format!("{error}"), "correct the value"))
    }

    /// One word of a closed set.
    pub(crate) fn word<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Result<Option<T>, Failure> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
                Err(self.invalid(
                    key,
                    format!("{text:?} is not one of the known words"),
                    format!("choose one of {known}"),
                ))
            }
        }
    }

    /// A path; a relative one counts from the folder of the configuration file.
    pub(crate) fn path(&self, key: &'static str) -> Result<Option<PathBuf>, Failure> {
        Ok(self.text(key)?.map(|text| self.resolved(&text)))
    }

    pub(crate) fn resolved(&self, path: &str) -> PathBuf {
        let folder = self.layers.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let joined = folder.unwrap_or(Path::new(".")).join(path);
        std::path::absolute(&joined).unwrap_or(joined)
    }

    /// A name that may stand in a slot, a namespace or a table.
    pub(crate) fn name(&self, key: &'static str) -> Result<Option<String>, Failure> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        check_name(&text, || self.subject(key))?;
        Ok(Some(text))
    }

    /// A sub-section, empty where it is absent.
    pub(crate) fn section(&self, key: &'static str) -> Result<Section<'a>, Failure> {
        static EMPTY: LazyLock<Table> = LazyLock::new(Table::new);
        let table = match self.get(key) {
            None => &*EMPTY,
            Some(Value::Table(table)) => table,
            Some(_) => return Err(self.wants(key, "a section")),
        };
        Ok(self.inner(key, table))
    }

    /// The sub-sections below a sub-section whose names are the user's own.
    pub(crate) fn sections(&self, key: &'static str) -> Result<Vec<(String, Section<'a>)>, Failure> {
        let outer = self.section(key)?;
        let inner = |(name, value): (&String, &'a Value)| match value {
            Value::Table(table) => Ok((name.clone(), outer.inner(name, table))),
            _ => Err(outer.wants(name, "a section")),
        };
        outer.table.iter().map(inner).collect()
    }

    /// The entries below a sub-section whose names are the user's own: texts, or sections.
    pub(crate) fn entries(&self, key: &'static str) -> Result<Vec<(String, Entry<'a>)>, Failure> {
        let outer = self.section(key)?;
        let entry = |(name, value): (&String, &'a Value)| match value {
            Value::Table(table) => Ok((name.clone(), Entry::Section(outer.inner(name, table)))),
            Value::String(text) => Ok((name.clone(), Entry::Text(text.clone()))),
            _ => Err(outer.wants(name, "a text or a section")),
        };
        outer.table.iter().map(entry).collect()
    }

    /// A reference to a secret. A value in its place is refused and not shown.
    pub(crate) fn secret(&self, key: &'static str) -> Result<Option<SecretReference>, Failure> {
        let remedy = "write a reference: { env = \"NAME\" } or { file = \"PATH\" }";
        let reference = match self.get(key) {
            None => return Ok(None),
            Some(Value::Table(table)) => self.inner(key, table),
            Some(_) => {
                let message = "a secret stands in the configuration itself";
                return Err(Failure::usage("CONFIG_SECRET_INLINE", self.subject(key), message, remedy));
            }
        };
        let found = [
            ("env", reference.text("env")?.map(SecretReference::Env)),
            ("file", reference.path("file")?.map(SecretReference::File)),
            ("aws_secret", reference.text("aws_secret")?.map(SecretReference::AwsSecret)),
            ("rds_iam", reference.boolean("rds_iam")?.filter(|on| *on).map(SecretReference::RdsIam)),
        ];
        reference.finish()?;
        let found: Vec<_> = found.into_iter().filter_map(|(kind, found)| Some((kind, found?))).collect();
        // A reference of a higher layer replaces one of another kind below.
        let (higher, lower): (Vec<_>, Vec<_>) = found.into_iter().partition(|(kind, _)| reference.is_overridden(kind));
        let mut chosen = if higher.is_empty() { lower } else { higher };
        match (chosen.pop(), chosen.is_empty()) {
            (Some((_, one)), true) => Ok(Some(one)),
            _ => Err(self.invalid(key, "not exactly one reference", remedy)),
        }
    }

    fn inner(&self, name: &str, table: &'a Table) -> Section<'a> {
        Section { layers: self.layers, path: self.path_of(name), table, asked: RefCell::default() }
    }

    fn path_of(&self, key: &str) -> Vec<String> {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }

    fn known(&self, key: &'static str) {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&key) {
            asked.push(key);
        }
    }

    fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.known(key);
        self.table.get(key)
    }

    fn is_overridden(&self, key: &str) -> bool {
        self.layers.overrides.contains_key(&self.path_of(key))
    }

    /// A value; one of the environment or of a flag is read as TOML where it is TOML.
    fn typed(&self, key: &'static str) -> Option<Value> {
        let value = self.get(key)?.clone();
        match &value {
            Value::String(text) if self.is_overridden(key) => {
                let parsed = toml::from_str::<Table>(&format!("value = {}", text.trim())).ok();
                Some(parsed.and_then(|mut table| table.remove("value")).unwrap_or(value))
            }
            _ => Some(value),
        }
    }

    fn wants(&self, key: &str, what: &str) -> Failure {
        self.invalid(key, "the value has another type", format!("write {what}"))
    }
}

/// Refuses a name that cannot stand in a slot, a namespace or a table.
pub(super) fn check_name(name: &str, subject: impl Fn() -> String) -> Result<(), Failure> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    let remedy = "use 1 to 63 characters of a-z, 0-9 and _";
    Err(Failure::usage("CONFIG_NAME", subject(), format!("{name:?} is not a valid name"), remedy))
}

/// A named entry: a short form, or a section.
pub(crate) enum Entry<'a> {
    Text(String),
    Section(Section<'a>),
}

/// A part of a key path as TOML writes it.
fn quoted(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if bare { name.to_owned() } else { format!("{name:?}") }
}
