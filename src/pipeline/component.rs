//! A component from elsewhere, which takes the place of a model's own: where it is in its folder, and whether it is of
//! the right kind.
//!
//! As diffusers' `from_pretrained(base, prior=PriorTransformer.from_pretrained(…))`. The folder may hold the component
//! alone, at its root, or a whole model.

use super::layout::{CONFIG, INDEX, Part, SCHEDULER_CONFIG, choose, read_index};
use crate::error::{Component, Hint};
use crate::files::Folder;
use crate::json;
use crate::weights::checkpoint::Checkpoint;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The classes of transformers that the tokenizer of any model may be saved as.
const GENERAL: [&str; 3] = ["PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend"];

/// The folder of a component at `path`: a folder as diffusers or transformers saves the component, a folder of a model
/// that has one, or a single file of weights with its configuration beside it.
///
/// # Errors
/// [`Error::File`] if there is no such component or it is of another kind, [`Error::Config`] if an index says so.
pub fn component_at(path: &Path, component: Component) -> Result<Folder> {
    let part = Part::of(component);
    if path.is_file() {
        return part.at_file(path);
    }
    part.in_folder(&Folder::from(path), None)
}

impl Part {
    /// The files of which one is in every folder of such a component.
    pub(crate) fn marks(&self) -> &'static [&'static str] {
        match self.component {
            Component::Tokenizer => &["tokenizer_config.json", "tokenizer.json", "vocab.json"],
            Component::Scheduler => &[SCHEDULER_CONFIG],
            _ => &[CONFIG],
        }
    }

    /// Where the component is in a repository of models or of components: in the folder that an index names, at the
    /// root (an empty name), or in one of the usual folders.
    ///
    /// # Errors
    /// As [`choose`].
    pub(crate) fn locate(
        &self,
        index: Option<&Map<String, Value>>,
        index_path: &str,
        has_file: &dyn Fn(&str) -> bool,
        has_folder: &dyn Fn(&str) -> bool,
    ) -> Result<Option<&'static str>> {
        if let Some(index) = index
            && let Some(name) = choose(Some(index), index_path, self, has_folder)?
        {
            return Ok(Some(name));
        }
        if self.marks().iter().any(|name| has_file(name)) {
            return Ok(Some(""));
        }
        if index.is_some() { Ok(None) } else { choose(None, index_path, self, has_folder) }
    }

    /// The component's folder in a folder of models or of components, or its folder `subfolder`.
    ///
    /// # Errors
    /// As [`component_at`].
    pub(crate) fn in_folder(&self, root: &Folder, subfolder: Option<&str>) -> Result<Folder> {
        let root = subfolder.map_or_else(|| root.clone(), |name| root.join(name));
        let index = read_index(&root)?;
        let has_folder = |name: &str| root.join(name).is_dir();
        let place =
            self.locate(index.as_ref(), &root.path_of(INDEX), &|name: &str| root.has_file(name), &has_folder)?;
        let folder = match place {
            Some("") => root,
            Some(name) => root.join(name),
            None => {
                let (component, marks) = (self.component, self.marks().join(" or "));
                let [prefixed, plain] = self.names;
                let reason = format!("holds no {component}: neither {marks}, nor {plain}/ or {prefixed}/");
                return Err(Error::file(root.to_string(), reason));
            }
        };
        self.check_kind(&folder)?;
        Ok(folder)
    }

    /// The folder of the file of weights at `path`.
    fn at_file(&self, path: &Path) -> Result<Folder> {
        let (shown, component) = (path.display().to_string(), self.component);
        if component == Component::Tokenizer {
            return Err(Error::file(shown, "is a file; give the folder that holds the tokenizer"));
        }
        let folder = Folder::of_weights(path)?;
        if let Some(name) = folder.weights().filter(|name| !name.ends_with(".json")) {
            Checkpoint::open_file(&folder, name)?.refuse_foreign()?;
        }
        if !folder.has_file(CONFIG) {
            let hint = Hint::Other(format!("put the {component}'s there, or give its folder").into());
            return Err(Error::file(shown, format!("has no {CONFIG} beside it")).with_hint(hint));
        }
        self.check_kind(&folder)?;
        Ok(folder)
    }

    fn check_kind(&self, folder: &Folder) -> Result<()> {
        let name = self.marks()[0];
        let text = folder.find_text(name)?;
        text.map_or(Ok(()), |text| self.check_config(&text, &folder.path_of(name)))
    }

    /// Checks that a configuration, the first of [`Part::marks`], is that of such a component. `path` is its name in
    /// messages.
    ///
    /// # Errors
    /// [`Error::File`] if it is not.
    pub(crate) fn check_config(&self, text: &str, path: &str) -> Result<()> {
        // Whoever reads it next reports that it is damaged.
        let config: Value = json::from_str(text).unwrap_or_default();
        let model_type = config.get("model_type").and_then(Value::as_str);
        let class = own_class(&config);
        let refuse = |what: &str| {
            let wanted = self.classes.join(" or ");
            Err(Error::file(path, format!("is that of {what}, not of a {wanted}")))
        };
        match (self.component, class, model_type) {
            // transformers has general classes that any tokenizer may be saved as.
            (Component::Tokenizer, Some(class), _) => match class.starts_with("CLIP") || GENERAL.contains(&class) {
                true => Ok(()),
                false => refuse(&format!("a {class}")),
            },
            (_, Some(class), _) if !self.classes.contains(&class) => refuse(&format!("a {class}")),
            (Component::TextEncoder | Component::ImageEncoder, _, Some(kind)) if !kind.starts_with("clip") => {
                refuse(&format!("a model of type {kind}"))
            }
            (Component::Prior, None, Some(kind)) => refuse(&format!("a model of type {kind}")),
            _ => Ok(()),
        }
    }
}

/// The class in a component's own configuration, diffusers' or transformers'.
fn own_class(config: &Value) -> Option<&str> {
    let class = config.get("_class_name").or_else(|| config.get("tokenizer_class")).and_then(Value::as_str);
    class.or_else(|| config.get("architectures")?.get(0)?.as_str())
}
