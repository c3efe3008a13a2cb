//! A table of prompts to mutate.

use crate::cases::Outcome;
use crate::program::{outcome, program};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Two row groups of prompts and ids.
pub fn write(path: &Path) {
    let prompts: Vec<Option<String>> = (0..200).map(|row| (row % 7 > 0).then(|| format!("caption {row}"))).collect();
    let columns: [(&str, ArrayRef); 2] =
        [("prompt", Arc::new(StringArray::from(prompts))), ("id", Arc::new(Int64Array::from_iter_values(0..200)))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(100)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Embeds all rows that can be used, in a step each.
pub fn read(path: &Path, model: &Path) -> Outcome {
    let mut command = program(path.parent().unwrap());
    command.arg("-m").arg(model).arg("-f").arg(path).args(["--steps", "1", "--guidance-scale", "1"]);
    outcome(command.args(["--on-error", "skip", "--out", "embeds.npy"]))
}
