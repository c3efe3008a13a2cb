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
//! routes, [`download`] the way of one file, [`fetch`] that of a model. Nothing here touches the network, or what TLS
//! needs, unless a file is to be downloaded.

pub mod builtin;
mod cache;
mod candidates;
mod client;
mod digest;
mod download;
mod failure;
mod fetch;
pub mod layout;
mod name;
mod plan;
pub mod presets;
mod settings;

pub use candidates::is_weights;
pub use download::Watcher;
pub use fetch::{Hub, Model, ModelFile};
pub use name::{HubName, ModelName};
pub use plan::Needs;
pub use settings::HubOptions;
