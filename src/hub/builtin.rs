//! The built-in model: `emoji`, small, and trained on pictures of emoji.
//!
//! Its folder is `assets/emoji`, in diffusers' layout. The image encoder is left out: the one embedding a run needs of it, that of
//! a black image, is in [`crate::pipeline::layout::ZERO_IMAGE_EMBED`].

use crate::files::{BuiltinFile, BuiltinModel};

/// Aligns bytes so that weights can be read in place, which `include_bytes!` alone does not. The tensors of a safetensors file
/// are aligned to its start.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// A file of the model's folder.
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

/// The model itself.
pub static EMOJI_MODEL: BuiltinModel = BuiltinModel {
    name: EMOJI,
    files: &[
        file!("model_index.json"),
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
        assert_eq!(weights.len(), 3);
        for file in weights {
            let (header_len, _) = SafeTensors::read_metadata(file.bytes).unwrap();
            let data = file.bytes[size_of::<u64>() + header_len..].as_ptr();
            assert!(data.addr().is_multiple_of(8), "{}", file.path);
        }
    }
}
