//! The one colour of a PNG or GIF picture that is transparent, if it has no alpha channel.
//!
//! It survives Pillow's `convert("RGB")` as `info["transparency"]`, and `CLIPImageProcessor` makes its pixels white.
//!
//! Source: Pillow 13 `PngImagePlugin.py`, `chunk_tRNS`; `GifImagePlugin.py`.

use image::ImageFormat;

/// The transparent colour in RGB.
pub(super) fn color_key(bytes: &[u8], format: ImageFormat) -> Option<[u8; 3]> {
    match format {
        ImageFormat::Png => of_png(bytes),
        ImageFormat::Gif => of_gif(bytes),
        _ => None,
    }
}

fn of_png(bytes: &[u8]) -> Option<[u8; 3]> {
    let mut rest = bytes.get(8..)?;
    let (mut header, mut palette) = (None, None);
    loop {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let (name, after) = after.split_first_chunk::<4>()?;
        let data = after.get(..u32::from_be_bytes(*len) as usize)?;
        match name {
            b"IHDR" => header = Some((*data.get(8)?, *data.get(9)?)),
            b"PLTE" => palette = Some(data),
            b"tRNS" => return of_transparency(header?, palette, data),
            b"IDAT" => return None,
            _ => {}
        }
        rest = after.get(data.len() + 4..)?;
    }
}

/// What the chunk `tRNS` says, after a header's bit depth and colour type.
fn of_transparency((depth, color_type): (u8, u8), palette: Option<&[u8]>, data: &[u8]) -> Option<[u8; 3]> {
    const GREY: u8 = 0;
    const RGB: u8 = 2;
    const PALETTE: u8 = 3;
    match (color_type, depth, data) {
        (GREY, 1, [high, low, ..]) => Some([if (*high, *low) == (0, 0) { 0 } else { 255 }; 3]),
        // Fewer than 8 bits are scaled in the pixels, and not here.
        (GREY, 2 | 4 | 8, [0, level, ..]) => Some([*level; 3]),
        (RGB, 8, [0, red, 0, green, 0, blue, ..]) => Some([*red, *green, *blue]),
        // Several transparent entries, or one that is transparent in part, are no colour key.
        (PALETTE, _, levels) if levels.iter().filter(|level| **level != 255).count() == 1 => {
            let index = levels.iter().position(|level| *level == 0)?;
            Some(*palette?.get(index * 3..)?.first_chunk()?)
        }
        _ => None,
    }
}

fn of_gif(bytes: &[u8]) -> Option<[u8; 3]> {
    const EXTENSION: u8 = 0x21;
    const CONTROL: u8 = 0xf9;
    const IMAGE: u8 = 0x2c;
    let global = *bytes.get(10)?;
    let (global, mut rest) = color_table(global, bytes.get(13..)?)?;
    let mut index = None;
    loop {
        match rest {
            [EXTENSION, label, blocks @ ..] => {
                if let (CONTROL, [4, flags, _, _, transparent, ..]) = (*label, blocks) {
                    index = (flags & 1 == 1).then_some(*transparent);
                }
                rest = blocks;
                // Blocks of as many bytes as the first says, up to one of none.
                loop {
                    let (len, data) = rest.split_first()?;
                    rest = data.get(usize::from(*len)..)?;
                    if *len == 0 {
                        break;
                    }
                }
            }
            [IMAGE, descriptor @ ..] => {
                let (local, _) = color_table(*descriptor.get(8)?, descriptor.get(9..)?)?;
                let table = if local.is_empty() { global } else { local };
                return Some(*table.get(usize::from(index?) * 3..)?.first_chunk()?);
            }
            _ => return None,
        }
    }
}

/// The colour table that the flags before it announce, empty if there is none, and what follows it.
fn color_table(flags: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    bytes.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_have_none_and_no_panic() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
        for (name, format) in [
            ("palette_transparency.png", ImageFormat::Png),
            ("grey_transparency.png", ImageFormat::Png),
            ("transparency.gif", ImageFormat::Gif),
        ] {
            let whole = std::fs::read(folder.join(name)).unwrap();
            assert_eq!(color_key(&whole, format).is_some(), !name.starts_with("palette"), "{name}");
            for cut in 0..whole.len().min(1200) {
                let _ = color_key(&whole[..cut], format);
            }
            for place in 0..whole.len().min(1200) {
                let mut changed = whole.clone();
                changed[place] ^= 0xff;
                let _ = color_key(&changed, format);
            }
        }
    }
}
