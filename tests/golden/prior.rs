//! The prior against diffusers, over every option of its configuration.

use crate::common::{Fixture, files_in};
use prior_embed::model::prior::{PriorConfig, PriorTransformer};

#[test]
fn priors_match() {
    let paths = files_in("prior");
    assert!(paths.len() >= 10, "only {} configurations", paths.len());
    for path in paths {
        let fixture = Fixture::open(&path);
        let config: PriorConfig = fixture.config();
        let prior = fixture.build(|weights| PriorTransformer::load(weights, &config));
        let output = prior
            .forward(
                fixture.tensor("inputs.hidden_states"),
                fixture.tensor("inputs.timestep"),
                fixture.tensor("inputs.proj_embedding"),
                fixture.get("inputs.encoder_hidden_states"),
                fixture.get("inputs.attention_mask"),
            )
            .unwrap_or_else(|error| panic!("{}: {error:#}", fixture.name()));
        let predicted = output.predicted_image_embedding;
        fixture.assert_close("outputs.predicted_image_embedding", &predicted, 1e-5);
        let processed = prior.post_process_latents(&predicted).unwrap();
        fixture.assert_close("outputs.post_process_latents", &processed, 1e-5);
    }
}
