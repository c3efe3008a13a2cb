//! Opens the files in `tests/fixtures` and compares tensors.

use crate::config::{self, Config};
use crate::error::Result;
use crate::files::Folder;
use crate::weights::checkpoint::{Checkpoint, Placement, Weights};
use crate::weights::precision::Precision;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const PLACEMENT: Placement = Placement { device: Device::Cpu, precision: Precision::F32 };

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The `.safetensors` files in a folder of fixtures; never none.
pub fn files_in(folder: &str) -> Vec<PathBuf> {
    let entries = fixtures().join(folder).read_dir().unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    assert!(!files.is_empty(), "no fixtures in {folder}");
    files
}

/// One file of inputs, expected outputs and, for a module, its weights and configuration.
pub struct Fixture {
    pub path: PathBuf,
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Fixture {
    pub fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = Tensor::read_safetensors(path).unwrap().into_iter().collect();
        let metadata = metadata.metadata().clone().unwrap_or_default();
        Self { path: path.to_path_buf(), tensors, metadata }
    }

    pub fn name(&self) -> String {
        self.path.file_stem().unwrap().to_string_lossy().into_owned()
    }

    pub fn metadata(&self, key: &str) -> &str {
        &self.metadata[key]
    }

    pub fn config<C: Config>(&self) -> C {
        config::parse(self.metadata("config"), &self.name()).unwrap()
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub fn tensor(&self, name: &str) -> &Tensor {
        self.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.name()))
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// Builds the module whose weights the file holds.
    pub fn build<M>(&self, load: impl Fn(&Weights) -> Result<M>) -> M {
        let folder = Folder::from(self.path.parent().unwrap());
        let checkpoint = Checkpoint::open_file(&folder, &format!("{}.safetensors", self.name())).unwrap();
        checkpoint.build("weights.", PLACEMENT, load).unwrap()
    }

    /// Asserts that `actual` is what the reference gave as `name`.
    pub fn assert_close(&self, name: &str, actual: &Tensor, tolerance: f64) {
        let error = relative_error(actual, self.tensor(name));
        assert!(error <= tolerance, "{} {name}: off by {error:.1e} of the largest value", self.name());
    }
}

/// The largest difference, relative to the largest expected value; where that is 0, the difference itself.
pub fn relative_error(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.size(), expected.size());
    if expected.numel() == 0 {
        return 0.0;
    }
    let largest = |tensor: &Tensor| tensor.to_kind(Kind::Double).abs().max().double_value(&[]);
    let (difference, scale) = (largest(&(actual - expected)), largest(expected));
    if scale > 0.0 { difference / scale } else { difference }
}
