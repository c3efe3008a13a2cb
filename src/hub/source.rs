//! What a model is put together from: a model, and components from elsewhere in the place of its own.

use super::name::{HubName, ModelName, RepositoryKind};
use super::plan::is_safe_path;
use super::presets::Preset;
use crate::error::{Component, Error, Result};
use crate::files::BuiltinModel;
use crate::pipeline::builtin;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A model, and the components that take the place of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// The model.
    pub model: ModelName,
    /// Where the other components come from.
    pub components: BTreeMap<Component, ComponentName>,
    /// The model's name as it was given.
    pub name: String,
    /// The components that a preset does not have by itself.
    given: Vec<Component>,
}

impl From<ModelName> for ModelSource {
    fn from(model: ModelName) -> Self {
        let name = match &model {
            ModelName::Builtin(model) => model.name.into(),
            ModelName::Folder(path) => path.display().to_string(),
            ModelName::Hub(name) => name.to_string(),
        };
        Self { model, components: BTreeMap::new(), name, given: Vec::new() }
    }
}

impl ModelSource {
    /// Parses the name of a model, the value of `--revision`, and the names of components. A preset may have components
    /// from elsewhere; a component that is given comes before these.
    ///
    /// # Errors
    /// [`Error::Option`] if one is no valid name, or a revision goes with a preset of several repositories.
    pub fn parse(name: &str, revision: Option<&str>, components: &[(Component, &str)]) -> Result<Self> {
        let model = ModelName::parse(name, revision)?;
        let preset = match &model {
            ModelName::Hub(_) => Preset::of(base_of(name)),
            _ => None,
        };
        let mut source = match preset {
            Some(preset) => Self::of_preset(preset)?,
            None => Self::from(model.clone()),
        };
        if let (Some((component, other)), true) =
            (source.components.iter().next(), revision.is_some() || name.contains('@'))
        {
            let repository = &source.name;
            let option = component.option();
            let reason = format!(
                "{repository} comes from two repositories, so it has no revisions; give their names, \
                 {}@REVISION and --{option} {other}@REVISION",
                source.model_repository()
            );
            return Err(Error::Option { option: "revision", reason });
        }
        (source.model, source.name) = (model, name.into());
        for (component, name) in components {
            source.replace(*component, ComponentName::parse(name, *component)?);
        }
        Ok(source)
    }

    /// Takes a component from elsewhere.
    pub fn replace(&mut self, component: Component, name: ComponentName) {
        self.components.insert(component, name);
        self.given.push(component);
    }

    /// The model of a preset, at its newest revision.
    ///
    /// # Errors
    /// As [`ModelSource::parse`].
    pub fn of_preset(preset: &Preset) -> Result<Self> {
        let mut source = Self::from(ModelName::Hub(HubName::newest(preset.repository)));
        source.name = preset.name.into();
        for (component, name) in preset.components {
            source.components.insert(*component, ComponentName::parse(name, *component)?);
        }
        Ok(source)
    }

    fn model_repository(&self) -> &str {
        match &self.model {
            ModelName::Hub(name) => &name.repository,
            _ => &self.name,
        }
    }

    /// Whether any of it is on the hub.
    pub fn is_on_hub(&self) -> bool {
        let is_on_hub = |name: &ComponentName| matches!(name, ComponentName::Hub { .. });
        matches!(self.model, ModelName::Hub(_)) || self.components.values().any(is_on_hub)
    }

    /// The model's name for a command; with a revision that was given apart.
    pub(super) fn model_argument(&self) -> String {
        match &self.model {
            ModelName::Hub(name) if !self.components.keys().any(|component| !self.given.contains(component)) => {
                name.to_string()
            }
            _ => self.name.clone(),
        }
    }

    /// The components that were given, for a command.
    pub(super) fn component_arguments(&self) -> Vec<(Component, String)> {
        let given = self.components.iter().filter(|(component, _)| self.given.contains(component));
        given.map(|(component, name)| (*component, name.to_string())).collect()
    }
}

/// The part of a name before a revision.
fn base_of(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

/// The name of a component that takes the place of a model's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ComponentName {
    /// That of a built-in model.
    Builtin(&'static BuiltinModel),
    /// A folder, or a file of weights with its configuration beside it.
    Path(PathBuf),
    /// A repository on the hub.
    Hub {
        /// The repository.
        name: HubName,
        /// The folder in it, if it is given.
        subfolder: Option<String>,
    },
}

impl ComponentName {
    /// Parses a name: an existing folder or file, that of a built-in model or a preset, or
    /// `owner/name[@revision][/subfolder]`. A revision has no `/` in it, except in `refs/pr/1`.
    ///
    /// # Errors
    /// [`Error::Option`] if it is none of these.
    pub fn parse(text: &str, component: Component) -> Result<Self> {
        if let Some(model) = builtin::named(text) {
            return Ok(Self::Builtin(model));
        }
        if Path::new(text).exists() {
            return Ok(Self::Path(text.into()));
        }
        let invalid = || {
            let option = component.option();
            let reason = format!(
                "{text:?} is neither a folder or file on this machine nor \
                 owner/name[@revision][/subfolder] of a repository on the hub"
            );
            Error::Option { option, reason }
        };
        let (repository, rest) = split_repository(text);
        let (revision, subfolder) = split_revision(rest).ok_or_else(invalid)?;
        if subfolder.is_some_and(|subfolder| !is_safe_path(subfolder)) {
            return Err(invalid());
        }
        let preset = Preset::of(repository);
        // That component of a preset may come from another repository itself.
        let other = preset.and_then(|preset| preset.components.iter().find(|(other, _)| *other == component));
        if let (Some((_, source)), None, None) = (other, revision, subfolder) {
            return Self::parse(source, component);
        }
        let repository = preset.map_or(repository, |preset| preset.repository);
        let name = HubName::new(RepositoryKind::Model, repository, revision).ok_or_else(invalid)?;
        Ok(Self::Hub { name, subfolder: subfolder.map(String::from) })
    }
}

/// Splits a text behind a preset's name or `owner/name`; what follows begins with `@` or `/`.
fn split_repository(text: &str) -> (&str, &str) {
    let end = text.find(['@', '/']).unwrap_or(text.len());
    if Preset::of(&text[..end]).is_some() || text[end..].starts_with('@') {
        return text.split_at(end);
    }
    let name = text.get(end + 1..).unwrap_or_default();
    let len = name.find(['@', '/']).unwrap_or(name.len());
    text.split_at((end + 1 + len).min(text.len()))
}

/// The revision and the folder in what follows a repository's name.
pub(super) fn split_revision(rest: &str) -> Option<(Option<&str>, Option<&str>)> {
    let (revision, subfolder) = match rest.strip_prefix('@') {
        None => (None, rest),
        Some(rest) => {
            // refs/pr/1 and refs/convert/parquet are revisions.
            let parts = if rest.starts_with("refs/") { 3 } else { 1 };
            let end = rest.match_indices('/').nth(parts - 1).map_or(rest.len(), |(end, _)| end);
            (Some(&rest[..end]), &rest[end..])
        }
    };
    match subfolder {
        "" => Some((revision, None)),
        subfolder => Some((revision, Some(subfolder.strip_prefix('/')?))),
    }
}

impl fmt::Display for ComponentName {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Builtin(model) => formatter.write_str(model.name),
            Self::Path(path) => path.display().fmt(formatter),
            Self::Hub { name, subfolder: None } => name.fmt(formatter),
            Self::Hub { name, subfolder: Some(subfolder) } => write!(formatter, "{name}/{subfolder}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repository: &str, revision: &str, subfolder: Option<&str>) -> ComponentName {
        let kind = RepositoryKind::Model;
        let name = HubName { kind, repository: repository.into(), revision: revision.into() };
        ComponentName::Hub { name, subfolder: subfolder.map(String::from) }
    }

    #[test]
    fn components_are_paths_or_repositories() {
        let (karlo, commit) = ("kakaobrain/karlo-v1-alpha", "0123456789ABCDEF0123456789abcdef01234567");
        for (text, expected) in [
            ("emoji", ComponentName::Builtin(&builtin::EMOJI_MODEL)),
            ("src", ComponentName::Path("src".into())),
            ("Cargo.toml", ComponentName::Path("Cargo.toml".into())),
            ("a/b", hub("a/b", "main", None)),
            ("a/b/prior", hub("a/b", "main", Some("prior"))),
            ("a/b@v1", hub("a/b", "v1", None)),
            ("a/b@v1/x/prior", hub("a/b", "v1", Some("x/prior"))),
            ("a/b@refs/pr/1", hub("a/b", "refs/pr/1", None)),
            ("a/b@refs/pr/1/prior", hub("a/b", "refs/pr/1", Some("prior"))),
            ("karlo", hub(karlo, "main", None)),
            ("karlo@v1/prior", hub(karlo, "v1", Some("prior"))),
            ("karlo/prior", hub(karlo, "main", Some("prior"))),
            ("eclipse-karlo", hub("ECLIPSE-Community/ECLIPSE_Karlo_Prior", "main", None)),
            (&format!("a/b@{commit}"), hub("a/b", &commit.to_lowercase(), None)),
        ] {
            let name = ComponentName::parse(text, Component::Prior).unwrap();
            assert_eq!(name, expected, "{text}");
            assert_eq!(ComponentName::parse(&name.to_string(), Component::Prior).unwrap(), expected, "{name}");
        }
        // Of another component, a preset has its model's.
        assert_eq!(ComponentName::parse("eclipse-karlo", Component::TextEncoder).unwrap(), hub(karlo, "main", None));
        for text in
            ["", "a", "/a/b", "./a/b", "a/b/", "a/b/../c", "a/b@", "a/b@/prior", "a/b@x@y", "a//b", "@a/b", "a@b"]
        {
            let error = ComponentName::parse(text, Component::TextEncoder).unwrap_err();
            assert!(error.to_string().starts_with(&format!("text-encoder: {text:?}")), "{error}");
        }
    }

    #[test]
    fn a_preset_may_have_components_from_elsewhere() {
        let prior = |source: &ModelSource| source.components.get(&Component::Prior).map(ToString::to_string);
        let preset = ModelSource::parse("eclipse-karlo", None, &[]).unwrap();
        assert_eq!(prior(&preset).unwrap(), "ECLIPSE-Community/ECLIPSE_Karlo_Prior");
        assert_eq!(preset.model, ModelName::Hub(HubName::newest("kakaobrain/karlo-v1-alpha")));
        assert_eq!((preset.model_argument(), preset.component_arguments().len()), ("eclipse-karlo".into(), 0));
        let given = ModelSource::parse("eclipse-karlo", None, &[(Component::Prior, "a/b")]).unwrap();
        assert_eq!(prior(&given).unwrap(), "a/b");
        let plain = ModelSource::parse("karlo", Some("v1"), &[(Component::Tokenizer, "src")]).unwrap();
        assert_eq!(plain.model_argument(), "kakaobrain/karlo-v1-alpha@v1");
        assert_eq!(plain.component_arguments(), [(Component::Tokenizer, "src".to_string())]);
        for (name, revision) in [("eclipse-karlo@v1", None), ("eclipse-karlo", Some("v1"))] {
            let error = ModelSource::parse(name, revision, &[]).unwrap_err().to_string();
            assert!(error.contains("two repositories") && error.contains("--prior ECLIPSE-Community"), "{error}");
        }
    }
}
