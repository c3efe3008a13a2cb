//! Finds a model and the components from elsewhere: from names to folders.
//!
//! ```text
//! name ──► plan over the cache ──► complete? ──► folder
//!                                      │ no         ▲
//!                                      ▼            │
//!              listing of the hub ──► plan ──► download, check, link
//! ```
//!
//! [`name`] parses the names of models, [`source`] those of components, [`plan`] lists the files that a run needs,
//! [`cache`] keeps them, [`client`] has the hub's routes, [`retry`] repeats requests, [`download`] downloads a file,
//! [`remote`] a commit, and [`fetch`] finds a model. [`dataset`] finds files of rows, of which [`tree`] is the list. The
//! network is used only to download files.
//!
//! The cache is shared with Python's huggingface_hub; its layout is hf-hub's. The transfer is our own: hf-hub 0.5 has no
//! time-outs, hashes or rate limits, and 1.0 does not resume over plain HTTP.

mod cache;
mod client;
mod dataset;
mod download;
mod etag;
mod failure;
mod fetch;
mod model;
mod name;
mod pace;
mod plan;
pub mod presets;
mod progress;
mod proxy;
mod rate_limit;
mod remote;
mod retry;
mod settings;
mod source;
mod tree;

pub use dataset::{DatasetFiles, DatasetPath, Datasets};
pub use fetch::{Found, Hub};
pub use model::Model;
pub use name::{HubName, ModelName};
pub use plan::{Needs, Wish};
pub use progress::DownloadProgress;
pub use settings::HubOptions;
pub use source::{ComponentName, ModelSource};
