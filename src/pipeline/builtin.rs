//! The built-in model, `emoji`: small, trained on pictures of emoji, compiled in.
//!
//! Its files are those of `assets/emoji`, in diffusers' layout. The image encoder is in builds from the repository only:
//! the package on crates.io is to stay small. The one embedding that runs from texts need of it is in
//! [`ZERO_IMAGE_EMBED`](super::layout::ZERO_IMAGE_EMBED).

use crate::files::{BuiltinFile, BuiltinModel};

/// Aligned so that weights can be read in place, which `include_bytes!` alone does not promise. Tensors in a
/// safetensors file start at multiples of their element size.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// A file of the model.
macro_rules! file {
    ($path:literal) => {
        BuiltinFile {
            path: $path,
            bytes: {
                const FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!("../../assets/emoji/", $path)));
                &FILE.0
            },
        }
    };
}

/// The model's name on the command line.
pub const EMOJI: &str = "emoji";

/// The built-in model.
pub static EMOJI_MODEL: BuiltinModel = BuiltinModel {
    name: EMOJI,
    files: &[
        file!("model_index.json"),
        #[cfg(builtin_image_encoder)]
        file!("image_encoder/config.json"),
        #[cfg(builtin_image_encoder)]
        file!("image_encoder/model.safetensors"),
        #[cfg(builtin_image_encoder)]
        file!("image_processor/preprocessor_config.json"),
        file!("prior/config.json"),
        file!("prior/diffusion_pytorch_model.safetensors"),
        file!("scheduler/scheduler_config.json"),
        file!("text_encoder/config.json"),
        file!("text_encoder/model.safetensors"),
        file!("tokenizer/tokenizer.json"),
        file!("tokenizer/tokenizer_config.json"),
        file!("zero_image_embed.safetensors"),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn weights_can_be_read_in_place() {
        let weights: Vec<_> = EMOJI_MODEL.files.iter().filter(|file| file.path.ends_with(".safetensors")).collect();
        assert_eq!(weights.len(), if cfg!(builtin_image_encoder) { 4 } else { 3 });
        for file in weights {
            let (header_len, _) = SafeTensors::read_metadata(file.bytes).unwrap();
            let data = file.bytes[size_of::<u64>() + header_len..].as_ptr();
            assert!(data.addr().is_multiple_of(8), "{}", file.path);
        }
    }
}
