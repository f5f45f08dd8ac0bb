//! From columns in memory to files of a table: data files, position-delete files, history files.

mod data_file;
mod delete_file;
mod location;
mod partition;
mod statistics;

pub use data_file::{DataFileWriter, FileSchema, NewFile};
pub use delete_file::{DeletedFrom, read_delete_file, write_delete_file};
pub use location::{data_location, delete_location};
pub use partition::{PartitionedRows, Partitioner};

pub(crate) use data_file::parquet_problem;
