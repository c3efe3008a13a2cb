//! Shap-E's pipelines against diffusers.

use super::common::{Fixture, fixtures, relative_error};
use super::pipelines::{Case, OPTIONS};
use crate::pipeline::Pipeline;
use tch::Tensor;

#[test]
fn pipelines_give_the_latents_of_diffusers() {
    let mut checked = 0;
    for name in ["shap_e", "normalized"] {
        let folder = fixtures().join("shap_e").join(name);
        let expected = Fixture::open(&folder.join("expected.safetensors"));
        let cases: Vec<Case> = serde_json::from_str(expected.metadata("cases")).unwrap();
        let mut pipeline = Pipeline::open(&folder, OPTIONS).unwrap();
        for (index, case) in cases.iter().enumerate() {
            let latents = expected.tensor(&format!("{index}.latents"));
            let [rows, tokens, dim] = latents.size()[..] else { panic!("{:?}", latents.size()) };
            assert_eq!(pipeline.row_shape(), Some([tokens as usize, dim as usize]));
            let found = pipeline.embed(&case.image_rows(), &case.settings(), &mut ()).unwrap();
            let found = Tensor::from_slice(found.image.as_slice().unwrap()).reshape([rows, tokens, dim]);
            let error = relative_error(&found, latents);
            assert!(error < 1e-4, "{name} case {index}: off by {error:.1e}");
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} cases");
}
