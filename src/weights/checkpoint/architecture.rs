//! Checkpoints that are taken for a prior or for one of its encoders and are not, told by the names of their tensors.
//!
//! Sources of the names: lucidrains' DALLE2-pytorch `dalle2_pytorch.py` (also LAION's priors), openai/CLIP `model.py` and
//! open_clip, guided-diffusion `unet.py`, CompVis' latent-diffusion, diffusers, transformers and PEFT.

use super::store::Checkpoint;
use crate::error::{Error, Hint, Result};

/// A kind of checkpoint that cannot be used as it is.
#[derive(Debug)]
struct Architecture {
    /// Parts of tensor names that all occur.
    telltales: &'static [&'static str],
    /// A predicate.
    what: &'static str,
    /// What it would need, as an imperative clause.
    hint: Option<&'static str>,
}

/// The first that matches counts.
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        telltales: &["causal_transformer.layers."],
        what: "is a DiffusionPrior of DALLE2-pytorch (LAION's prior), another architecture than PriorTransformer: one \
               key and value for all heads, cosine attention with rotary and relative positions, and embeddings of \
               length 1 scaled by a constant; it would need a network and a schedule of its own",
        hint: None,
    },
    Architecture {
        telltales: &["unets.0.", "to_time_tokens"],
        what: "is a decoder of DALLE2-pytorch, which draws pictures from embeddings; a prior makes them",
        hint: None,
    },
    Architecture {
        telltales: &["clip_txt_pooled_mapper."],
        what: "is a prior of Stable Cascade, which makes latents for its own decoder and no CLIP embeddings",
        hint: None,
    },
    Architecture {
        telltales: &["model.diffusion_model."],
        what: "is a whole Stable Diffusion checkpoint, which has no prior",
        hint: None,
    },
    Architecture {
        telltales: &["ip_adapter.", "image_proj."],
        what: "is an IP-Adapter, which takes CLIP image embeddings and does not make them",
        hint: None,
    },
    Architecture {
        telltales: &["input_blocks.0.", "middle_block."],
        what: "is a UNet in its authors' layout: a decoder, not a prior",
        hint: None,
    },
    Architecture {
        telltales: &["down_blocks.0.resnets.", "time_embedding.linear_1."],
        what: "is a UNet of diffusers: a decoder, not a prior",
        hint: None,
    },
    Architecture {
        telltales: &["encoder.down_blocks.0.resnets.", "decoder.up_blocks.0.resnets."],
        what: "is an autoencoder of pictures: a part of a decoder",
        hint: None,
    },
    Architecture {
        telltales: &["LinearTransformation.weight"],
        what: "is the multilingual text encoder of Kandinsky 2.1's decoder, which the prior does not use",
        hint: None,
    },
    Architecture {
        telltales: &["block.0.layer.0.SelfAttention.q.weight"],
        what: "is a T5 text encoder; priors take CLIP's",
        hint: None,
    },
    Architecture {
        telltales: &["visual.conv1.weight"],
        what: "is a CLIP under OpenAI's or open_clip's tensor names",
        hint: Some("take the same CLIP as transformers saves it, a CLIPModel"),
    },
    Architecture {
        telltales: &["visual.trunk."],
        what: "is a CLIP of open_clip with an image tower that transformers' CLIPModel does not have",
        hint: None,
    },
];

/// A tensor of every prior of diffusers.
const PRIOR: &str = "positional_embedding";

/// Parts of the names of all tensors of a LoRA.
const LORA: [&str; 4] = [".lora_A.", ".lora_B.", "lora_down.", "lora.down."];

impl Checkpoint {
    /// Refuses a checkpoint of a known kind that cannot be used as it is.
    ///
    /// # Errors
    /// [`Error::File`] that says what it is and what to do.
    pub fn refuse_foreign(&self) -> Result<()> {
        let error = |what: &str, hint: Option<&'static str>| {
            let error = Error::file(self.origin(), what);
            Err(match hint {
                Some(hint) => error.with_hint(Hint::Other(hint.into())),
                None => error,
            })
        };
        let has = |part: &str| self.names().any(|name| name.contains(part));
        if let Some(found) = ARCHITECTURES.iter().find(|known| known.telltales.iter().all(|part| has(part))) {
            return error(found.what, found.hint);
        }
        if self.is_original_prior() {
            let what = "is a prior under its authors' tensor names";
            return error(what, Some("make a model of it: `prior-embed convert FILE FOLDER --config MODEL`"));
        }
        if LORA.into_iter().any(has) && !has(PRIOR) {
            return error("is a LoRA, not a whole network", Some("add it to a model with --lora"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Folder;
    use safetensors::tensor::{Dtype, TensorView, serialize};

    /// What a checkpoint with these tensors is refused as.
    fn refused(names: &[&str]) -> Option<String> {
        let folder = tempfile::TempDir::new().unwrap();
        let tensor = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        let bytes = serialize(names.iter().map(|name| (*name, &tensor)), None).unwrap();
        std::fs::write(folder.path().join("x.safetensors"), bytes).unwrap();
        let checkpoint = Checkpoint::open_file(&Folder::from(folder.path()), "x.safetensors").unwrap();
        checkpoint.refuse_foreign().err().map(|error| error.to_string())
    }

    #[test]
    fn checkpoints_are_told_by_their_names() {
        let laion = ["net.causal_transformer.layers.0.0.to_q.weight", "net.learned_query", "noise_scheduler.betas"];
        let ema = ["ema_model.net.causal_transformer.layers.0.1.1.weight", "clip.clip.visual.conv1.weight"];
        for (names, word) in [
            (&laion[..], "DALLE2-pytorch"),
            (&ema, "LAION"),
            (&["input_blocks.0.0.weight", "middle_block.0.in_layers.0.bias"], "UNet"),
            (&["down_blocks.0.resnets.0.conv1.weight", "time_embedding.linear_1.weight"], "UNet"),
            (&["encoder.down_blocks.0.resnets.0.a", "decoder.up_blocks.0.resnets.0.a"], "autoencoder"),
            (&["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5"),
            (&["visual.conv1.weight", "positional_embedding"], "open_clip"),
            (&["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"], "Stable Diffusion"),
            (&["base_model.model.x.to_q.lora_A.weight"], "LoRA"),
            (&["model.clip_img_proj.weight"], "authors"),
        ] {
            let line = refused(names).unwrap_or_default();
            assert!(line.contains(word), "{names:?}: {line:?}");
        }
        for names in [
            &["positional_embedding", "prd_embedding", "time_embedding.linear_1.weight"][..],
            &["positional_embedding", "transformer_blocks.0.attn1.to_q.lora_A.default.weight"],
            &["text_model.embeddings.token_embedding.weight", "vision_model.embeddings.class_embedding"],
        ] {
            assert_eq!(refused(names), None, "{names:?}");
        }
    }
}
