//! CLIP's towers against transformers.

use crate::common::{Fixture, files_in};
use prior_embed::model::image_encoder::{ImageEncoder, ImageEncoderConfig};
use prior_embed::model::text_encoder::{TextEncoder, TextEncoderConfig};

#[test]
fn text_encoders_match() {
    for path in files_in("text_encoder") {
        let fixture = Fixture::open(&path);
        let config: TextEncoderConfig = fixture.config();
        let encoder = fixture.build(|weights| TextEncoder::load(weights, &config));
        let output = encoder.forward(fixture.tensor("inputs.input_ids")).unwrap();
        fixture.assert_close("outputs.last_hidden_state", &output.last_hidden_state, 1e-5);
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
