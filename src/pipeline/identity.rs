//! A hash that tells one model from another, so that a run is not resumed with another model.

use super::layout::{
    CONFIG, IMAGE_ENCODER, IMAGE_PROCESSOR, Layout, PREPROCESSOR_CONFIG, PRIOR, SCHEDULER, SCHEDULER_CONFIG,
    TEXT_ENCODER, TOKENIZER, ZERO_IMAGE_EMBED,
};
use super::load::Pipeline;
use super::parameters::Networks;
use crate::Result;
use crate::error::Component;
use crate::files::Folder;
use crate::tokenizer;
use crate::weights::checkpoint::weight_files;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

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
        let Layout { scheduler_class, .. } = &self.layout;
        let mut hasher = Sha256::new();
        for (_, folder, name) in self.files(zero_embed)? {
            add_file(&mut hasher, folder, &name, is_thorough)?;
        }
        if self.networks == Networks::ImageEncoder {
            return Ok(format!("{:.32x}", hasher.finalize()));
        }
        // It may come from the index, which is not among the files.
        if self.kind().has_steps() {
            hasher.update(scheduler_class.class_name);
        }
        for lora in &self.loras {
            hasher.update(lora.identity()?);
        }
        self.text.inversions.iter().for_each(|identity| hasher.update(identity));
        if let Some(folder) = self.zero_embed_folder(zero_embed) {
            add_file(&mut hasher, folder, ZERO_IMAGE_EMBED, is_thorough)?;
        }
        Ok(format!("{:.32x}", hasher.finalize()))
    }

    /// The SHA-256 of each file that a run reads, by its component and name: `prior/config.json`. With `zero_embed`
    /// those too that the embedding of a black image is made of.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn file_hashes(&self, zero_embed: bool) -> Result<BTreeMap<String, String>> {
        let files =
            self.files(zero_embed)?.into_iter().map(|(part, folder, name)| (format!("{part}/{name}"), folder, name));
        let zero = self.zero_embed_folder(zero_embed);
        let zero = zero.map(|folder| (ZERO_IMAGE_EMBED.to_string(), folder, ZERO_IMAGE_EMBED.to_string()));
        files.chain(zero).map(|(path, folder, name)| Ok((path, file_hash(folder, &name)?))).collect()
    }

    /// The SHA-256 of each file of a component's weights.
    ///
    /// # Errors
    /// As [`Pipeline::file_hashes`].
    pub fn weight_hashes(&self, component: Component) -> Result<BTreeSet<String>> {
        let Some(folder) = self.layout.folder_of(component) else { return Ok(BTreeSet::new()) };
        weight_files(folder)?.iter().map(|name| file_hash(folder, name)).collect()
    }

    /// Hashes of the LoRAs, and of the learned tokens with their names.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn addition_hashes(&self) -> Result<(Vec<String>, Vec<String>)> {
        let hash = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let loras = self.loras.iter().map(|lora| Ok(hash(lora.identity()?)));
        Ok((loras.collect::<Result<_>>()?, self.text.inversions.clone()))
    }

    /// The files of weights, configurations and vocabulary that a run reads: the component, its folder, the name.
    ///
    /// # Errors
    /// If weights are missing.
    fn files(&self, zero_embed: bool) -> Result<Vec<(&'static str, &Folder, String)>> {
        let Layout { prior, text_encoder, tokenizer, image_encoder, image_processor, scheduler, .. } = &self.layout;
        let image_encoder = match self.networks {
            Networks::ImageEncoder => image_encoder.as_ref(),
            _ => self.layout.zero_image_encoder().filter(|_| zero_embed),
        };
        let networks = match self.networks {
            Networks::ImageEncoder => vec![],
            _ => vec![(&PRIOR, prior), (&TEXT_ENCODER, text_encoder)],
        };
        let networks = networks.into_iter().chain(image_encoder.map(|folder| (&IMAGE_ENCODER, folder)));
        let mut files = Vec::new();
        for (part, folder) in networks.clone() {
            if part.component != Component::TextEncoder || self.networks == Networks::TextAndPrior {
                files.extend(weight_files(folder)?.into_iter().map(|name| (part.names[1], folder, name)));
            }
        }
        // No other file is read; a component from elsewhere may have those of others beside it.
        let networks = networks.map(|(part, folder)| (part.names[1], folder, &[CONFIG][..]));
        let others: Vec<(&'static str, &Folder, &[&str])> = match (self.networks, image_processor) {
            (Networks::ImageEncoder, Some(folder)) => vec![(IMAGE_PROCESSOR[0], folder, &[PREPROCESSOR_CONFIG])],
            (Networks::ImageEncoder, None) => vec![],
            _ => {
                let scheduler = scheduler.as_ref().filter(|_| self.kind().has_steps());
                let scheduler = scheduler.map(|folder| (SCHEDULER.names[1], folder, &[SCHEDULER_CONFIG][..]));
                std::iter::once((TOKENIZER.names[1], tokenizer, &tokenizer::FILES[..])).chain(scheduler).collect()
            }
        };
        for (part, folder, names) in networks.chain(others) {
            let names = names.iter().filter(|name| folder.has_file(name));
            files.extend(names.map(|name| (part, folder, name.to_string())));
        }
        Ok(files)
    }

    /// The folder with the stored embedding of a black image, where it takes the place of an image encoder.
    fn zero_embed_folder(&self, zero_embed: bool) -> Option<&Folder> {
        let Layout { folder, has_zero_image_embed, .. } = &self.layout;
        (zero_embed && self.layout.zero_image_encoder().is_none() && *has_zero_image_embed).then_some(folder)
    }
}

/// The SHA-256 of a file, in hexadecimal.
fn file_hash(folder: &Folder, name: &str) -> Result<String> {
    let bytes = folder.open(name)?;
    let mut hasher = Sha256::new();
    for (number, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
        hasher.update(chunk);
        let start = number * CHUNK_BYTES;
        bytes.release(start..start + chunk.len());
    }
    Ok(format!("{:x}", hasher.finalize()))
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
    fn every_file_that_is_read_has_its_hash() {
        let folder = copy();
        let options = Placement { device: Device::Cpu, precision: Precision::F32 };
        let pipeline = Pipeline::open(folder.path(), options).unwrap();
        let hashes = pipeline.file_hashes(false).unwrap();
        for (path, hash) in &hashes {
            let expected = format!("{:x}", Sha256::digest(fs::read(folder.path().join(path)).unwrap()));
            assert_eq!(*hash, expected, "{path}");
        }
        let weights = "text_encoder/model.safetensors";
        assert!(hashes.contains_key("prior/config.json") && hashes.contains_key("tokenizer/vocab.json"));
        let weights_of = |component| pipeline.weight_hashes(component).unwrap();
        assert_eq!(weights_of(Component::TextEncoder), BTreeSet::from([hashes[weights].clone()]));
        let more = pipeline.file_hashes(true).unwrap();
        let weights = "image_encoder/model.safetensors";
        assert_eq!(weights_of(Component::ImageEncoder), BTreeSet::from([more[weights].clone()]));
        assert!(more.len() > hashes.len() && more.contains_key("image_encoder/config.json"));
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
