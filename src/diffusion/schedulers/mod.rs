//! The schedulers, one file each.

pub mod ddpm;
pub mod unclip;
