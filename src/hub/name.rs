//! What a person calls a model: the built-in one, a short name, a repository on the hub, or a folder.

use super::presets::{self, PRESETS};
use crate::bad_input;
use crate::pipeline::builtin::EMOJI;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The revision that the hub gives to those who name none.
const DEFAULT_REVISION: &str = "main";

/// The most characters in an owner or a repository's name, and in a revision.
const MAX_LENGTH: usize = 96;

/// A model as it was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelName {
    /// The one inside the program.
    Builtin,
    /// A folder in diffusers' layout.
    Folder(PathBuf),
    /// A repository on the hub.
    Hub(HubName),
}

/// A repository on the hub at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl ModelName {
    /// Understands a name; `revision` is what `--revision` says.
    ///
    /// [`EMOJI`] is the built-in model always (`./emoji` is the folder). Otherwise a folder that is there comes first.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if this can be the name of nothing, or a revision is given to what has none.
    pub fn parse(name: &str, revision: Option<&str>) -> Result<Self> {
        let local = if name == EMOJI {
            Some(Self::Builtin)
        } else {
            Path::new(name).is_dir().then(|| Self::Folder(PathBuf::from(name)))
        };
        match (local, revision) {
            (Some(_), Some(_)) => {
                Err(bad_input!("--revision is for models on the hub, and {name:?} is none; leave it out"))
            }
            (Some(local), None) => Ok(local),
            (None, revision) => HubName::parse(name, revision).map(Self::Hub),
        }
    }
}

impl HubName {
    /// A repository as it is now.
    pub fn newest(repository: &str) -> Self {
        Self { repository: repository.into(), revision: DEFAULT_REVISION.into() }
    }

    fn parse(name: &str, revision: Option<&str>) -> Result<Self> {
        if Path::new(name).exists() {
            return Err(bad_input!(
                "model {name:?} is a file; give the folder that holds prior/, text_encoder/ and the rest"
            ));
        }
        let (base, own_revision) = match name.split_once('@') {
            Some((base, revision)) => (base, Some(revision)),
            None => (name, None),
        };
        if own_revision.is_some() && revision.is_some() {
            return Err(bad_input!("model {name:?} names a revision, and so does --revision; give one of them"));
        }
        let repository = match PRESETS.iter().find(|preset| preset.name == base) {
            Some(preset) => preset.repository,
            None if is_repository(base) => base,
            None => {
                let known = presets::names();
                return Err(bad_input!(
                    "model {name:?} is neither a folder on this machine nor the name of a model; give {known}, owner/name[@revision] of a repository on the hub, or the path of a folder in diffusers' layout"
                ));
            }
        };
        let revision = revision.or(own_revision).unwrap_or(DEFAULT_REVISION);
        if !is_revision(revision) {
            return Err(bad_input!("{revision:?} cannot be a revision; give a branch, a tag or a commit"));
        }
        // In whatever case a commit is typed, the cache and the hub write it in lower case.
        let revision = if is_commit(revision) { revision.to_lowercase() } else { revision.to_string() };
        Ok(Self { repository: repository.into(), revision })
    }
}

impl std::fmt::Display for HubName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.repository)?;
        if self.revision == DEFAULT_REVISION { Ok(()) } else { write!(formatter, "@{}", self.revision) }
    }
}

/// Whether a text is a whole commit hash.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `owner/name` as the hub allows it: letters, digits, `.`, `_`, `-`, no `--` or `..`, and no `.` or `-` at the ends.
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

/// What may stand for a revision: it becomes a path below `refs/` in the cache.
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
        ModelName::Hub(HubName { repository: repository.into(), revision: revision.into() })
    }

    #[test]
    fn names_are_understood() {
        let commit = "0123456789ABCDEF0123456789abcdef01234567";
        let cases = [
            ("emoji", None, ModelName::Builtin),
            ("src", None, ModelName::Folder("src".into())),
            // A folder that is there comes before a repository that may be.
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
    fn what_can_be_no_name_is_refused() {
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
