//! Hidden partitioning: which rows of a batch go into which partition.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, StructArray, UInt32Array};
use arrow_row::{OwnedRow, RowConverter, SortField};
use iceberg::arrow::arrow_struct_to_literal;
use iceberg::spec::{Literal, PartitionSpecRef, SchemaRef, Struct, StructType};
use iceberg::transform::{BoxedTransformFunction, create_transform_function};

use crate::error::Problem;

/// Computes partitions by one spec.
pub struct Partitioner {
    spec: PartitionSpecRef,
    /// Index of each field's source column in the batch, and its transform.
    fields: Vec<(usize, BoxedTransformFunction)>,
    partition_type: StructType,
}

/// The rows of one partition, in their order.
pub struct PartitionedRows {
    pub partition: Struct,
    /// `None`: all rows.
    pub rows: Option<UInt32Array>,
}

impl Partitioner {
    pub fn new(spec: PartitionSpecRef, schema: &SchemaRef) -> Result<Self, Problem> {
        let failed = |error: iceberg::Error| Problem::halt("PARTITION", "", error.to_string(), "correct the spec");
        let fields = spec.fields().iter().map(|field| {
            let column = schema.as_struct().fields().iter().position(|column| column.id == field.source_id);
            let nested = || Problem::halt("PARTITION", &field.name, "partition column is nested", "choose another");
            Ok((column.ok_or_else(nested)?, create_transform_function(&field.transform).map_err(failed)?))
        });
        let fields = fields.collect::<Result<_, Problem>>()?;
        let partition_type = spec.partition_type(schema).map_err(failed)?;
        Ok(Self { spec, fields, partition_type })
    }

    pub fn spec_id(&self) -> i32 {
        self.spec.spec_id()
    }

    /// Splits a batch whose columns are the schema's top-level columns. Partitions come in the order of their first row.
    pub fn split(&self, batch: &RecordBatch) -> Result<Vec<PartitionedRows>, Problem> {
        if self.fields.is_empty() {
            return Ok(vec![PartitionedRows { partition: Struct::empty(), rows: None }]);
        }
        let values = self.fields.iter().map(|(column, transform)| transform.transform(batch.column(*column).clone()));
        let values: Vec<ArrayRef> = values.collect::<iceberg::Result<_>>().map_err(|error| failed(&error))?;
        let (first_rows, rows) = group(&values)?;
        let tuples = self.tuples(values)?;
        let mut partitions = rows.into_iter().zip(first_rows).map(|(rows, first)| PartitionedRows {
            partition: tuples[first as usize].clone(),
            rows: Some(UInt32Array::from(rows)),
        });
        match partitions.len() {
            1 => Ok(partitions.next().map(|all| PartitionedRows { rows: None, ..all }).into_iter().collect()),
            _ => Ok(partitions.collect()),
        }
    }

    fn tuples(&self, values: Vec<ArrayRef>) -> Result<Vec<Struct>, Problem> {
        let arrow = iceberg::arrow::type_to_arrow_type(&iceberg::spec::Type::Struct(self.partition_type.clone()));
        let arrow_schema::DataType::Struct(fields) = arrow.map_err(|error| failed(&error))? else {
            unreachable!("a partition type is a struct")
        };
        let values = values.into_iter().zip(&fields).map(|(values, field)| {
            let cast = arrow_cast::cast(&values, field.data_type());
            cast.map_err(|error| Problem::halt("PARTITION", field.name(), error.to_string(), "report this"))
        });
        let values = values.collect::<Result<Vec<_>, _>>()?;
        let tuples: ArrayRef = Arc::new(StructArray::new(fields, values, None));
        let literals = arrow_struct_to_literal(&tuples, &self.partition_type).map_err(|error| failed(&error))?;
        Ok(literals
            .into_iter()
            .map(|literal| match literal {
                Some(Literal::Struct(tuple)) => tuple,
                _ => Struct::empty(),
            })
            .collect())
    }
}

/// First row, and all rows, of each distinct tuple.
fn group(values: &[ArrayRef]) -> Result<(Vec<u32>, Vec<Vec<u32>>), Problem> {
    let failed = |error: arrow_schema::ArrowError| Problem::halt("PARTITION", "", error.to_string(), "report this");
    let fields = values.iter().map(|values| SortField::new(values.data_type().clone())).collect();
    let rows = RowConverter::new(fields).and_then(|converter| converter.convert_columns(values)).map_err(failed)?;
    let mut known: HashMap<OwnedRow, usize> = HashMap::new();
    let (mut first_rows, mut members): (Vec<u32>, Vec<Vec<u32>>) = (Vec::new(), Vec::new());
    let mut last: Option<(usize, usize)> = None;
    for number in 0..rows.num_rows() {
        let row = u32::try_from(number).expect("a batch has less than 2^32 rows");
        let same = last.filter(|(previous, _)| rows.row(*previous) == rows.row(number)).map(|(_, group)| group);
        let group = same.unwrap_or_else(|| {
            *known.entry(rows.row(number).owned()).or_insert_with(|| {
                first_rows.push(row);
                members.push(Vec::new());
                members.len() - 1
            })
        });
        members[group].push(row);
        last = Some((number, group));
    }
    Ok((first_rows, members))
}

fn failed(error: &iceberg::Error) -> Problem {
    Problem::halt("PARTITION", "", error.to_string(), "choose another transform for the table")
}
