//! A hash that tells one model from another, so that a run is not resumed with another model.

use super::layout::{CONFIG, Layout, PREPROCESSOR_CONFIG, SCHEDULER_CONFIG, ZERO_IMAGE_EMBED};
use super::load::{Networks, Pipeline};
use crate::Result;
use crate::files::Folder;
use crate::tokenizer;
use crate::weights::checkpoint::weight_files;
use sha2::{Digest, Sha256};

/// Bytes of each sample of a large file.
const SAMPLE_BYTES: usize = 4096;

/// Samples of a large file. Another model's weights differ everywhere.
const SAMPLES: usize = 256;

/// Bytes of a large file that are in memory at a time.
const CHUNK_BYTES: usize = 16 << 20;

impl Pipeline {
    /// A hash of the model's configurations, vocabulary and weights, of the LoRAs and of the learned tokens. It does
    /// not depend on the model's path or name. With `zero_embed` it includes what the embedding of a black image is
    /// made of, which other runs' downloads may add or remove.
    ///
    /// By default it includes samples of large files; with `is_thorough` the whole of them, read at about 10 GB/s where
    /// they are in the page cache, and is another hash.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self, is_thorough: bool, zero_embed: bool) -> Result<String> {
        if self.networks == Networks::ImageEncoder {
            return self.image_identity(is_thorough);
        }
        let Layout { folder, prior, text_encoder, tokenizer, has_zero_image_embed, .. } = &self.layout;
        let Layout { scheduler, scheduler_class, .. } = &self.layout;
        let image_encoder = self.layout.zero_image_encoder().filter(|_| zero_embed);
        let encoder_weights = Some(text_encoder).filter(|_| self.networks == Networks::TextAndPrior);
        let mut hasher = Sha256::new();
        for component in [prior].into_iter().chain(encoder_weights).chain(image_encoder) {
            for name in weight_files(component)? {
                add_file(&mut hasher, component, &name, is_thorough)?;
            }
        }
        // No other file is read; a component from elsewhere may have those of others beside it.
        let networks = [prior, text_encoder].into_iter().chain(image_encoder).map(|folder| (folder, &[CONFIG][..]));
        let scheduler = scheduler.as_ref().filter(|_| self.kind().has_steps());
        let scheduler = scheduler.map(|folder| (folder, &[SCHEDULER_CONFIG][..]));
        let others = std::iter::once((tokenizer, &tokenizer::FILES[..])).chain(scheduler);
        for (component, names) in networks.chain(others) {
            for name in names.iter().filter(|name| component.has_file(name)) {
                add_file(&mut hasher, component, name, is_thorough)?;
            }
        }
        // It may come from the index, which is not among the files.
        if self.kind().has_steps() {
            hasher.update(scheduler_class.class_name);
        }
        for lora in &self.loras {
            hasher.update(lora.identity()?);
        }
        self.text.inversions.iter().for_each(|identity| hasher.update(identity));
        if zero_embed && image_encoder.is_none() && *has_zero_image_embed {
            add_file(&mut hasher, folder, ZERO_IMAGE_EMBED, is_thorough)?;
        }
        Ok(format!("{:.32x}", hasher.finalize()))
    }

    /// The same of the image encoder and the image processor alone.
    fn image_identity(&self, is_thorough: bool) -> Result<String> {
        let mut hasher = Sha256::new();
        if let Some(folder) = &self.layout.image_encoder {
            for name in weight_files(folder)? {
                add_file(&mut hasher, folder, &name, is_thorough)?;
            }
            add_file(&mut hasher, folder, CONFIG, is_thorough)?;
        }
        if let Some(folder) = &self.layout.image_processor {
            add_file(&mut hasher, folder, PREPROCESSOR_CONFIG, is_thorough)?;
        }
        Ok(format!("{:.32x}", hasher.finalize()))
    }
}

fn add_file(hasher: &mut Sha256, folder: &Folder, name: &str, is_thorough: bool) -> Result<()> {
    let bytes = folder.open(name)?;
    hasher.update((name.len() as u64).to_le_bytes());
    hasher.update(name);
    hasher.update((bytes.len() as u64).to_le_bytes());
    let apart = (bytes.len() / SAMPLES).max(SAMPLE_BYTES);
    bytes.chunks(apart).for_each(|part| hasher.update(&part[..part.len().min(SAMPLE_BYTES)]));
    if is_thorough {
        let mut checksum = crc32fast::Hasher::new();
        for (number, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
            checksum.update(chunk);
            let start = number * CHUNK_BYTES;
            bytes.release(start..start + chunk.len());
        }
        hasher.update(checksum.finalize().to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Component;
    use crate::weights::checkpoint::Placement;
    use crate::weights::precision::Precision;
    use std::fs;
    use std::path::Path;
    use tch::Device;
    use tempfile::TempDir;

    const PARTS: [&str; 5] = ["prior", "text_encoder", "tokenizer", "scheduler", "image_encoder"];

    fn copy() -> TempDir {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/kandinsky22");
        let target = TempDir::new().unwrap();
        for part in PARTS {
            fs::create_dir(target.path().join(part)).unwrap();
            for file in model.join(part).read_dir().unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), target.path().join(part).join(file.file_name())).unwrap();
            }
        }
        target
    }

    fn identity(folder: &TempDir, is_thorough: bool) -> String {
        let options = Placement { device: Device::Cpu, precision: Precision::F32 };
        Pipeline::open(folder.path(), options).unwrap().identity(is_thorough, true).unwrap()
    }

    #[test]
    fn copies_of_a_model_are_the_same_and_changed_ones_are_not() {
        let expected = [false, true].map(|is_thorough| identity(&copy(), is_thorough));
        assert_eq!([false, true].map(|is_thorough| identity(&copy(), is_thorough)), expected);
        let weights = "prior/diffusion_pytorch_model.safetensors";
        for file in [weights, "text_encoder/config.json", "scheduler/scheduler_config.json"] {
            let folder = copy();
            let path = folder.path().join(file);
            let mut bytes = fs::read(&path).unwrap();
            match bytes.last_mut() {
                Some(last) if file == weights => *last ^= 1,
                _ => bytes.push(b' '),
            }
            fs::write(&path, bytes).unwrap();
            assert_ne!(identity(&folder, false), expected[0], "{file}");
            assert_ne!(identity(&folder, true), expected[1], "{file}");
        }
    }

    #[test]
    fn a_replaced_component_counts_and_its_place_does_not() {
        let (folder, other) = (copy(), copy());
        let options = Placement { device: Device::Cpu, precision: Precision::F32 };
        let with = |replacement: Option<&Path>| {
            let replacements = replacement.map(|path| (Component::Prior, Folder::from(path))).into_iter().collect();
            let layout = Layout::find(&Folder::from(folder.path()), &replacements).unwrap();
            Pipeline::of_layout(layout, options).unwrap().identity(false, true).unwrap()
        };
        let prior = other.path().join("prior");
        assert_eq!(with(Some(&prior)), with(None), "the same prior from another place");
        fs::write(prior.join("notes.json"), "{}").unwrap();
        assert_eq!(with(Some(&prior)), with(None), "a file that is not read");
        let weights = prior.join("diffusion_pytorch_model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        assert_ne!(with(Some(&prior)), with(None));
    }

    #[test]
    fn the_index_may_choose_another_scheduler() {
        let folder = copy();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/kandinsky22");
        let index = fs::read_to_string(fixture.join("model_index.json")).unwrap();
        let with_index = |index: &str| {
            fs::write(folder.path().join("model_index.json"), index).unwrap();
            identity(&folder, false)
        };
        assert_eq!(with_index(&index), identity(&copy(), false));
        assert_ne!(with_index(&index.replace("UnCLIPScheduler", "DDPMScheduler")), identity(&copy(), false));
    }

    #[test]
    fn a_thorough_look_misses_nothing() {
        let folder = copy();
        let name = "prior/diffusion_pytorch_model.safetensors";
        let path = folder.path().join(name);
        // Longer than all samples together.
        let mut bytes = fs::read(&path).unwrap();
        bytes.resize(4 * SAMPLES * SAMPLE_BYTES, 0);
        let hashes = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            [false, true].map(|is_thorough| {
                let mut hasher = Sha256::new();
                add_file(&mut hasher, &Folder::from(folder.path()), name, is_thorough).unwrap();
                hasher.finalize()
            })
        };
        let before = hashes(&bytes);
        *bytes.last_mut().unwrap() = 1;
        let after = hashes(&bytes);
        assert_eq!(before[0], after[0]);
        assert_ne!(before[1], after[1]);
    }

    #[test]
    fn what_a_run_does_not_read_is_not_looked_at() {
        let folder = copy();
        let expected = identity(&folder, true);
        for name in ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin", "model.onnx"] {
            fs::write(folder.path().join("prior").join(name), "other").unwrap();
        }
        assert_eq!(identity(&folder, true), expected);
    }

    #[test]
    fn an_image_encoder_counts_where_it_is_needed() {
        let folder = copy();
        let options = Placement { device: Device::Cpu, precision: Precision::F32 };
        let identities = || {
            let pipeline = Pipeline::open(folder.path(), options).unwrap();
            [true, false].map(|zero_embed| pipeline.identity(false, zero_embed).unwrap())
        };
        let with = identities();
        fs::remove_dir_all(folder.path().join("image_encoder")).unwrap();
        let without = identities();
        assert_ne!(with[0], without[0]);
        assert_eq!(with[1], without[1]);
    }
}
