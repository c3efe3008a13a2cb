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

/// Levels of 255 that a decoder may differ by. JPEG and lossy WebP leave the last bit of their transforms open.
fn tolerance(name: &str) -> i32 {
    match name {
        "lossy.webp" | "lossy_alpha.webp" => 2,
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
        let worst = differences.max().unwrap();
        if worst > tolerance(name) {
            wrong.push(format!("{name}: {worst}"));
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
            let picture = processor.crop(&decode(name)).unwrap();
            let shape = [3, picture.height as i64, picture.width as i64];
            let actual = Tensor::from_slice(&processor.normalize(&picture)).reshape(shape);
            assert_eq!(actual.size(), expected.size(), "{config} {name}");
            let error = (actual - expected).abs().max().double_value(&[]);
            assert!(error == 0.0, "{config} {name}: off by {error}");
        }
    }
}
