//! Runs that start from image embeddings against diffusers, through the library's own face.

use super::common::{Fixture, fixtures, relative_error};
use crate::{EmbedOptions, Prior};
use ndarray::{Array2, s};
use serde::Deserialize;
use tch::Tensor;

#[derive(Debug, Deserialize)]
struct Cases {
    start: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    prompts: Vec<String>,
    negative_prompt: Option<String>,
    steps: usize,
    guidance_scale: f64,
    seed: u64,
    samples_per_prompt: usize,
    strength: f64,
    images: usize,
    is_call: bool,
}

fn prior() -> Prior {
    Prior::open(fixtures().join("pipelines/kandinsky22")).unwrap()
}

fn images(fixture: &Fixture) -> Array2<f32> {
    let tensor = fixture.tensor("images");
    let (rows, dim) = tensor.size2().unwrap();
    let values = Vec::<f32>::try_from(tensor.reshape(-1)).unwrap();
    Array2::from_shape_vec((rows as usize, dim as usize), values).unwrap()
}

fn to_tensor(array: &Array2<f32>) -> Tensor {
    Tensor::from_slice(array.as_standard_layout().as_slice().unwrap()).reshape([array.nrows() as i64, -1])
}

#[test]
fn rows_that_start_from_images_have_the_embeddings_of_diffusers() {
    let fixture = Fixture::open(&fixtures().join("mixing/expected.safetensors"));
    let Cases { start: cases } = serde_json::from_str(fixture.metadata("cases")).unwrap();
    let images = images(&fixture);
    for (index, case) in cases.iter().enumerate() {
        let mut options = EmbedOptions::new()
            .image(images.slice(s![..case.images, ..]).to_owned(), case.strength)
            .steps(case.steps)
            .guidance_scale(case.guidance_scale)
            .samples(case.samples_per_prompt)
            .negative_image_embeds(true);
        options = if case.is_call { options.one_generator(case.seed) } else { options.seed(case.seed) };
        if let Some(prompt) = &case.negative_prompt {
            options = options.negative_prompt(prompt);
        }
        let found = prior().embed(&case.prompts, &options).unwrap();
        let arrays =
            [("image_embeds", found.image_embeds), ("negative_image_embeds", found.negative_image_embeds.unwrap())];
        for (name, found) in arrays {
            let expected = fixture.tensor(&format!("start.{index}.{name}"));
            let error = relative_error(&to_tensor(&found), expected);
            assert!(error < 1e-4, "{index}: {name} off by {error:.1e} in {case:?}");
        }
    }
    assert!(cases.len() >= 9, "only {} cases", cases.len());
}

#[test]
fn at_less_than_one_step_a_row_is_its_image() {
    let images = images(&Fixture::open(&fixtures().join("mixing/expected.safetensors")));
    for (steps, strength) in [(25, 0.0), (25, 0.039), (3, 0.3)] {
        let options = EmbedOptions::new().image(images.clone(), strength).steps(steps).seed(4);
        assert_eq!(prior().embed(&["a cat", "a dog"], &options).unwrap().image_embeds, images, "{steps} {strength}");
    }
}

#[test]
fn images_that_do_not_fit_are_refused() {
    let refused = |prior: &mut Prior, rows: usize, dim: usize, strength: f64, words: &str| {
        let options = EmbedOptions::new().image(Array2::ones((rows, dim)), strength);
        let error = prior.embed(&["a", "b", "c"], &options).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let mut own = prior();
    refused(&mut own, 3, 15, 0.5, "15 numbers a row, and this model's embeddings have 16");
    refused(&mut own, 2, 16, 0.5, "image: there are 2 for 3 prompts");
    refused(&mut own, 1, 16, 1.5, "its strength is 1.5");
    refused(&mut own, 1, 16, f64::NAN, "its strength is NaN");
    let fixture = |name: &str| Prior::open(fixtures().join(name)).unwrap();
    refused(&mut fixture("one_step/kandinsky22"), 1, 16, 0.5, "takes no image");
    refused(&mut fixture("pipelines/stable_unclip_layout"), 1, 16, 0.5, "needs the scheduler unclip, and this is ddpm");
}

#[test]
fn the_best_of_several_draws_has_their_scores() {
    let prompts = ["a red apple", "two cats"];
    let options = EmbedOptions::new().steps(3).seed(5).text_embeds(true).negative_image_embeds(true);
    let options = options.negative_prompt("rain");
    let all = prior().embed(&prompts, &options.clone().samples(6)).unwrap();
    let best = prior().embed(&prompts, &options.samples(2).best_of(3)).unwrap();
    let (scores, texts) = (best.scores.unwrap(), all.text_embeds.unwrap());
    assert_eq!((scores.dim(), best.image_embeds.nrows(), best.text_embeds.unwrap().nrows()), ((4, 3), 4, 4));
    assert_eq!(best.negative_image_embeds.unwrap().nrows(), 4);
    for (row, scores) in scores.outer_iter().enumerate() {
        let products: Vec<f32> =
            (0..3).map(|draw| all.image_embeds.row(row * 3 + draw).dot(&texts.row(row * 3 + draw))).collect();
        assert!(scores.iter().zip(&products).all(|(score, product)| (score - product).abs() < 1e-4 * product.abs()));
        let kept = (1..3).fold(0, |kept, draw| if scores[draw] > scores[kept] { draw } else { kept });
        let difference = &best.image_embeds.row(row) - &all.image_embeds.row(row * 3 + kept);
        assert!(difference.iter().all(|value| value.abs() < 1e-4), "{row}");
    }
    assert!(all.scores.is_none());
}
