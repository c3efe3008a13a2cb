//! The schedulers, one file each.

pub mod ddpm;
pub mod unclip;

use super::scheduler::SchedulerClass;

/// Every scheduler. The first is the class of a configuration that names none.
pub const ALL: [SchedulerClass; 2] = [unclip::CLASS, ddpm::CLASS];

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
