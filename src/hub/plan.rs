//! Which files of a model a run needs: those of the prior and what goes before it, and never a decoder's.
//!
//! The same search runs over the listing of a repository, where all is known, over a snapshot in the cache, where a file
//! that is not there may still be on the hub, and over a folder.

use crate::bad_input::OrBadInput;
use crate::files::Folder;
use crate::pipeline::layout::{
    self, IMAGE_ENCODER, INDEX, PRIOR, Part, SCHEDULER, TEXT_ENCODER, TOKENIZER, ZERO_IMAGE_EMBED,
};
use crate::weights::checkpoint::candidates::{Library, SIXTEEN_BIT_VARIANTS, VARIANTS, candidates};
use crate::weights::checkpoint::index::ShardIndex;
use anyhow::Result;

/// What a run needs of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The weights, and not just configurations and vocabulary.
    pub weights: bool,
    /// Whether weights of 16 bits are as good as those of 32, because the run computes in no more.
    pub sixteen_bit: bool,
    /// Whether the embedding of a black image is asked for.
    pub image_encoder: Wish,
}

/// How much something is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Not at all.
    No,
    /// A run does without where it cannot be had.
    Welcome,
    /// Not having it is an error.
    Needed,
}

/// Whether a model has a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It does, and the file is here or can be had.
    Yes,
    /// It does not.
    No,
    /// The file is not here, and whether the model has it the hub would have to say.
    Unknown,
}

/// The files of a model, as far as they are known.
pub trait Tree {
    /// Whether the model has the file.
    fn presence(&self, path: &str) -> Presence;
    /// Whether the model has, or may have, files in the folder.
    fn may_have_folder(&self, name: &str) -> bool;
    /// What a small file says that is there.
    ///
    /// # Errors
    /// If it cannot be read or fetched.
    fn read_text(&mut self, path: &str) -> Result<String>;
    /// Whether the files are still to be downloaded, so that a smaller one is better.
    fn is_remote(&self) -> bool;
    /// What messages call the model.
    fn title(&self) -> String;
}

/// The outcome of the search.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The files that a run reads; small ones first, component by component.
    pub files: Vec<String>,
    /// Files that would have been taken but that the model is known not to have.
    pub absent: Vec<String>,
    /// Files that would be taken if the hub has them, and that matter.
    pub unknown: Vec<String>,
    /// What a run cannot do without and that was not found.
    pub missing: Vec<String>,
}

impl Plan {
    /// Searches for what is needed.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if the model holds what is not supported, or an index is broken.
    pub fn new(tree: &mut dyn Tree, needs: Needs) -> Result<Self> {
        let mut search = Search { tree, needs, plan: Self::default() };
        search.run()?;
        Ok(search.plan)
    }

    /// Whether the files that were found are what a run would take if everything were here.
    pub fn is_whole(&self) -> bool {
        self.unknown.is_empty() && self.missing.is_empty()
    }

    /// Whether a run can do with the files that were found.
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
    fn run(&mut self) -> Result<()> {
        let title = self.tree.title();
        let index_path = format!("{title}: {INDEX}");
        let index = match self.want(INDEX) {
            true => Some(layout::parse_index(&self.tree.read_text(INDEX)?, &index_path)?),
            false => None,
        };
        self.take(ZERO_IMAGE_EMBED);
        let mut found = Vec::new();
        for part in [&PRIOR, &TEXT_ENCODER, &TOKENIZER, &SCHEDULER, &IMAGE_ENCODER] {
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
        if self.needs.image_encoder != Wish::No && image_encoder.is_none() {
            // Asked for, so that it becomes known that the model has none.
            for name in IMAGE_ENCODER.names {
                self.want(&format!("{name}/config.json"));
            }
        }
        for (name, library) in [(text_encoder, Library::Transformers), (prior, Library::Diffusers)] {
            if let Some(name) = name {
                self.need_network(name, library)?;
            }
        }
        if let Some(name) = image_encoder.filter(|_| self.needs.image_encoder != Wish::No) {
            let missing_before = self.plan.missing.len();
            self.need_network(name, Library::Transformers)?;
            if self.needs.image_encoder == Wish::Welcome {
                let missing = self.plan.missing.split_off(missing_before);
                self.plan.unknown.extend(missing);
            }
        }
        Ok(())
    }

    fn need_network(&mut self, name: &str, library: Library) -> Result<()> {
        self.need(&format!("{name}/config.json"));
        if self.needs.weights { self.need_weights(name, library) } else { Ok(()) }
    }

    /// Takes a file if it is known that the model has it; a run that has all the rest does not ask for it.
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

    /// Takes a file that there has to be.
    fn need(&mut self, path: &str) {
        if !self.want(path) {
            self.plan.missing.push(path.to_string());
        }
    }

    /// The forms in which a tokenizer is saved, as [`crate::tokenizer`] reads them: the vocabulary is in one file or two.
    fn need_tokenizer(&mut self, folder: &str) {
        self.want(&format!("{folder}/tokenizer_config.json"));
        for name in ["special_tokens_map.json", "added_tokens.json"] {
            self.take(&format!("{folder}/{name}"));
        }
        let unknown_before = self.plan.unknown.len();
        if !self.want(&format!("{folder}/tokenizer.json")) {
            let missing_before = self.plan.missing.len();
            self.need(&format!("{folder}/vocab.json"));
            self.need(&format!("{folder}/merges.txt"));
            if self.plan.missing.len() == missing_before {
                // The two say as much as the one.
                self.plan.unknown.truncate(unknown_before);
            }
        }
    }

    /// Takes the first weights that are there, in the order in which they are loaded. An index whose shards the model does
    /// not have counts only where there is nothing else.
    ///
    /// Where not all is known, a run does with whatever is here: the same weights in another format, or a smaller file where
    /// 16 bits are enough, are not worth a look. More exact ones are, and so are the shards of an index that is here.
    fn need_weights(&mut self, folder: &str, library: Library) -> Result<()> {
        let prefers_small = self.needs.sixteen_bit && self.tree.is_remote();
        let variants = if prefers_small { SIXTEEN_BIT_VARIANTS } else { VARIANTS };
        let unknown_before = self.plan.unknown.len();
        let mut cut_off = None;
        for candidate in candidates(library, variants) {
            let path = format!("{folder}/{}", candidate.name);
            if !self.want(&path) {
                continue;
            }
            let shards = if candidate.is_index { self.shards(folder, &path)? } else { Vec::new() };
            if !shards.iter().all(|shard| self.is_there(shard)) {
                cut_off = cut_off.or(Some(shards));
                continue;
            }
            if self.needs.sixteen_bit || candidate.is_plain {
                self.plan.unknown.truncate(unknown_before);
            }
            let others: Vec<String> =
                cut_off.into_iter().flatten().filter(|shard: &String| !self.is_there(shard)).collect();
            for shard in shards.iter().chain(&others) {
                self.want(shard);
            }
            return Ok(());
        }
        match cut_off {
            Some(shards) => shards.iter().for_each(|shard| self.need(shard)),
            None => self.plan.missing.push(format!("{folder}/*.safetensors")),
        }
        Ok(())
    }

    fn is_there(&self, path: &str) -> bool {
        self.tree.presence(path) == Presence::Yes
    }

    /// The paths of the shards that an index names.
    fn shards(&mut self, folder: &str, index: &str) -> Result<Vec<String>> {
        let title = self.tree.title();
        let index = ShardIndex::parse(&self.tree.read_text(index)?, &format!("{title}: {index}"))?;
        Ok(index.shards().into_iter().map(|shard| format!("{folder}/{shard}")).collect())
    }
}

fn missing_part(part: &Part) -> String {
    let [prefixed, plain] = part.names;
    format!("the {} in {plain}/ or {prefixed}/", part.component)
}

/// Whether a path in a model stays in the model's folder, on every system.
pub fn is_safe_path(path: &str) -> bool {
    !leads_elsewhere(path) && !path.contains(|character: char| character.is_control() || character == ':')
}

/// Whether a path in a model is meant to leave the model's folder.
pub fn leads_elsewhere(path: &str) -> bool {
    path.split('/').any(|part| ["", ".", ".."].contains(&part) || part.contains('\\'))
}

/// A folder, where all is known.
impl Tree for Folder {
    fn presence(&self, path: &str) -> Presence {
        if self.has_path(path) { Presence::Yes } else { Presence::No }
    }

    fn may_have_folder(&self, name: &str) -> bool {
        self.join(name).is_dir()
    }

    fn read_text(&mut self, path: &str) -> Result<String> {
        Folder::read_text(self, path).or_bad_input(|| format!("cannot read {}", self.path_of(path)))
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
