//! Pictures against Pillow and transformers.

use super::common::{Fixture, fixtures, relative_error};
use crate::files::Folder;
use crate::images::{Header, ImageProcessor, Picture};
use crate::pipeline::Pipeline;
use crate::pipeline::layout::PREPROCESSOR_CONFIG;
use crate::weights::checkpoint::Placement;
use crate::weights::precision::Precision;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

fn fixture() -> Fixture {
    Fixture::open(&fixtures().join("images/expected.safetensors"))
}

/// The values under `prefix/`, by picture.
fn values<'a>(fixture: &'a Fixture, prefix: &str) -> BTreeMap<&'a str, &'a Tensor> {
    let names = fixture.names().filter_map(|name| name.strip_prefix(prefix)?.strip_prefix('/'));
    let values: BTreeMap<_, _> = names.map(|name| (name, fixture.tensor(&format!("{prefix}/{name}")))).collect();
    assert!(!values.is_empty(), "nothing of {prefix}");
    values
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("images").join(name)).unwrap()
}

fn decode(name: &str) -> Picture {
    let bytes = bytes(name);
    Header::read(&bytes).unwrap().decode().unwrap()
}

/// Levels of 255 that a decoder may differ by. Of JPEG the rounding of the transform is open, and how colours of a quarter
/// of the resolution are enlarged at the border, which small pictures have more of.
fn tolerance(name: &str) -> i32 {
    match name {
        name if name.starts_with("exif") && name.ends_with(".jpg") => 7,
        "xmp_6.jpg" => 7,
        name if name.ends_with(".jpg") => 4,
        _ => 0,
    }
}

#[test]
fn decoded_pictures_match() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for (name, expected) in values(&fixture, "rgb") {
        let picture = decode(name);
        assert_eq!(expected.size(), [picture.height as i64, picture.width as i64, 3], "{name}");
        let expected = Vec::<u8>::try_from(expected.flatten(0, -1)).unwrap();
        let differences = picture.pixels.iter().zip(&expected).map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs());
        let mean = f64::from(differences.clone().sum::<i32>()) / expected.len() as f64;
        let worst = differences.max().unwrap();
        println!("{name}: {worst} at most, {mean:.2} on average");
        if worst > tolerance(name) || mean > 0.6 {
            wrong.push(format!("{name}: {worst}, {mean:.2}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn pixel_values_match_for_every_configuration() {
    let fixture = fixture();
    let configs: BTreeMap<String, serde_json::Value> = serde_json::from_str(fixture.metadata("configs")).unwrap();
    for (config, settings) in configs {
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::write(folder.path().join(PREPROCESSOR_CONFIG), settings.to_string()).unwrap();
        let processor = ImageProcessor::open(&Folder::from(folder.path()), PREPROCESSOR_CONFIG).unwrap();
        for (name, expected) in values(&fixture, &config) {
            let picture = processor.crop(decode(name)).unwrap();
            let shape = [3, picture.height as i64, picture.width as i64];
            let actual = Tensor::from_slice(&processor.normalize(&picture)).reshape(shape);
            assert_eq!(actual.size(), expected.size(), "{config} {name}");
            let error = (actual - expected).abs().max().double_value(&[]);
            assert!(error == 0.0, "{config} {name}: off by {error}");
        }
    }
}

#[test]
fn embeddings_match() {
    let (fixture, model) = (fixture(), fixtures().join("pipelines/kandinsky22"));
    let mut pipeline = Pipeline::open(&model, Placement { device: Device::Cpu, precision: Precision::F32 }).unwrap();
    let (processor, size) = (pipeline.image_processor().unwrap(), pipeline.image_size().unwrap());
    let expected = values(&fixture, "image_embeds");
    let pixels: Vec<f32> =
        expected.keys().flat_map(|name| processor.pixel_values(&bytes(name), size, |_| ()).unwrap()).collect();
    let shape = [expected.len() as i64, 3, size as i64, size as i64];
    let embeds = pipeline.encode_images(&Tensor::from_slice(&pixels).reshape(shape)).unwrap();
    for (row, (name, expected)) in (0..).zip(&expected) {
        let embed = embeds.get(row);
        let cosine = (&embed * *expected).sum(Kind::Double) / (embed.norm() * expected.norm());
        let distance = 1.0 - cosine.double_value(&[]);
        assert!(distance < 1e-3, "{name}: {distance:.1e} by cosine distance");
        if tolerance(name) == 0 {
            let error = relative_error(&embed, expected);
            assert!(error < 1e-5, "{name}: off by {error:.1e} of the largest value");
        }
    }
}

#[test]
fn damaged_pictures_are_refused_without_a_panic() {
    let names = ["rgb.png", "palette.gif", "lossy_alpha.webp", "rgb.bmp", "lzw.tiff", "exif_5.jpg", "progressive.jpg"];
    for name in names {
        let whole = bytes(name);
        let read = |bytes: &[u8]| Header::read(bytes).and_then(Header::decode);
        assert!(read(&whole).is_ok(), "{name}");
        for cut in (0..whole.len() / 2).step_by(7) {
            assert!(read(&whole[..cut]).is_err(), "{name} cut at {cut}");
        }
        for place in (0..whole.len()).step_by(3) {
            let mut changed = whole.clone();
            changed[place] ^= 0xff;
            let _ = read(&changed);
        }
    }
    assert_eq!(Header::read(b"").err().unwrap(), "is empty");
    assert!(Header::read(b"plain text").err().unwrap().contains("not a JPEG"));
}

/// A PNG's header that lies about its size, and nothing behind it.
#[test]
fn a_small_file_cannot_ask_for_much_memory() {
    let png = |width: u32, height: u32| {
        let header = [&b"IHDR"[..], &width.to_be_bytes(), &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
        let crc = crc32fast::hash(&header).to_be_bytes();
        let empty = |name: &[u8]| [&[0; 4], name, &crc32fast::hash(name).to_be_bytes()].concat();
        let start = [&b"\x89PNG\r\n\x1a\n\0\0\0\x0d"[..], &header, &crc].concat();
        [start, empty(b"IDAT"), empty(b"IEND")].concat()
    };
    for (width, height, words) in
        [(100_000, 100_000, "178956970 are the maximum"), (u32::MAX, u32::MAX, ""), (1, 178_956_971, "maximum")]
    {
        let reason = Header::read(&png(width, height)).err().unwrap();
        assert!(reason.contains(words), "{reason}");
    }
    assert!(Header::read(&png(13_000, 13_000)).and_then(Header::decode).is_err());
}

/// Nothing is computed beside the crop.
#[test]
fn extreme_shapes_are_cheap() {
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::write(folder.path().join(PREPROCESSOR_CONFIG), "{}").unwrap();
    let processor = ImageProcessor::open(&Folder::from(folder.path()), PREPROCESSOR_CONFIG).unwrap();
    for (width, height) in [(1, 2_000_000), (2_000_000, 1), (1, 1), (5000, 1)] {
        let picture = Picture { width, height, pixels: vec![7; width * height * 3], color_key: None };
        let cropped = processor.crop(picture).unwrap();
        assert_eq!((cropped.width, cropped.height), (224, 224));
        assert!(cropped.pixels.iter().all(|level| *level == 7), "{width} x {height}");
    }
}

#[test]
fn configurations_that_are_not_supported_are_refused() {
    let folder = tempfile::TempDir::new().unwrap();
    for (text, word) in [
        (r#"{"resample": 6}"#, "resample"),
        (r#"{"size": {"longest_edge": 224}}"#, "size"),
        (r#"{"size": {"shortest_edge": 224, "longest_edge": 300}}"#, "size"),
        (r#"{"size": 0}"#, "size"),
        (r#"{"size": {"height": 224}}"#, "size"),
        (r#"{"crop_size": {"shortest_edge": 224}}"#, "crop_size"),
        (r#"{"crop_size": 99999999}"#, "crop_size"),
        (r#"{"image_mean": [0.5]}"#, "image_mean"),
        (r#"{"image_std": 0}"#, "image_std"),
        (r#"{"rescale_factor": "x"}"#, "rescale_factor"),
        (r#"{"do_pad": true}"#, "do_pad"),
        (r#"{"use_square_size": true}"#, "use_square_size"),
        (r#"{"image_processor_type": "SiglipImageProcessor"}"#, "SiglipImageProcessor"),
        (r#"{"feature_extractor_type": "ViTFeatureExtractor"}"#, "ViTFeatureExtractor"),
        ("[]", "JSON object"),
    ] {
        std::fs::write(folder.path().join(PREPROCESSOR_CONFIG), text).unwrap();
        let error = ImageProcessor::open(&Folder::from(folder.path()), PREPROCESSOR_CONFIG).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(PREPROCESSOR_CONFIG), "{text}: {error}");
    }
    for text in [
        r#"{"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "image_mean": null}"#,
        r#"{"image_processor_type": "CLIPImageProcessorFast", "do_pad": false, "other": [1]}"#,
    ] {
        std::fs::write(folder.path().join(PREPROCESSOR_CONFIG), text).unwrap();
        let processor = ImageProcessor::open(&Folder::from(folder.path()), PREPROCESSOR_CONFIG).unwrap();
        assert!(processor.check_size(224).is_ok() && processor.check_size(96).is_err(), "{text}");
    }
}
