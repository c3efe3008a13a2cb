//! Names of models: a built-in one, a short name, a repository on the hub, or a folder.

use super::presets::{self, Preset};
use crate::error::{Error, Result};
use crate::files::BuiltinModel;
use crate::pipeline::builtin;
use std::path::{Path, PathBuf};

/// The default branch.
const DEFAULT_REVISION: &str = "main";

/// The most characters in an owner's, a repository's and a revision's name.
const MAX_LENGTH: usize = 96;

/// The name of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelName {
    /// A built-in model.
    Builtin(&'static BuiltinModel),
    /// A folder in diffusers' layout.
    Folder(PathBuf),
    /// A repository on the hub, at a revision.
    Hub(HubName),
}

/// The kind of a repository on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepositoryKind {
    Model,
    Dataset,
}

impl RepositoryKind {
    /// What stands before `owner/name` in addresses and messages.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// A repository on the hub at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// What kind of repository it is.
    pub kind: RepositoryKind,
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl ModelName {
    /// Parses a name; `revision` is the value of `--revision`.
    ///
    /// The name of a built-in model is always this model (`./emoji` is a folder). Otherwise an existing folder comes
    /// before a repository.
    ///
    /// # Errors
    /// [`Error::Option`] if it is no valid name, or a folder or a built-in model is given a revision.
    pub fn parse(name: &str, revision: Option<&str>) -> Result<Self> {
        let local = match builtin::named(name) {
            Some(model) => Some(Self::Builtin(model)),
            None => Path::new(name).is_dir().then(|| Self::Folder(PathBuf::from(name))),
        };
        match (local, revision) {
            (Some(_), Some(_)) => {
                Err(invalid("revision", format!("it is for models on the hub, and {name:?} is none; leave it out")))
            }
            (Some(local), None) => Ok(local),
            (None, revision) => HubName::parse(name, revision).map(Self::Hub),
        }
    }
}

impl HubName {
    /// A model's repository at its default branch.
    pub fn newest(repository: &str) -> Self {
        Self { kind: RepositoryKind::Model, repository: repository.into(), revision: DEFAULT_REVISION.into() }
    }

    fn parse(name: &str, revision: Option<&str>) -> Result<Self> {
        if Path::new(name).exists() {
            let reason = format!("{name:?} is a file; give the folder that holds prior/, text_encoder/ and the rest");
            return Err(invalid("model", reason));
        }
        let (base, own_revision) = match name.split_once('@') {
            Some((base, revision)) => (base, Some(revision)),
            None => (name, None),
        };
        if own_revision.is_some() && revision.is_some() {
            let reason = format!("model {name:?} names one itself; give one of them");
            return Err(invalid("revision", reason));
        }
        let repository = match Preset::of(base) {
            Some(preset) => preset.repository,
            None if is_repository(base) => base,
            None => {
                let known = presets::names();
                let reason = format!(
                    "{name:?} is neither a folder on this machine nor the name of a model; give {known}, \
                     owner/name[@revision] of a repository on the hub, or the path of a folder in diffusers' layout"
                );
                return Err(invalid("model", reason));
            }
        };
        let revision = revision.or(own_revision);
        Self::new(RepositoryKind::Model, repository, revision).ok_or_else(|| {
            let reason =
                format!("{:?} cannot be a revision; give a branch, a tag or a commit", revision.unwrap_or_default());
            invalid("revision", reason)
        })
    }

    /// A repository at a revision, if both can be one.
    pub(super) fn new(kind: RepositoryKind, repository: &str, revision: Option<&str>) -> Option<Self> {
        let revision = revision.unwrap_or(DEFAULT_REVISION);
        // The cache and the hub write commits in lower case.
        let lower = if is_commit(revision) { revision.to_lowercase() } else { revision.to_string() };
        (is_repository(repository) && is_revision(revision)).then(|| Self {
            kind,
            repository: repository.into(),
            revision: lower,
        })
    }

    /// Whether it is the default branch.
    pub(super) fn is_default(&self) -> bool {
        self.revision == DEFAULT_REVISION
    }
}

impl std::fmt::Display for HubName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}{}", self.kind.prefix(), self.repository)?;
        if self.is_default() { Ok(()) } else { write!(formatter, "@{}", self.revision) }
    }
}

fn invalid(option: &'static str, reason: String) -> Error {
    Error::Option { option, reason }
}

/// Whether a text is a full commit hash.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a text is an `owner/name` that the hub allows: letters, digits, `.`, `_`, `-`, no `--` or `..`, and no `.`
/// or `-` at the ends.
fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_end = |end: char| end == '.' || end == '-';
        (1..=MAX_LENGTH).contains(&part.len())
            && part.bytes().all(is_plain)
            && !part.contains("--")
            && !part.contains("..")
            && !part.starts_with(is_end)
            && !part.ends_with(is_end)
    };
    text.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// Whether a text can be a revision, which becomes a path below `refs/` in the cache.
fn is_revision(text: &str) -> bool {
    let is_part = |part: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte);
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_plain)
    };
    text.len() <= MAX_LENGTH && text.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repository: &str, revision: &str) -> ModelName {
        let kind = RepositoryKind::Model;
        ModelName::Hub(HubName { kind, repository: repository.into(), revision: revision.into() })
    }

    #[test]
    fn names_are_parsed() {
        let commit = "0123456789ABCDEF0123456789abcdef01234567";
        let cases = [
            ("emoji", None, ModelName::Builtin(&builtin::EMOJI_MODEL)),
            ("src", None, ModelName::Folder("src".into())),
            // An existing folder comes before a repository.
            ("src/hub", None, ModelName::Folder("src/hub".into())),
            ("karlo", None, hub("kakaobrain/karlo-v1-alpha", "main")),
            ("kandinsky-2.2@fp16", None, hub("kandinsky-community/kandinsky-2-2-prior", "fp16")),
            ("a/b", None, hub("a/b", "main")),
            ("a/b@refs/pr/1", None, hub("a/b", "refs/pr/1")),
            ("a/b", Some("v1.0"), hub("a/b", "v1.0")),
            ("a/b", Some(commit), hub("a/b", &commit.to_lowercase())),
        ];
        for (name, revision, expected) in cases {
            assert_eq!(ModelName::parse(name, revision).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn invalid_names_are_refused() {
        let names = ["", "Emoji", "./emoji", "/a/b", "../a", "a/b/c", "a//b", "~/x", "a/..", "a/b--c", "a/-b", "a/b c"];
        let revisions = ["a/b@", "a/b@..", "a/b@x/../y", "a/b@/x", "a/b@x/", "a/b@x y", "a/b@x@y", "a/b@.x"];
        for name in names.iter().chain(&revisions) {
            assert!(ModelName::parse(name, None).is_err(), "{name:?}");
        }
        for (name, revision) in [("emoji", "main"), ("src", "main"), ("a/b@x", "y"), ("a/b", "../x")] {
            assert!(ModelName::parse(name, Some(revision)).is_err(), "{name} {revision}");
        }
        assert!(ModelName::parse("Cargo.toml", None).unwrap_err().to_string().contains("is a file"));
    }
}
