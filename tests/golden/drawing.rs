//! Pictures of embeddings against the decoder's definition in torch.

use super::common::{Fixture, fixtures};
use crate::files::Folder;
use crate::nn::decoder::{Decoder, DecoderConfig};
#[cfg(builtin_decoder)]
use crate::pipeline::BuiltinDecoder;
use crate::weights::checkpoint::{Checkpoint, Placement};
use crate::weights::precision::Precision;
#[cfg(builtin_decoder)]
use ndarray::Array2;
use tch::Device;

#[test]
fn pictures_match() {
    let folder = fixtures().join("drawing");
    let fixture = Fixture::open(&folder.join("small.safetensors"));
    let checkpoint = Checkpoint::open_file(&Folder::from(&*folder), "small_weights.safetensors").unwrap();
    let config = DecoderConfig::of(&checkpoint);
    let expected = DecoderConfig {
        dim: 12,
        width: 16,
        layers: 2,
        slots: 3,
        key_width: 5,
        things: 11,
        latent_width: 7,
        sprite: 18,
        channels: 6,
    };
    assert_eq!(config, expected);
    let placement = Placement { device: Device::Cpu, precision: Precision::F32 };
    let decoder = checkpoint.build("", placement, |weights| Decoder::load(weights, &config)).unwrap();
    let embeds = fixture.tensor("embeds");
    fixture.assert_close("pixels", &decoder.forward(embeds).unwrap(), 1e-5);
    // Lengths say nothing.
    fixture.assert_close("pixels", &decoder.forward(&(embeds * 1e4)).unwrap(), 1e-5);
}

/// Within a level of 255, and nearly all of them equal.
#[cfg(builtin_decoder)]
#[test]
fn the_built_in_decoder_draws_what_it_was_trained_to() {
    let fixture = Fixture::open(&fixtures().join("drawing/shipped.safetensors"));
    let (embeds, levels) = (fixture.tensor("embeds"), fixture.tensor("levels"));
    let (rows, dim) = embeds.size2().unwrap();
    let values = Vec::<f32>::try_from(embeds.flatten(0, -1)).unwrap();
    let array = Array2::from_shape_vec((rows as usize, dim as usize), values).unwrap();
    let decoder = BuiltinDecoder::open().unwrap();
    let drawn = decoder.draw(0, array.view()).unwrap();
    assert_eq!(levels.size(), drawn.shape().iter().map(|length| *length as i64).collect::<Vec<_>>());
    assert_eq!(BuiltinDecoder::sizes().unwrap(), (array.ncols(), decoder.side()));
    let expected = Vec::<u8>::try_from(levels.flatten(0, -1)).unwrap();
    let differences = drawn.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
    assert!(differences.clone().max().unwrap() <= 1);
    let differing = differences.filter(|difference| *difference > 0).count();
    assert!(differing * 1000 <= expected.len(), "{differing} of {} differ", expected.len());
}

/// A batch is bounded, its rows are told by their numbers, and none is drawn of numbers that are no embedding's.
#[cfg(builtin_decoder)]
#[test]
fn what_is_no_embedding_is_refused() {
    use crate::Error;
    let decoder = BuiltinDecoder::open().unwrap();
    let (dim, side) = BuiltinDecoder::sizes().unwrap();
    let reason = |embeds: Array2<f32>| match decoder.draw(64, embeds.view()) {
        Err(Error::Option { option: "embeds", reason }) => reason,
        other => panic!("{other:?}"),
    };
    let mut embeds = Array2::from_shape_fn((3, dim), |(row, column)| ((row * dim + column) as f32).sin());
    assert!(reason(Array2::zeros((2, dim + 1))).contains("have 192"));
    embeds[(1, 5)] = 3e38;
    assert!(reason(embeds.clone()).contains("row 65"));
    embeds[(1, 5)] = f32::NAN;
    assert!(reason(embeds).contains("row 65"));
    assert_eq!(decoder.draw(0, Array2::zeros((0, dim)).view()).unwrap().dim(), (0, side, side, 3));
    // The middle of what it knows.
    assert_eq!(decoder.draw(0, Array2::zeros((1, dim)).view()).unwrap().dim(), (1, side, side, 3));
}
