//! Pipelines with components from elsewhere against diffusers.

use super::common::{Fixture, fixtures};
use super::pipelines::{Case, OPTIONS};
use crate::error::Component;
use crate::files::Folder;
use crate::pipeline::Pipeline;
use crate::pipeline::component::component_at;
use crate::pipeline::layout::{Layout, Replacements};
use std::collections::BTreeMap;

fn component(name: &str) -> Component {
    match name {
        "prior" => Component::Prior,
        "text_encoder" => Component::TextEncoder,
        "image_encoder" => Component::ImageEncoder,
        "tokenizer" => Component::Tokenizer,
        _ => panic!("{name} is no component"),
    }
}

#[test]
fn components_from_elsewhere_give_the_embeddings_of_diffusers() {
    let folder = fixtures().join("components");
    let expected = Fixture::open(&folder.join("expected.safetensors"));
    let base = Folder::from(&fixtures().join("pipelines").join(expected.metadata("base")));
    let runs: Vec<BTreeMap<String, String>> = serde_json::from_str(expected.metadata("runs")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(expected.metadata("cases")).unwrap();
    assert!(runs.len() >= 5 && cases.len() >= 2);
    for (number, run) in runs.iter().enumerate() {
        let found = run.iter().map(|(name, place)| {
            let component = component(name);
            (component, component_at(&folder.join(place), component).unwrap())
        });
        let replacements: Replacements = found.collect();
        let mut pipeline = Pipeline::of_layout(Layout::find(&base, &replacements).unwrap(), OPTIONS).unwrap();
        for (index, case) in cases.iter().enumerate() {
            case.check_as(&mut pipeline, &expected, &format!("{number}.{index}"));
        }
    }
}
