//! The files of a repository that a run needs: those of a model, without the components that come from elsewhere and
//! never a decoder's, or those of a single component.
//!
//! The same search runs over a listing of the hub, over a snapshot in the cache, which may lack files that the hub has,
//! and over a folder.

use crate::error::{Component, Result};
use crate::files::Folder;
use crate::pipeline::layout::{
    self, CONFIG, IMAGE_ENCODER, IMAGE_PROCESSOR, INDEX, PREPROCESSOR_CONFIG, PRIOR, Part, SCHEDULER, TEXT_ENCODER,
    TOKENIZER, ZERO_IMAGE_EMBED,
};
use crate::weights::checkpoint::candidates::{Library, SIXTEEN_BIT_VARIANTS, VARIANTS, candidates};
use crate::weights::checkpoint::index::ShardIndex;

/// What a run needs of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Weights, not only configurations and vocabulary.
    pub weights: bool,
    /// The prior's weights.
    pub prior: bool,
    /// The text encoder's weights, because texts are encoded.
    pub text_encoder: bool,
    /// Whether weights in 16 bits are enough, because the run computes in no more.
    pub sixteen_bit: bool,
    /// The image encoder, for the embedding of a black image or of pictures.
    pub image_encoder: Wish,
    /// The image processor, because pictures are encoded.
    pub image_processor: bool,
}

impl Needs {
    /// A run from texts to embeddings, in float32.
    pub const ALL: Self = Self {
        weights: true,
        prior: true,
        text_encoder: true,
        sixteen_bit: false,
        image_encoder: Wish::No,
        image_processor: false,
    };

    /// A run from pictures to embeddings, in float32.
    pub const PICTURES: Self =
        Self { prior: false, text_encoder: false, image_encoder: Wish::Needed, image_processor: true, ..Self::ALL };
}

/// What of a repository is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// A model.
    Model {
        /// The components that come from elsewhere.
        replaced: &'a [Component],
    },
    /// One component.
    Component {
        /// The component.
        component: Component,
        /// The folder that it is in, if it is given.
        subfolder: Option<&'a str>,
    },
}

/// How much a component is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Not at all.
    No,
    /// The run can do without.
    Welcome,
    /// Without it the run fails.
    Needed,
}

/// Whether a model has a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Yes,
    No,
    /// It is not in the cache, and only the hub knows.
    Unknown,
}

/// The files of a model, as far as known.
pub trait Tree {
    /// Whether the model has the file.
    fn presence(&self, path: &str) -> Presence;
    /// Whether the model has, or may have, files in the folder.
    fn may_have_folder(&self, name: &str) -> bool;
    /// Reads a small file.
    ///
    /// # Errors
    /// If it cannot be read or downloaded.
    fn read_text(&mut self, path: &str) -> Result<String>;
    /// Whether the files are still to be downloaded, so that smaller ones are better.
    fn is_remote(&self) -> bool;
    /// The model's name in messages.
    fn title(&self) -> String;
}

/// The result of the search.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The files a run reads, component by component.
    pub files: Vec<String>,
    /// Files a run would read that the model does not have.
    pub absent: Vec<String>,
    /// Files a run would read, if the hub has them.
    pub unknown: Vec<String>,
    /// Required files and components that were not found.
    pub missing: Vec<String>,
}

impl Plan {
    /// Searches a repository for the files that a run needs.
    ///
    /// # Errors
    /// If a component is not supported, an index is broken, or a file cannot be read or downloaded.
    pub fn new(tree: &mut dyn Tree, scope: Scope, needs: Needs) -> Result<Self> {
        let mut search = Search { tree, needs, plan: Self::default() };
        match scope {
            Scope::Model { replaced } => search.model(replaced)?,
            Scope::Component { component, subfolder } => search.component(Part::of(component), subfolder)?,
        }
        Ok(search.plan)
    }

    /// Whether the hub would change nothing about [`Plan::files`].
    pub fn is_whole(&self) -> bool {
        self.unknown.is_empty() && self.missing.is_empty()
    }

    /// Whether a run can do with [`Plan::files`].
    pub fn is_usable(&self) -> bool {
        self.missing.is_empty()
    }
}

struct Search<'a> {
    tree: &'a mut dyn Tree,
    needs: Needs,
    plan: Plan,
}

impl Search<'_> {
    fn model(&mut self, replaced: &[Component]) -> Result<()> {
        let title = self.tree.title();
        let index_path = format!("{title}: {INDEX}");
        let index = match self.want(INDEX) {
            true => Some(layout::parse_index(&self.tree.read_text(INDEX)?, &index_path)?),
            false => None,
        };
        self.take(ZERO_IMAGE_EMBED);
        let mut found = Vec::new();
        for part in [&PRIOR, &TEXT_ENCODER, &TOKENIZER, &SCHEDULER, &IMAGE_ENCODER] {
            if replaced.contains(&part.component) {
                found.push(None);
                continue;
            }
            let is_there = |name: &str| self.tree.may_have_folder(name);
            let name = layout::choose(index.as_ref(), &index_path, part, &is_there)?;
            if name.is_none() && part.component != IMAGE_ENCODER.component {
                self.plan.missing.push(missing_part(part));
            }
            found.push(name);
        }
        let [prior, text_encoder, tokenizer, scheduler, image_encoder] = found.as_slice() else { return Ok(()) };
        if let Some(name) = scheduler {
            self.need(&format!("{name}/scheduler_config.json"));
        }
        if let Some(name) = tokenizer {
            self.need_tokenizer(name);
        }
        let needs_image_encoder = self.needs.image_encoder != Wish::No && !replaced.contains(&Component::ImageEncoder);
        if needs_image_encoder && image_encoder.is_none() {
            // So that its absence is noted in the cache.
            for name in IMAGE_ENCODER.names {
                self.want(&format!("{name}/config.json"));
            }
        }
        match text_encoder {
            Some(name) if self.needs.text_encoder => self.need_network(name, Component::TextEncoder)?,
            Some(name) => self.need(&format!("{name}/config.json")),
            None => {}
        }
        match prior {
            Some(name) if self.needs.prior => self.need_network(name, Component::Prior)?,
            Some(name) => self.need(&format!("{name}/config.json")),
            None => {}
        }
        if self.needs.image_processor {
            for name in IMAGE_PROCESSOR {
                if self.tree.may_have_folder(name) {
                    self.want(&join(name, PREPROCESSOR_CONFIG));
                }
            }
        }
        if let Some(name) = image_encoder.filter(|_| needs_image_encoder) {
            let missing_before = self.plan.missing.len();
            self.need_network(name, Component::ImageEncoder)?;
            if self.needs.image_encoder == Wish::Welcome {
                let missing = self.plan.missing.split_off(missing_before);
                self.plan.unknown.extend(missing);
            }
        }
        Ok(())
    }

    fn component(&mut self, part: &Part, subfolder: Option<&str>) -> Result<()> {
        let Some(folder) = self.locate(part, subfolder)? else {
            self.plan.missing.push(missing_part(part));
            return Ok(());
        };
        let path = join(&folder, part.marks()[0]);
        if self.is_there(&path) {
            // Before gigabytes of another model are downloaded.
            let text = self.tree.read_text(&path)?;
            part.check_config(&text, &format!("{}: {path}", self.tree.title()))?;
        }
        match part.component {
            Component::Tokenizer => self.need_tokenizer(&folder),
            component => self.need_network(&folder, component)?,
        }
        if self.needs.image_processor && part.component == Component::ImageEncoder {
            self.take(&join(&folder, PREPROCESSOR_CONFIG));
        }
        Ok(())
    }

    /// Where a component is; an empty path for the root. The same as [`Part::in_folder`] finds it in.
    fn locate(&mut self, part: &Part, subfolder: Option<&str>) -> Result<Option<String>> {
        let root = subfolder.unwrap_or_default();
        let index_path = join(root, INDEX);
        let index_title = format!("{}: {index_path}", self.tree.title());
        self.take(&index_path);
        let index = match self.is_there(&index_path) {
            true => Some(layout::parse_index(&self.tree.read_text(&index_path)?, &index_title)?),
            false => None,
        };
        let has_file = |name: &str| self.is_there(&join(root, name));
        let has_folder = |name: &str| self.tree.may_have_folder(&join(root, name));
        if subfolder.is_some() && index.is_none() {
            return Ok(Some(root.into()));
        }
        let place = part.locate(index.as_ref(), &index_title, &has_file, &has_folder)?;
        Ok(place.map(|place| join(root, place)))
    }

    fn need_network(&mut self, folder: &str, component: Component) -> Result<()> {
        self.need(&join(folder, CONFIG));
        let library = if component == Component::Prior { Library::Diffusers } else { Library::Transformers };
        if self.needs.weights { self.need_weights(folder, library) } else { Ok(()) }
    }

    /// Takes a file if the model has it; alone it is not worth asking the hub.
    fn take(&mut self, path: &str) {
        let unknown_before = self.plan.unknown.len();
        self.want(path);
        self.plan.unknown.truncate(unknown_before);
    }

    /// Takes a file if the model has it.
    fn want(&mut self, path: &str) -> bool {
        let presence = self.tree.presence(path);
        let files = match presence {
            Presence::Yes => &mut self.plan.files,
            Presence::No => &mut self.plan.absent,
            Presence::Unknown => &mut self.plan.unknown,
        };
        files.push(path.to_string());
        presence == Presence::Yes
    }

    /// Takes a required file.
    fn need(&mut self, path: &str) {
        if !self.want(path) {
            self.plan.missing.push(path.to_string());
        }
    }

    /// Takes the tokenizer's files, in the order of [`crate::tokenizer`]: the vocabulary is in one file or two.
    fn need_tokenizer(&mut self, folder: &str) {
        self.want(&join(folder, "tokenizer_config.json"));
        for name in ["special_tokens_map.json", "added_tokens.json"] {
            self.take(&join(folder, name));
        }
        let unknown_before = self.plan.unknown.len();
        if !self.want(&join(folder, "tokenizer.json")) {
            let missing_before = self.plan.missing.len();
            self.need(&join(folder, "vocab.json"));
            self.need(&join(folder, "merges.txt"));
            if self.plan.missing.len() == missing_before {
                // The two files are as good as the one.
                self.plan.unknown.truncate(unknown_before);
            }
        }
    }

    /// Takes the first weights in the order of loading. An index without its shards is the last resort.
    ///
    /// In the cache, the same weights in another format, or in 16 bits where those are enough, are not worth asking the hub.
    /// More exact weights are, and so are the shards of a cached index.
    fn need_weights(&mut self, folder: &str, library: Library) -> Result<()> {
        let prefers_small = self.needs.sixteen_bit && self.tree.is_remote();
        let variants = if prefers_small { SIXTEEN_BIT_VARIANTS } else { VARIANTS };
        let unknown_before = self.plan.unknown.len();
        let mut incomplete = None;
        for candidate in candidates(library, variants) {
            let path = join(folder, &candidate.name);
            if !self.want(&path) {
                continue;
            }
            let shards = if candidate.is_index { self.shards(folder, &path)? } else { Vec::new() };
            if !shards.iter().all(|shard| self.is_there(shard)) {
                incomplete = incomplete.or(Some(shards));
                continue;
            }
            if self.needs.sixteen_bit || candidate.is_plain {
                self.plan.unknown.truncate(unknown_before);
            }
            let others: Vec<String> =
                incomplete.into_iter().flatten().filter(|shard: &String| !self.is_there(shard)).collect();
            for shard in shards.iter().chain(&others) {
                self.want(shard);
            }
            return Ok(());
        }
        match incomplete {
            Some(shards) => shards.iter().for_each(|shard| self.need(shard)),
            None => self.plan.missing.push(join(folder, "*.safetensors")),
        }
        Ok(())
    }

    fn is_there(&self, path: &str) -> bool {
        self.tree.presence(path) == Presence::Yes
    }

    /// The paths of an index' shards.
    fn shards(&mut self, folder: &str, index: &str) -> Result<Vec<String>> {
        let title = self.tree.title();
        let index = ShardIndex::parse(&self.tree.read_text(index)?, &format!("{title}: {index}"))?;
        Ok(index.shards().into_iter().map(|shard| join(folder, shard)).collect())
    }
}

fn missing_part(part: &Part) -> String {
    let [prefixed, plain] = part.names;
    format!("the {} in {plain}/ or {prefixed}/", part.component)
}

/// A path in a folder, which is empty for the root; or the folder, if the path is empty.
fn join(folder: &str, path: &str) -> String {
    match (folder, path) {
        ("", one) | (one, "") => one.to_string(),
        _ => format!("{folder}/{path}"),
    }
}

/// Whether a path is valid on every system and stays in the model's folder.
pub fn is_safe_path(path: &str) -> bool {
    !leads_elsewhere(path) && !path.contains(|character: char| character.is_control() || character == ':')
}

/// Whether a path could leave the model's folder.
pub fn leads_elsewhere(path: &str) -> bool {
    path.split('/').any(|part| ["", ".", ".."].contains(&part) || part.contains('\\'))
}

impl Tree for Folder {
    fn presence(&self, path: &str) -> Presence {
        if self.has_path(path) { Presence::Yes } else { Presence::No }
    }

    fn may_have_folder(&self, name: &str) -> bool {
        self.join(name).is_dir()
    }

    fn read_text(&mut self, path: &str) -> Result<String> {
        Folder::read_text(self, path)
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn title(&self) -> String {
        self.to_string()
    }
}

#[cfg(test)]
mod tests;
