//! What every command is given beside its own options.

use super::screen::Screen;
use crate::hub::HubOptions;
use std::time::Instant;

/// The process' surroundings, and the options that all commands share.
pub(super) struct Context {
    pub(super) screen: Screen,
    /// Where downloaded models are kept, and whether there is a network.
    pub(super) hub: HubOptions,
    /// When the process started.
    pub(super) start: Instant,
    /// Describes all options and commands.
    pub(super) command: fn() -> clap::Command,
}
