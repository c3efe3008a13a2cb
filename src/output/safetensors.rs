//! safetensors: a JSON header, then the arrays one after the other.

use super::Arrays;
use super::shard::{METADATA_KEY, ShardRecord};
use super::store::Store;
use anyhow::Result;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::io::Write;

pub(crate) fn write(store: &Store, arrays: Arrays, shard: Option<&ShardRecord>, output: &mut dyn Write) -> Result<()> {
    let bytes = usize::try_from(store.array_bytes())?;
    let dtype = store.dtype.safetensors_dtype();
    let shape = vec![usize::try_from(store.rows)?, store.dim];
    let tensors = arrays.names().iter().enumerate().map(|(place, array)| {
        let data_offsets = (place * bytes, (place + 1) * bytes);
        (array.name().to_string(), TensorInfo { dtype, shape: shape.clone(), data_offsets })
    });
    let metadata = match shard {
        Some(record) => Some(HashMap::from([(METADATA_KEY.to_string(), serde_json::to_string(record)?)])),
        None => None,
    };
    let mut header = serde_json::to_vec(&Metadata::new(metadata, tensors.collect())?)?;
    // The format aligns the numbers to 8 bytes with spaces.
    header.resize(header.len().next_multiple_of(8), b' ');
    output.write_all(&(header.len() as u64).to_le_bytes())?;
    output.write_all(&header)?;
    arrays.names().iter().try_for_each(|array| store.copy_values(*array, 0, store.rows, output))
}
