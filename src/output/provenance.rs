//! What embeddings were made of, as JSON: hashes of the model's files and of the prompts, versions, settings.
//!
//! ```json
//! {"model": {"files": {"prior/config.json": "…"}, "name": "emoji", "sha256": "…"}, "shard": null, …}
//! ```
//!
//! It holds no time and no path of its own output: the same run gives the same bytes.

use super::formats::OutputFormat;
use super::options::Output;
use super::paths::shard_file;
use super::record::{METADATA_KEY, OutputRecord, PROVENANCE_KEY};
use super::shard::Shard;
use crate::files::Bytes;
use safetensors::SafeTensors;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The key of the shard, which is null in the provenance of a whole.
pub(crate) const SHARD_KEY: &str = "shard";

/// What a file beside an output adds to its name to be found as its provenance.
const SUFFIX: &str = ".provenance.json";

/// A provenance without its shard.
///
/// # Errors
/// If it is not an object.
pub(crate) fn without_shard(text: &str) -> serde_json::Result<Arc<str>> {
    let mut object: Map<String, Value> = serde_json::from_str(text)?;
    object.insert(SHARD_KEY.into(), Value::Null);
    Ok(serde_json::to_string(&object)?.into())
}

/// A provenance as its file holds it.
///
/// # Errors
/// If it is not JSON.
pub(crate) fn pretty(text: &str) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(&serde_json::from_str::<Value>(text)?)? + "\n")
}

/// The SHA-256 of a model's files in a provenance, by component and name.
pub fn files_of(provenance: &Value) -> BTreeMap<String, String> {
    let files = provenance.pointer("/model/files").and_then(Value::as_object).into_iter().flatten();
    files.filter_map(|(path, hash)| Some((path.clone(), hash.as_str()?.to_string()))).collect()
}

/// The hash of the whole model in a provenance.
pub fn model_hash(provenance: &Value) -> Option<&str> {
    provenance.pointer("/model/sha256")?.as_str()
}

/// The provenance of an output, if it has one: in a safetensors file, in a shard's record, or in a file with its name and
/// `.provenance.json`; of a folder also `provenance.json` in it. What cannot be read is none.
pub fn find(path: &Path) -> Option<Value> {
    let text = |path: PathBuf| std::fs::read_to_string(path).ok();
    let mut beside = path.components().as_path().as_os_str().to_os_string();
    beside.push(SUFFIX);
    let text = inside(path)
        .or_else(|| text(beside.into()))
        .or_else(|| if path.is_dir() { text(path.join(&SUFFIX[1..])) } else { None })?;
    serde_json::from_str(&text).ok()
}

fn inside(path: &Path) -> Option<String> {
    let format = OutputFormat::of_path(path).ok()?;
    let of_record = |text: &str| serde_json::from_str::<OutputRecord>(text).ok()?.provenance;
    match format {
        OutputFormat::Safetensors => {
            let bytes = Bytes::of_file(path).ok()?;
            let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
            let metadata = metadata.metadata().as_ref()?;
            metadata.get(PROVENANCE_KEY).cloned().or_else(|| of_record(metadata.get(METADATA_KEY)?))
        }
        format if format.sink().holds_record() && path.is_file() => of_record(&format.sink().read_record(path).ok()??),
        format => {
            let output = Output { path: path.to_path_buf(), format, arrays: super::Arrays::IMAGE };
            OutputRecord::read(&shard_file(&output, Shard::WHOLE)).ok()??.provenance
        }
    }
}
