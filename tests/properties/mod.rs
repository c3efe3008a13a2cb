//! What holds for any input: nothing panics, whatever the bytes, and encodings have their form.

mod rows;

use crate::config;
use crate::diffusion::scheduler::Scheduler;
use crate::diffusion::schedulers::ddpm::{DdpmConfig, DdpmScheduler, TimestepSpacing};
use crate::diffusion::schedulers::unclip::{UnclipConfig, UnclipScheduler};
use crate::files::Folder;
use crate::nn::precision::Precision;
use crate::nn::prior::{PriorConfig, PriorTransformer};
use crate::tokenizer::Tokenizer;
use crate::weights::checkpoint::{Checkpoint, Placement};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::Device;

const PLACEMENT: Placement = Placement { device: Device::Cpu, precision: Precision::F32 };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::open(&fixtures().join("clip_tokenizer"), 77).unwrap())
}

/// A small checkpoint and its configuration, of which the tests break copies.
fn checkpoint() -> &'static (Vec<u8>, PriorConfig) {
    static CHECKPOINT: OnceLock<(Vec<u8>, PriorConfig)> = OnceLock::new();
    CHECKPOINT.get_or_init(|| {
        let folder = fixtures().join("pipelines/kandinsky22/prior");
        let bytes = std::fs::read(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
        (bytes, config::read(&Folder::from(&folder), "config.json").unwrap())
    })
}

fn load(bytes: &[u8]) -> anyhow::Result<PriorTransformer> {
    let folder = tempfile::TempDir::new()?;
    std::fs::write(folder.path().join("model.safetensors"), bytes)?;
    let checkpoint_file = Checkpoint::open_folder(&Folder::from(folder.path()))?;
    let config = &checkpoint().1;
    checkpoint_file.build("", PLACEMENT, |weights| PriorTransformer::load(weights, config))
}

/// Small torch files of every format, of which the tests break copies.
fn torch_files() -> &'static Vec<Vec<u8>> {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let read = |name| std::fs::read(fixtures().join("checkpoints").join(name)).unwrap();
        ["zip.bin", "protocol_4.pt", "legacy.bin", "nested.ckpt"].map(read).into()
    })
}

/// Opens a torch file and reads all that it holds.
fn read_torch(bytes: &[u8]) -> anyhow::Result<()> {
    let folder = tempfile::TempDir::new()?;
    std::fs::write(folder.path().join("model.bin"), bytes)?;
    let checkpoint = Checkpoint::open_file(&Folder::from(folder.path()), "model.bin")?;
    checkpoint.names().try_for_each(|name| checkpoint.read(name).map(drop))
}

/// Where the pickle of a torch file that is no archive, or the one of an archive, may begin and end.
fn pickle_range(bytes: &[u8]) -> std::ops::Range<usize> {
    let start = bytes.windows(2).position(|pair| pair == b"\x80\x02" || pair == b"\x80\x04").unwrap_or(0);
    start..bytes.len().min(start + 4000)
}

#[test]
fn a_torch_file_cut_off_anywhere_is_refused() {
    for bytes in torch_files() {
        for end in 0..bytes.len() {
            let error = read_torch(&bytes[..end]).expect_err("a part of a file was read");
            assert!(error.is::<crate::error::BadInput>(), "{end}: {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_torch_file_with_changed_bytes_is_read_or_refused(
        file in 0..4_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        anywhere in any::<bool>(),
    ) {
        let mut bytes = torch_files()[file].clone();
        let range = if anywhere { 0..bytes.len() } else { pickle_range(&bytes) };
        for (at, byte) in changes {
            bytes[range.start + at.index(range.len())] = byte;
        }
        if let Err(error) = read_torch(&bytes) {
            prop_assert!(error.is::<crate::error::BadInput>(), "{error}");
        }
    }

    #[test]
    fn any_bytes_are_a_pickle_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = crate::weights::pickle::Pickle::read(&bytes);
    }
}

proptest! {
    #[test]
    fn any_text_encodes_to_start_text_end_and_padding(text in any::<String>()) {
        let encoding = tokenizer().encode(&text).unwrap();
        prop_assert_eq!(encoding.ids.len(), 77);
        prop_assert_eq!(encoding.ids[0], 49406);
        prop_assert_eq!(encoding.ids[encoding.len - 1], 49407);
        prop_assert!(encoding.ids[encoding.len..].iter().all(|&id| id == 49407));
        prop_assert!(encoding.removed.is_none() || encoding.len == 77);
    }

    #[test]
    fn a_checkpoint_with_a_flipped_header_loads_or_is_refused(flips in prop::collection::vec((0..4000_usize, any::<u8>()), 1..4)) {
        let mut bytes = checkpoint().0.clone();
        for (at, byte) in flips {
            bytes[at] = byte;
        }
        let _ = load(&bytes);
    }

    #[test]
    fn a_checkpoint_of_any_length_is_refused(cut in 0.0..0.999_f64) {
        let bytes = &checkpoint().0;
        let end = (bytes.len() as f64 * cut) as usize;
        prop_assert!(load(&bytes[..end]).is_err());
    }

    #[test]
    fn any_bytes_are_a_configuration_or_are_refused(bytes in any::<String>()) {
        let _ = config::parse::<PriorConfig>(&bytes, "config.json");
    }

    #[test]
    fn ddpm_timesteps_fall_within_the_training(
        train in 1..2000_i64, steps in 1..2000_usize, spacing in 0..3_usize, steps_offset in 0..3_i64
    ) {
        let timestep_spacing =
            [TimestepSpacing::Linspace, TimestepSpacing::Leading, TimestepSpacing::Trailing][spacing];
        let steps_offset = steps_offset.min(train - 1);
        let config =
            DdpmConfig { num_train_timesteps: train, timestep_spacing, steps_offset, ..DdpmConfig::default() };
        let mut scheduler = DdpmScheduler::new(&config).unwrap();
        let is_possible = scheduler.set_timesteps(steps).is_ok();
        prop_assert!(is_possible || steps > config.max_steps());
        if is_possible {
            let timesteps = scheduler.timesteps();
            prop_assert_eq!(timesteps.len(), steps);
            prop_assert!(timesteps[0] < train && timesteps[steps - 1] >= 0);
            prop_assert!(timesteps.windows(2).all(|pair| pair[0] > pair[1]));
        }
    }

    #[test]
    fn timesteps_fall_from_the_last_to_zero(train in 1..2000_i64, steps in 1..2000_usize) {
        let config = UnclipConfig { num_train_timesteps: train, ..UnclipConfig::default() };
        let mut scheduler = UnclipScheduler::new(&config).unwrap();
        if scheduler.set_timesteps(steps).is_ok() {
            let timesteps = scheduler.timesteps();
            prop_assert_eq!(timesteps.len(), steps);
            prop_assert_eq!(timesteps[0], train - 1);
            prop_assert!(timesteps.windows(2).all(|pair| pair[0] > pair[1]));
            prop_assert!(steps == 1 || timesteps[steps - 1] == 0);
        } else {
            prop_assert!(steps as i64 > train);
        }
    }
}
