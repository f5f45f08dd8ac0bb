//! What stands in position-delete files, against the data files that they name (files W1 to W4, W14).

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use iceberg::spec::{DataContentType, DataFileFormat};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::findings::{Check, Findings};
use super::inventory::{DeleteFacts, FileFacts, Inventory};
use super::{files, for_each};
use crate::storage::Storage;

/// Goes on with what counting has found.
pub(super) async fn check(storage: &Storage, inventory: &Arc<Inventory>, mut findings: Findings) -> Check {
    let is_delete = |file: &FileFacts| file.live && file.content == DataContentType::PositionDeletes;
    let count = for_each(storage, inventory, is_delete, &mut findings, |storage, inventory, file| {
        let faults = faults(storage, inventory, file);
        faults.into_iter().map(|fault| format!("{}: {fault}", file.path)).collect()
    });
    let count = count.await;
    findings.check(format!("{count} delete files"))
}

fn faults(storage: &Storage, inventory: &Inventory, file: &FileFacts) -> Vec<String> {
    if file.format != DataFileFormat::Parquet {
        return vec![format!("a delete file in {}", file.format)];
    }
    let Some(facts) = &file.delete else {
        return vec!["not a position-delete file".to_owned()];
    };
    match Deleted::read(storage, inventory, file) {
        Ok(deleted) => deleted.faults(file, facts),
        Err(problem) => vec![problem],
    }
}

/// The contents of one delete file, in short.
#[derive(Debug, Default)]
struct Deleted {
    ours: bool,
    rows: u64,
    /// Data files that it names: the first, and how many.
    first_path: String,
    paths: u64,
    /// Rows of the data file that is being named.
    rows_of_path: u64,
    lowest: Option<i64>,
    highest: Option<i64>,
    faults: Vec<String>,
}

impl Deleted {
    fn read(storage: &Storage, inventory: &Inventory, file: &FileFacts) -> Result<Self, String> {
        let ours = files::is_ours(&files::footer(storage, &file.path).map_err(|problem| problem.to_string())?);
        let source = storage.open(&file.path).map_err(|problem| problem.to_string())?;
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(source, options);
        let reader = reader.and_then(ParquetRecordBatchReaderBuilder::build).map_err(|error| error.to_string())?;
        let mut deleted = Self { ours, ..Self::default() };
        let mut last: Option<(String, i64)> = None;
        let mut sorted = true;
        for batch in reader {
            let batch = batch.map_err(|error| error.to_string())?;
            let paths = batch.column_by_name("file_path").and_then(|column| column.as_string_opt::<i32>());
            let positions = batch.column_by_name("pos").and_then(|column| column.as_primitive_opt::<Int64Type>());
            let (Some(paths), Some(positions)) = (paths, positions) else {
                return Err("no usable columns file_path and pos".to_owned());
            };
            for row in 0..batch.num_rows() {
                let (path, position) = (paths.value(row), positions.value(row));
                match &mut last {
                    Some((known, before)) if known.as_str() == path => {
                        sorted &= *before < position;
                        *before = position;
                    }
                    other => {
                        sorted &= other.as_ref().is_none_or(|(known, _)| known.as_str() < path);
                        *other = Some((path.to_owned(), position));
                        deleted.begin_path(inventory, file, path);
                    }
                }
                deleted.add(position);
                let within = u64::try_from(position).is_ok_and(|position| position < deleted.rows_of_path);
                if !within && deleted.faults.len() < 3 {
                    deleted.faults.push(format!("row {position} is not within {path}"));
                }
            }
        }
        if !sorted {
            deleted.faults.push("rows are not sorted by file_path, then pos".to_owned());
        }
        Ok(deleted)
    }

    /// The partition and the spec of a delete file are those of its data file (W3).
    fn begin_path(&mut self, inventory: &Inventory, file: &FileFacts, path: &str) {
        if self.paths == 0 {
            path.clone_into(&mut self.first_path);
        }
        self.paths += 1;
        let data = inventory.number_of(path).map(|number| inventory.file(number));
        // A data file that is gone, or that another engine writes otherwise, cannot be compared with.
        self.rows_of_path = data.map_or(u64::MAX, |data| data.records);
        if data.is_some_and(|data| data.placement != file.placement) {
            self.faults.push(format!("its partition or spec is not that of {path}"));
        }
    }

    fn add(&mut self, position: i64) {
        self.rows += 1;
        self.lowest = Some(self.lowest.map_or(position, |lowest| lowest.min(position)));
        self.highest = Some(self.highest.map_or(position, |highest| highest.max(position)));
    }

    fn faults(mut self, file: &FileFacts, facts: &DeleteFacts) -> Vec<String> {
        if self.rows != file.records {
            self.faults.push(format!("{} rows, {} in the manifest", self.rows, file.records));
        }
        let range = self.lowest.zip(self.highest);
        let within = |(low, high): (i64, i64)| range.is_none_or(|(lowest, highest)| low <= lowest && high >= highest);
        if facts.positions.is_some_and(|bounds| !within(bounds)) {
            self.faults.push("bounds of pos are not true".to_owned());
        }
        if self.ours {
            self.own_faults(facts);
        } else if facts.paths.is_some() != facts.positions.is_some() {
            self.faults.push("bounds of file_path and pos do not come together".to_owned());
        }
        self.faults
    }

    /// Ours name one data file, byte for byte as its manifest does, and have exact bounds (W2, W4, F8).
    fn own_faults(&mut self, facts: &DeleteFacts) {
        match &facts.referenced {
            None => self.faults.push("referenced_data_file is not set".to_owned()),
            Some(referenced) if self.paths > 1 || *referenced != self.first_path => {
                self.faults
                    .push(format!("names {} and {} files instead of {referenced} alone", self.first_path, self.paths));
            }
            Some(_) => {}
        }
        let path = &self.first_path;
        if facts.paths.as_ref().is_none_or(|(lower, upper)| lower != path || upper != path) {
            self.faults.push("bounds of file_path are not exact".to_owned());
        }
        if facts.positions != self.lowest.zip(self.highest) {
            self.faults.push("bounds of pos are not exact".to_owned());
        }
    }
}
