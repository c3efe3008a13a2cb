//! CLIP's towers against transformers.

use super::common::{Fixture, files_in};
use crate::nn::image_encoder::{ImageEncoder, ImageEncoderConfig};
use crate::nn::text_encoder::{TextEncoder, TextEncoderConfig};

#[test]
fn text_encoders_match() {
    for path in files_in("text_encoder") {
        let fixture = Fixture::open(&path);
        let config: TextEncoderConfig = fixture.config();
        let encoder = fixture.build(|weights| TextEncoder::load(weights, &config));
        let input_ids = Vec::<Vec<i64>>::try_from(fixture.tensor("inputs.input_ids")).unwrap();
        let prompts: Vec<&[i64]> = input_ids.iter().map(Vec::as_slice).collect();
        let output = encoder.forward(&prompts).unwrap();
        let states = output.last_hidden_state.reshape(fixture.tensor("outputs.last_hidden_state").size());
        fixture.assert_close("outputs.last_hidden_state", &states, 1e-5);
        fixture.assert_close("outputs.text_embeds", &output.text_embeds, 1e-5);

        // What comes after the pooled token does not have to run.
        let run = |ids: &[i64]| encoder.tokens_to_run(ids, 1);
        let short: Vec<&[i64]> = prompts.iter().map(|ids| &ids[..run(ids)]).collect();
        assert!(short.iter().any(|ids| ids.len() < prompts[0].len()), "{}: nothing is left out", fixture.name());
        let output = encoder.forward(&short).unwrap();
        fixture.assert_close("outputs.text_embeds", &output.text_embeds, 1e-5);
    }
}

#[test]
fn image_encoders_match() {
    for path in files_in("image_encoder") {
        let fixture = Fixture::open(&path);
        let config: ImageEncoderConfig = fixture.config();
        let encoder = fixture.build(|weights| ImageEncoder::load(weights, &config));
        let image_embeds = encoder.forward(fixture.tensor("inputs.pixel_values")).unwrap();
        fixture.assert_close("outputs.image_embeds", &image_embeds, 1e-5);
    }
}
