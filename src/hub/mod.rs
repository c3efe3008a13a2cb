//! Model name to a folder, on disk or inside the program, and where in that folder the components of a prior pipeline lie.
//!
//! ```text
//! name ──► plan over the cache ──► all there? ──► folder
//!                                     │ no            ▲
//!                                     ▼               │
//!             listing of the hub ──► plan ──► download, check, link
//! ```
//!
//! [`name`] is what a person types, [`plan`] which files a run needs, [`cache`] where they are kept, [`client`] the hub's
//! routes, [`patience`] how long to wait for it, [`download`] the way of one file, [`remote`] that of a commit, [`fetch`] that
//! of a model. Nothing here touches the network, or what TLS needs, unless a file is to be downloaded.
//!
//! hf-hub says where in the cache things lie; the transfer is ours, because its own neither checks hashes, nor goes on after
//! another process, nor lets two of them want the same file, and it writes a branch's commit in place.

mod cache;
mod client;
mod digest;
mod download;
mod failure;
mod fetch;
mod name;
mod pace;
mod patience;
mod plan;
pub mod presets;
mod proxy;
mod remote;
mod settings;

pub use crate::pipeline::builtin;
pub use crate::pipeline::layout::ModelFile;
pub use download::Watcher;
pub use fetch::{Hub, Model};
pub use name::{HubName, ModelName};
pub use plan::{Needs, Wish};
pub use settings::HubOptions;
