//! What holds for any input: nothing panics, whatever the bytes, and encodings and timesteps have their form.

mod configurations;
mod rows;
mod weights;

use crate::diffusion::scheduler::{Scheduler, SchedulerConfig};
use crate::diffusion::schedulers::ddpm::{DdpmConfig, DdpmScheduler};
use crate::diffusion::schedulers::unclip::{UnclipConfig, UnclipScheduler};
use crate::diffusion::spacing::TimestepSpacing;
use crate::tokenizer::Tokenizer;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Runs `test` on `cases` values, and asserts that the share of those for which it is true is in a range: a generator
/// of files that are all refused at the first byte would test little, and so would one of files that are all fine. The
/// inputs are random: the range leaves room for chance.
fn check_share<S: Strategy>(
    cases: u32,
    share: std::ops::RangeInclusive<f64>,
    strategy: S,
    test: impl Fn(S::Value) -> Result<bool, TestCaseError>,
) {
    let (all, accepted) = (Cell::new(0_u32), Cell::new(0_u32));
    let run = |value| {
        let is_accepted = test(value)?;
        all.set(all.get() + 1);
        accepted.set(accepted.get() + u32::from(is_accepted));
        Ok(())
    };
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    TestRunner::new(config).run(&strategy, run).unwrap_or_else(|error| panic!("{error}"));
    let found = f64::from(accepted.get()) / f64::from(all.get());
    eprintln!("{found:.2} of {cases} inputs are accepted");
    assert!(share.contains(&found), "{found:.2} of the inputs are accepted, not {share:?}");
}

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::open(&fixtures().join("clip_tokenizer"), 77).unwrap())
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
            prop_assert!(timesteps[0] < train as f64 && timesteps[steps - 1] >= 0.0);
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
            prop_assert_eq!(timesteps[0], (train - 1) as f64);
            prop_assert!(timesteps.windows(2).all(|pair| pair[0] > pair[1]));
            prop_assert!(steps == 1 || timesteps[steps - 1] == 0.0);
        } else {
            prop_assert!(steps as i64 > train);
        }
    }
}
