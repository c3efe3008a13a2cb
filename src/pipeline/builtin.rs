//! The built-in models: small, trained on pictures of emoji, compiled in.
//!
//! Their files are those of the folders of their names in `assets/`, in diffusers' layout. In builds from the repository
//! only, since the package on crates.io is to stay small, are the image encoder, of which the one embedding that runs from
//! texts need is in [`ZERO_IMAGE_EMBED`](super::layout::ZERO_IMAGE_EMBED); the autoregressive prior; and, by the feature
//! `draw`, the decoder that draws embeddings and the index that names the emoji near to them.

use crate::files::{BuiltinFile, BuiltinModel, Folder};

/// Aligned so that weights can be read in place, which `include_bytes!` alone does not promise. Tensors in a
/// safetensors file start at multiples of their element size.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// A file in a folder of `assets/`.
macro_rules! file {
    ($model:literal, $path:literal) => {
        BuiltinFile {
            path: $path,
            bytes: {
                const FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!("../../assets/", $model, "/", $path)));
                &FILE.0
            },
        }
    };
}

/// The files of the CLIP that all built-in models share, each once in the program.
static CLIP: [BuiltinFile; 5] = [
    file!("emoji", "text_encoder/config.json"),
    file!("emoji", "text_encoder/model.safetensors"),
    file!("emoji", "tokenizer/tokenizer.json"),
    file!("emoji", "tokenizer/tokenizer_config.json"),
    file!("emoji", "zero_image_embed.safetensors"),
];

/// The default model's name on the command line.
pub const EMOJI: &str = "emoji";

/// The default model, with a diffusion prior.
pub static EMOJI_MODEL: BuiltinModel = BuiltinModel {
    name: EMOJI,
    files: &[
        file!("emoji", "model_index.json"),
        #[cfg(builtin_image_encoder)]
        file!("emoji", "image_encoder/config.json"),
        #[cfg(builtin_image_encoder)]
        file!("emoji", "image_encoder/model.safetensors"),
        #[cfg(builtin_image_encoder)]
        file!("emoji", "image_processor/preprocessor_config.json"),
        file!("emoji", "prior/config.json"),
        file!("emoji", "prior/diffusion_pytorch_model.safetensors"),
        file!("emoji", "scheduler/scheduler_config.json"),
        CLIP[0],
        CLIP[1],
        CLIP[2],
        CLIP[3],
        CLIP[4],
    ],
};

/// The default model's CLIP with an autoregressive prior, in builds from the repository.
#[cfg(builtin_autoregressive)]
pub static EMOJI_AR_MODEL: BuiltinModel = BuiltinModel {
    name: "emoji-ar",
    files: &[
        file!("emoji-ar", "model_index.json"),
        file!("emoji-ar", "prior/config.json"),
        file!("emoji-ar", "prior/diffusion_pytorch_model.safetensors"),
        CLIP[0],
        CLIP[1],
        CLIP[2],
        CLIP[3],
        CLIP[4],
    ],
};

/// The decoder's weights.
pub const DECODER_WEIGHTS: &str = "decoder.safetensors";

/// The embeddings of all emoji, an array `(emoji, dim)`; of several, the one that is nearest counts.
pub const INDEX: &str = "index.safetensors";

/// The code, name and group of each emoji of the index.
pub const INDEX_NAMES: &str = "emoji.json";

/// The files of the decoder and of the index, if this build has them.
pub fn drawing_files() -> Option<Folder> {
    #[cfg(not(builtin_decoder))]
    return None;
    #[cfg(builtin_decoder)]
    {
        static DRAWING: BuiltinModel = BuiltinModel {
            name: EMOJI,
            files: &[
                file!("decoder", "decoder.safetensors"),
                file!("index", "index.safetensors"),
                file!("index", "emoji.json"),
            ],
        };
        Some(Folder::builtin(&DRAWING))
    }
}

/// All built-in models.
pub static MODELS: &[&BuiltinModel] = &[
    &EMOJI_MODEL,
    #[cfg(builtin_autoregressive)]
    &EMOJI_AR_MODEL,
];

/// The built-in model of a name.
pub fn named(name: &str) -> Option<&'static BuiltinModel> {
    MODELS.iter().copied().find(|model| model.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn weights_can_be_read_in_place() {
        for model in MODELS {
            let weights: Vec<_> = model.files.iter().filter(|file| file.path.ends_with(".safetensors")).collect();
            assert!(weights.len() >= 3, "{}", model.name);
            for file in weights {
                let (header_len, _) = SafeTensors::read_metadata(file.bytes).unwrap();
                let data = file.bytes[size_of::<u64>() + header_len..].as_ptr();
                assert!(data.addr().is_multiple_of(8), "{}", file.path);
            }
        }
    }
}
