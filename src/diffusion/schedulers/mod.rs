//! The schedulers, one file each.

pub mod ddim;
pub mod ddpm;
pub mod dpm_solver;
pub mod euler;
pub mod euler_ancestral;
pub mod heun;
pub mod unclip;

use super::scheduler::{SchedulerClass, SchedulerConfig, SchedulerOptions, keys_that_count};
use crate::json::Json;
use crate::{Error, Result};

/// Every scheduler. The first is the class of a configuration that names none.
pub const ALL: [SchedulerClass; 7] =
    [unclip::CLASS, ddpm::CLASS, ddim::CLASS, dpm_solver::CLASS, euler::CLASS, euler_ancestral::CLASS, heun::CLASS];

/// Their names in diffusers.
pub const CLASS_NAMES: [&str; ALL.len()] = {
    let mut names = [""; ALL.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = ALL[index].class_name;
        index += 1;
    }
    names
};

/// The class that diffusers calls so.
pub fn find(class_name: &str) -> Option<SchedulerClass> {
    ALL.into_iter().find(|class| class.class_name == class_name)
}

/// The class of a name on the command line, or `None` for `auto`.
///
/// # Errors
/// [`Error::Option`] if there is none of that name.
pub fn named(name: &str) -> Result<Option<SchedulerClass>> {
    if name == "auto" {
        return Ok(None);
    }
    let found = ALL.into_iter().find(|class| class.name == name);
    found.map(Some).ok_or_else(|| {
        let names = ALL.map(|class| class.name).join(", ");
        Error::Option { option: "scheduler", reason: format!("there is no scheduler {name:?}, only auto, {names}") }
    })
}

/// Parses and checks a model's `scheduler_config.json` for the class in `options` or, without one, its `own`: diffusers'
/// `Class.from_config`. `origin` is what messages call the file.
///
/// # Errors
/// [`Error::Config`] if a value is wrong, [`Error::Option`] if the class has no use for an option.
pub fn configure(
    text: &str,
    origin: &str,
    own: SchedulerClass,
    options: &SchedulerOptions,
) -> Result<Box<dyn SchedulerConfig>> {
    let class = options.class.unwrap_or(own);
    for option in options.given() {
        if !class.options.contains(&option) {
            let users: Vec<&str> = ALL.iter().filter(|class| class.options.contains(&option)).map(|c| c.name).collect();
            let reason = format!(
                "only the scheduler {} takes it, and this one is {}; leave it out, or choose that scheduler",
                users.join(" or "),
                class.name
            );
            return Err(Error::Option { option, reason });
        }
    }
    warn_of_other_betas(text, origin, own, class);
    (class.parse)(text, origin, options)
}

/// Warns where a configuration leaves the schedule of betas to its class, and another class has another one: the model
/// was not trained with that.
fn warn_of_other_betas(text: &str, origin: &str, own: SchedulerClass, class: SchedulerClass) {
    let is_unclip = |class: SchedulerClass| class.class_name == unclip::CLASS.class_name;
    if is_unclip(own) == is_unclip(class) {
        return;
    }
    let has_betas = |json: &Json| ["beta_schedule", "trained_betas"].iter().any(|key| json.get(key).is_some());
    if Json::parse(text).is_ok_and(|json| !has_betas(&keys_that_count(json))) {
        log::warn!(
            "{origin} has no beta_schedule, so that {} takes another one than {}, as in diffusers; the embeddings may \
             be noise",
            class.name,
            own.name
        );
    }
}
