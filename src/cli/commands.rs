//! The commands beside embedding.

use super::context::Context;
#[cfg(feature = "serve")]
use super::serve;
use super::{convert, download, draw, edit, encode_image, help, info, interpolate, merge, models, rows, score};
use anyhow::Result;
use clap::Subcommand;

/// Makes the list of commands. Each is a module with `Args`, whose doc comment is its help, and with `run`, which
/// returns the exit code.
macro_rules! commands {
    ($($(#[$attribute:meta])* $name:ident => $module:ident,)+) => {
        /// A command.
        #[derive(Debug, Subcommand)]
        pub(super) enum Command {
            $($(#[$attribute])* $name($module::Args),)+
        }

        impl Command {
            /// Runs the command and returns the exit code.
            pub(super) fn run(&self, context: &Context) -> Result<u8> {
                match self {
                    $($(#[$attribute])* Self::$name(args) => $module::run(args, context),)+
                }
            }
        }
    };
}

// A new command is a file (declared in `mod.rs`) and a line here.
commands! {
    EncodeImage => encode_image,
    Rows => rows,
    Models => models,
    Download => download,
    Info => info,
    Convert => convert,
    Merge => merge,
    Interpolate => interpolate,
    Edit => edit,
    Score => score,
    Draw => draw,
    #[cfg(feature = "serve")]
    Serve => serve,
    Help => help,
}
