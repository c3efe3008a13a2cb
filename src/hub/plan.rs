//! Which files of a model a run needs: those of the prior and what goes before it, and never a decoder's.
//!
//! The same search runs over the listing of a repository, where all is known, over a snapshot in the cache, where a file
//! that is not there may still be on the hub, and over a folder.

use super::candidates::{SIXTEEN_BIT_VARIANTS, VARIANTS, candidates};
use super::layout::{self, IMAGE_ENCODER, INDEX, PRIOR, Part, SCHEDULER, TEXT_ENCODER, TOKENIZER, ZERO_IMAGE_EMBED};
use crate::bad_input;
use crate::error::OrBadInput;
use crate::files::Folder;
use anyhow::Result;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a run needs of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The weights, and not just configurations and vocabulary.
    pub weights: bool,
    /// Whether weights of 16 bits are as good as those of 32, because the run computes in no more.
    pub sixteen_bit: bool,
    /// Whether the embedding of a black image is asked for.
    pub image_encoder: bool,
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
    /// Files that would be taken if the hub has them.
    pub unknown: Vec<String>,
    /// What a run cannot do without and that was not found.
    pub missing: Vec<String>,
}

impl Plan {
    /// Searches for what is needed.
    ///
    /// # Errors
    /// [`crate::error::BadInput`] if the model holds what is not supported, or an index is broken.
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
        self.want(ZERO_IMAGE_EMBED);
        let mut found = Vec::new();
        for part in [&PRIOR, &TEXT_ENCODER, &TOKENIZER, &SCHEDULER, &IMAGE_ENCODER] {
            let is_there = |name: &str| self.tree.may_have_folder(name);
            let name = layout::choose(index.as_ref(), &index_path, part, &is_there)?;
            if name.is_none() && part.what != IMAGE_ENCODER.what {
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
        if self.needs.image_encoder && image_encoder.is_none() {
            // Asked for, so that it becomes known that the model has none.
            for name in IMAGE_ENCODER.names {
                self.want(&format!("{name}/config.json"));
            }
        }
        let image_encoder = image_encoder.filter(|_| self.needs.image_encoder);
        for name in [*text_encoder, *prior, image_encoder].into_iter().flatten() {
            self.need(&format!("{name}/config.json"));
            if self.needs.weights {
                self.need_weights(name)?;
            }
        }
        Ok(())
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
        for name in ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
            self.want(&format!("{folder}/{name}"));
        }
        if !self.want(&format!("{folder}/tokenizer.json")) {
            self.need(&format!("{folder}/vocab.json"));
            self.need(&format!("{folder}/merges.txt"));
        }
    }

    /// Takes the first weights that are there, in the order in which they are loaded.
    ///
    /// Where not all is known, a run in 16 bits does with whatever is here: looking for a smaller file would be a waste.
    fn need_weights(&mut self, folder: &str) -> Result<()> {
        let prefers_small = self.needs.sixteen_bit && self.tree.is_remote();
        let variants = if prefers_small { SIXTEEN_BIT_VARIANTS } else { VARIANTS };
        let unknown_before = self.plan.unknown.len();
        for candidate in candidates(variants) {
            let path = format!("{folder}/{}", candidate.name);
            if !self.want(&path) {
                continue;
            }
            if self.needs.sixteen_bit {
                self.plan.unknown.truncate(unknown_before);
            }
            return if candidate.is_index { self.need_shards(folder, &path) } else { Ok(()) };
        }
        self.plan.missing.push(format!("{folder}/*.safetensors"));
        Ok(())
    }

    fn need_shards(&mut self, folder: &str, index: &str) -> Result<()> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let title = self.tree.title();
        let text = self.tree.read_text(index)?;
        let Index { weight_map } = serde_json::from_str(&text)
            .or_bad_input(|| format!("{title}: {index} is not an index of shards: it must have a weight_map"))?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        for shard in shards {
            let path = format!("{folder}/{shard}");
            if shard.contains(['/', '\\']) || !is_safe_path(&path) {
                return Err(bad_input!("{title}: {index}: shard {shard:?} is not a plain file name"));
            }
            self.need(&path);
        }
        Ok(())
    }
}

fn missing_part(part: &Part) -> String {
    let [prefixed, plain] = part.names;
    format!("the {} in {plain}/ or {prefixed}/", part.what)
}

/// Whether a path in a model stays in the model's folder, on every system.
pub fn is_safe_path(path: &str) -> bool {
    let is_safe = |part: &str| {
        let is_plain = part.chars().all(|character| !character.is_control() && !"\\:".contains(character));
        !part.is_empty() && part != "." && part != ".." && is_plain
    };
    path.split('/').all(is_safe)
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
mod tests {
    use super::*;
    use crate::hub::candidates::is_weights;

    /// A listing, or the part of it that is here.
    struct Fake {
        files: Vec<&'static str>,
        is_complete: bool,
        index: &'static str,
    }

    impl Tree for Fake {
        fn presence(&self, path: &str) -> Presence {
            match self.files.contains(&path) {
                true => Presence::Yes,
                false if self.is_complete => Presence::No,
                false => Presence::Unknown,
            }
        }

        fn may_have_folder(&self, name: &str) -> bool {
            let prefix = format!("{name}/");
            self.files.iter().any(|file| file.starts_with(&prefix))
        }

        fn read_text(&mut self, path: &str) -> Result<String> {
            Ok(if path == INDEX { "{}".into() } else { self.index.into() })
        }

        fn is_remote(&self) -> bool {
            self.is_complete
        }

        fn title(&self) -> String {
            "fake".into()
        }
    }

    const SMALL: [&str; 5] = [
        "prior/config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ];
    const RUN: Needs = Needs { weights: true, sixteen_bit: false, image_encoder: false };

    fn plan(weights: &[&'static str], is_complete: bool, needs: Needs) -> Plan {
        let files = SMALL.iter().chain(weights).copied().collect();
        let index = r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-1.safetensors"}}"#;
        Plan::new(&mut Fake { files, is_complete, index }, needs).unwrap()
    }

    /// The file of the prior's weights that is chosen.
    fn chosen(weights: &[&'static str], needs: Needs) -> Option<String> {
        let files = plan(weights, true, needs).files;
        files.into_iter().find(|path| path.starts_with("prior/d")).map(|path| path["prior/".len()..].to_string())
    }

    #[test]
    fn weights_are_chosen_as_they_are_loaded() {
        let all = [
            "prior/diffusion_pytorch_model.safetensors",
            "prior/diffusion_pytorch_model.bin",
            "prior/diffusion_pytorch_model.fp16.safetensors",
        ];
        let sixteen_bit = Needs { sixteen_bit: true, ..RUN };
        assert_eq!(chosen(&all, RUN).unwrap(), "diffusion_pytorch_model.safetensors");
        assert_eq!(chosen(&all[1..], RUN).unwrap(), "diffusion_pytorch_model.bin");
        assert_eq!(chosen(&all[2..], RUN).unwrap(), "diffusion_pytorch_model.fp16.safetensors");
        assert_eq!(chosen(&all, sixteen_bit).unwrap(), "diffusion_pytorch_model.fp16.safetensors");
        assert_eq!(chosen(&all[..2], sixteen_bit).unwrap(), "diffusion_pytorch_model.safetensors");
        assert_eq!(plan(&[], true, RUN).missing, ["prior/*.safetensors"]);
    }

    #[test]
    fn what_is_not_needed_is_left_out() {
        let others = [
            "prior/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "image_encoder/config.json",
            "image_encoder/model.safetensors",
            "README.md",
        ];
        let is_needed = |plan: &Plan, part: &str| plan.files.iter().any(|file| file.starts_with(part));
        let without = plan(&others, true, RUN);
        assert!(without.is_whole() && !is_needed(&without, "image_encoder") && !is_needed(&without, "unet"));
        let with = plan(&others, true, Needs { image_encoder: true, ..RUN });
        assert!(with.is_whole() && is_needed(&with, "image_encoder/model.safetensors"));
        let small = plan(&others, true, Needs { weights: false, ..RUN });
        assert!(small.is_whole() && !small.files.iter().any(|file| is_weights(file)));
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let index = "prior/diffusion_pytorch_model.safetensors.index.json";
        let found =
            plan(&[index, "prior/x-1.safetensors", "prior/x-2.safetensors", "prior/x-3.safetensors"], true, RUN);
        let prior: Vec<&String> = found.files.iter().filter(|file| file.starts_with("prior/x")).collect();
        assert_eq!(prior, ["prior/x-1.safetensors", "prior/x-2.safetensors"]);
        assert_eq!(plan(&[index, "prior/x-1.safetensors"], true, RUN).missing, ["prior/x-2.safetensors"]);
        let mut hostile = Fake {
            files: SMALL.iter().copied().chain([index]).collect(),
            is_complete: true,
            index: r#"{"weight_map": {"a": "../../x.safetensors"}}"#,
        };
        assert!(Plan::new(&mut hostile, RUN).unwrap_err().to_string().contains("plain file name"));
    }

    #[test]
    fn a_part_of_a_model_is_told_from_a_whole() {
        let half = ["prior/diffusion_pytorch_model.fp16.safetensors"];
        let sixteen_bit = Needs { sixteen_bit: true, ..RUN };
        let unknown = |plan: Plan| plan.unknown.iter().any(|file| file.starts_with("prior/"));
        assert!(unknown(plan(&half, false, RUN)), "the hub may have more exact weights");
        assert!(plan(&half, false, RUN).is_usable());
        assert!(!unknown(plan(&half, false, sixteen_bit)), "what is here is enough");
        assert!(!plan(&[], false, RUN).is_usable());
    }

    #[test]
    fn paths_stay_in_the_folder() {
        assert!(is_safe_path("prior/config.json") && is_safe_path(".gitattributes") && is_safe_path("a b/ü"));
        for path in ["", "/etc/passwd", "a/../b", "..", "a//b", "a\\b", "C:/x", "a/./b", "a/", "a\0b"] {
            assert!(!is_safe_path(path), "{path:?}");
        }
    }
}
