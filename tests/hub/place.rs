//! A working folder with a server, a cache, and repositories made of the small models.

use crate::common::{Workplace, assert_done, model, read_npy};
use crate::server::{COMMIT, Repository, Server};
use assert_cmd::Command;
use ndarray::Array2;
use std::fs;
use std::path::{Path, PathBuf};

/// The repository of most tests.
pub const REPOSITORY: &str = "owner/kandinsky";

pub struct Place {
    pub work: Workplace,
    pub server: Server,
}

impl Place {
    /// With [`REPOSITORY`] on the server: the small model, and a decoder that no run needs.
    pub fn new() -> Self {
        let place = Self { work: Workplace::new(), server: Server::start() };
        place.server.put(REPOSITORY, small_model());
        fs::create_dir(place.work.path("hf")).unwrap();
        place
    }

    /// The binary without options, with the test's cache and server and without the user's environment.
    pub fn command(&self) -> Command {
        self.prepared(self.work.bare())
    }

    /// The same, subject to file permissions even as root.
    pub fn command_without_rights(&self) -> Command {
        use std::os::unix::fs::MetadataExt;
        if fs::metadata(self.work.path("hf")).unwrap().uid() != 0 {
            return self.command();
        }
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-dac_override,-dac_read_search", env!("CARGO_BIN_EXE_prior-embed")]);
        command.current_dir(self.work.path(""));
        self.prepared(command)
    }

    fn prepared(&self, mut command: Command) -> Command {
        let names = std::env::vars().map(|(name, _)| name);
        for name in names.filter(|name| name.starts_with("HF_") || name.to_lowercase().ends_with("_proxy")) {
            command.env_remove(name);
        }
        command.env_remove("TRANSFORMERS_OFFLINE").env_remove("SSL_CERT_FILE").env_remove("REQUESTS_CA_BUNDLE");
        command.env("HF_HOME", self.work.path("hf")).env("HF_ENDPOINT", self.server.endpoint());
        command
    }

    /// A run that writes `e.npy`.
    pub fn embed(&self, model: &str) -> Command {
        let mut command = self.command();
        command.args(["-p", "a red apple", "--steps", "3", "--out", "e.npy", "--overwrite", "--model", model]);
        command
    }

    /// The embeddings of such a run.
    pub fn embeds(&self, command: &mut Command) -> Array2<f32> {
        assert_done(command);
        read_npy(&fs::read(self.work.path("e.npy")).unwrap())
    }

    /// `prior-embed download`.
    pub fn download(&self, model: &str) -> Command {
        let mut command = self.command();
        command.args(["download", model]);
        command
    }

    /// [`REPOSITORY`]'s folder in the cache.
    pub fn cache(&self) -> PathBuf {
        self.work.path("hf/hub/models--owner--kandinsky")
    }

    /// A file of [`REPOSITORY`] in the cache.
    pub fn snapshot(&self, path: &str) -> PathBuf {
        self.cache().join("snapshots").join(COMMIT).join(path)
    }

    /// The unfinished downloads in the cache.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        let entries = self.cache().join("blobs").read_dir().into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.to_str().unwrap().ends_with("incomplete")).collect()
    }
}

/// The small model as a repository, with a decoder beside it.
pub fn small_model() -> Repository {
    let mut repository = Repository::of_folder(&model());
    let decoder = ["unet/diffusion_pytorch_model.safetensors", "movq/config.json", "README.md"];
    repository.files.extend(decoder.map(|path| (path.to_string(), b"not needed".to_vec())));
    repository
}

/// One of the other small models.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines").join(name)
}
