//! The library as a program that depends on it sees it.

// In a test, a panic is a failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ndarray::{Array2, Array3, ArrayView2, s};
use prior_embed::{
    Component, Conditions, Device, EmbedOptions, Error, Hint, Item, LoadOptions, Prior, Progress, Truncation,
};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A small model with everything in it.
fn kandinsky() -> Prior {
    Prior::open(fixture("pipelines/kandinsky22")).unwrap()
}

fn few_steps() -> EmbedOptions {
    EmbedOptions::new().steps(3)
}

/// A copy of the small model, to damage.
fn copy() -> TempDir {
    fn copy_into(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in from.read_dir().unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy_into(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let folder = TempDir::new().unwrap();
    copy_into(&fixture("pipelines/kandinsky22"), folder.path());
    folder
}

fn difference(left: ArrayView2<f32>, right: ArrayView2<f32>) -> f32 {
    assert_eq!(left.dim(), right.dim());
    (&left - &right).iter().fold(0.0, |largest, value| value.abs().max(largest))
}

#[test]
fn a_seed_decides_a_row() {
    let mut prior = Prior::builtin().unwrap();
    let prompts = ["a red apple", "two cats"];
    let options = few_steps().samples(2);
    let embeds = prior.embed(&prompts, &options.clone().seed(7)).unwrap().image_embeds;
    assert_eq!(embeds.dim(), (4, prior.embedding_dim()));
    let again = prior.embed(&prompts, &options.clone().seeds([7, 9])).unwrap().image_embeds;
    assert_eq!(embeds, again);
    let second = prior.embed(&["two cats".to_string()], &few_steps().seed(9)).unwrap().image_embeds;
    assert!(difference(second.view(), embeds.slice(s![2..3, ..])) < 1e-5);
    let other = prior.embed(&prompts, &options.seed(8)).unwrap().image_embeds;
    assert!(difference(embeds.view(), other.view()) > 1e-3);
    let none = prior.embed::<&str>(&[], &few_steps().negative_image_embeds(true)).unwrap();
    assert_eq!((none.image_embeds.dim().0, none.negative_image_embeds.unwrap().dim().0), (0, 0));
}

#[test]
fn negative_embeddings_are_of_a_black_image_or_of_the_negative_prompts() {
    let mut prior = kandinsky();
    let prompts = ["a red apple", "two cats", "a house"];
    let options = few_steps().negative_image_embeds(true).batch_size(2);
    let plain = prior.embed(&prompts, &options).unwrap();
    let black = plain.negative_image_embeds.unwrap();
    assert_eq!(black.dim(), plain.image_embeds.dim());
    assert_eq!(black.row(0), black.row(2));
    let each = prior.embed(&prompts, &options.clone().negative_prompts(["rain", "", "rain"])).unwrap();
    let same = prior.embed(&prompts, &options.negative_prompt("rain")).unwrap();
    let difference_in = |row: usize| {
        let [each, same] = [&each, &same].map(|embeddings| embeddings.negative_image_embeds.as_ref().unwrap());
        difference(each.slice(s![row..=row, ..]), same.slice(s![row..=row, ..]))
    };
    assert!(difference_in(0) < 1e-5 && difference_in(1) > 1e-3 && difference_in(2) < 1e-5);
}

/// Both compute one row at a time, so that not even the last bit depends on how rows are grouped.
#[cfg(feature = "cli")]
#[test]
fn the_program_gives_the_same_numbers() {
    use ndarray_npy::ReadNpyExt;
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("embeds.npy");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_prior-embed"));
    command.arg("-m").arg(fixture("pipelines/kandinsky22")).args(["-p", "a red apple", "-p", "two cats"]);
    command.args(["--steps", "3", "--seed", "5", "--negative-prompt", "rain", "--batch-size", "1", "--out"]).arg(&out);
    assert!(command.status().unwrap().success());
    let expected = Array2::<f32>::read_npy(fs::File::open(out).unwrap()).unwrap();
    let options = few_steps().seed(5).negative_prompt("rain").batch_size(1);
    let embeds = kandinsky().embed(&["a red apple", "two cats"], &options).unwrap().image_embeds;
    assert_eq!(embeds, expected);
}

#[test]
fn the_text_encoder_may_be_freed_between_batches() {
    let options = few_steps().batch_size(1);
    let kept = kandinsky().embed(&["a red apple", "two cats"], &options).unwrap();
    let mut prior = LoadOptions::new().keep_text_encoder(false).open(fixture("pipelines/kandinsky22")).unwrap();
    for _ in 0..2 {
        let freed = prior.embed(&["a red apple", "two cats"], &options).unwrap();
        assert!(difference(kept.image_embeds.view(), freed.image_embeds.view()) < 1e-5);
    }
}

#[test]
fn components_may_come_from_elsewhere() {
    let embed = |options: &LoadOptions| {
        let mut prior = options.open(fixture("pipelines/kandinsky22")).unwrap();
        prior.embed(&["a red apple"], &few_steps().negative_image_embeds(true)).unwrap()
    };
    let plain = embed(&LoadOptions::new());
    let (prior, clip) = (fixture("components/prior"), fixture("components/clip"));
    let replaced = embed(&LoadOptions::new().prior(prior.clone()));
    assert!(difference(plain.image_embeds.view(), replaced.image_embeds.view()) > 1e-2);
    assert_eq!(plain.negative_image_embeds, replaced.negative_image_embeds);
    let image = embed(&LoadOptions::new().image_encoder(clip.clone()));
    assert_eq!(plain.image_embeds, image.image_embeds);
    assert_ne!(plain.negative_image_embeds, image.negative_image_embeds);
    // By name as by path.
    let named = LoadOptions::new().prior(prior.to_str().unwrap()).text_encoder(clip.to_str().unwrap());
    let text = embed(&LoadOptions::new().prior(prior.clone()).text_encoder(clip.clone()));
    assert_eq!(embed(&named), text);
    assert_ne!(embed(&LoadOptions::new().prior(prior).text_encoder(clip.clone()).tokenizer(clip.clone())), text);
    let wrong = LoadOptions::new().prior(clip).open(fixture("pipelines/kandinsky22"));
    assert!(matches!(wrong, Err(Error::File { .. })), "{wrong:?}");
    let unknown = LoadOptions::new().prior("./nothing").open(fixture("pipelines/kandinsky22"));
    assert!(matches!(unknown, Err(Error::Option { option: "prior", .. })), "{unknown:?}");
}

#[test]
fn a_lora_changes_the_prior_and_may_come_later() {
    let lora = fixture("checkpoints/lora/peft");
    let embed = |prior: &mut Prior| prior.embed(&["a red apple"], &few_steps()).unwrap().image_embeds;
    let mut prior = kandinsky();
    let plain = embed(&mut prior);
    prior.add_lora(&lora, 1.0).unwrap();
    let changed = embed(&mut prior);
    assert!(difference(plain.view(), changed.view()) > 1e-4);
    let mut first = kandinsky();
    first.add_lora(&lora, 1.0).unwrap();
    assert_eq!(embed(&mut first), changed);
    assert!(Prior::builtin().unwrap().add_lora(&lora, 1.0).is_err(), "a LoRA for another model");
}

/// Counts the steps of a run.
struct Steps(usize);

impl Progress for Steps {
    fn step(&mut self, done: usize, total: usize) {
        assert!(done == self.0 + 1 && done <= total);
        self.0 = done;
    }
}

#[test]
fn a_scheduler_may_be_chosen() {
    let open = |options: LoadOptions| options.open(fixture("pipelines/kandinsky22"));
    let embed =
        |options: LoadOptions| open(options).unwrap().embed(&["a red apple"], &few_steps()).unwrap().image_embeds;
    let own = embed(LoadOptions::new());
    assert_eq!(embed(LoadOptions::new().scheduler("unclip")), own);
    let ddim = embed(LoadOptions::new().scheduler("ddim"));
    assert!(difference(own.view(), ddim.view()) > 1e-4);
    assert!(difference(embed(LoadOptions::new().scheduler("ddim").eta(1.0)).view(), ddim.view()) > 1e-4);
    // Of two batches; Heun's method runs the prior twice a step, but for the last.
    let mut steps = Steps(0);
    let mut heun = open(LoadOptions::new().scheduler("heun")).unwrap();
    heun.embed_with(&["a red apple", "two cats"], &few_steps().steps(4).batch_size(1), &mut steps).unwrap();
    assert_eq!(steps.0, 2 * 7);
    for (options, expected) in [
        (LoadOptions::new().scheduler("pndm"), "scheduler"),
        (LoadOptions::new().eta(1.0), "eta"),
        (LoadOptions::new().scheduler("ddim").sde(true), "sde"),
        (LoadOptions::new().scheduler("ddim").eta(f64::NAN), "eta"),
        (LoadOptions::new().scheduler("dpm-solver++").solver_order(4), "solver_order"),
    ] {
        match open(options) {
            Err(Error::Option { option, .. }) => assert_eq!(option, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_one_step_prior_has_no_steps_and_no_guidance_to_choose() {
    let mut prior = Prior::open(fixture("one_step/kandinsky22")).unwrap();
    let options = EmbedOptions::new().samples(2).negative_prompt("blurry").negative_image_embeds(true);
    let embeds = prior.embed(&["a red apple", ""], &options).unwrap();
    assert_eq!(embeds.image_embeds.dim(), (4, prior.embedding_dim()));
    let negative = EmbedOptions::new().samples(4).seed(4);
    let negative = prior.embed(&["blurry"], &negative).unwrap().image_embeds;
    assert!(difference(embeds.negative_image_embeds.unwrap().view(), negative.view()) < 1e-5);
    for (options, expected) in
        [(EmbedOptions::new().steps(25), "steps"), (EmbedOptions::new().guidance_scale(4.0), "guidance_scale")]
    {
        match prior.embed(&["a"], &options) {
            Err(Error::Option { option, reason }) => {
                assert!(option == expected && reason.contains("one-step"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_autoregressive_prior_has_a_temperature_and_no_steps() {
    let mut prior = Prior::open(fixture("autoregressive/small")).unwrap();
    let options = EmbedOptions::new().samples(2).negative_prompt("blurry").negative_image_embeds(true);
    let embeds = prior.embed(&["a red apple", ""], &options).unwrap();
    assert_eq!(embeds.image_embeds.dim(), (4, prior.embedding_dim()));
    let negative = EmbedOptions::new().samples(4).seed(4).negative_prompt("blurry");
    let negative = prior.embed(&["blurry"], &negative).unwrap().image_embeds;
    assert!(difference(embeds.negative_image_embeds.unwrap().view(), negative.view()) < 1e-5);
    let mut greedy = |seed| prior.embed(&["a red apple"], &EmbedOptions::new().temperature(0.0).seed(seed)).unwrap();
    assert_eq!(greedy(1), greedy(2));
    for (options, expected, word) in [
        (EmbedOptions::new().steps(25), "steps", "autoregressive"),
        (EmbedOptions::new().latents(Array2::zeros((1, 16))), "latents", "autoregressive"),
        (EmbedOptions::new().temperature(-0.5), "temperature", "0 or above"),
        (EmbedOptions::new().temperature(f64::NAN), "temperature", "0 or above"),
    ] {
        match prior.embed(&["a"], &options) {
            Err(Error::Option { option, reason }) => assert!(option == expected && reason.contains(word), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    let error = kandinsky().embed(&["a"], &few_steps().temperature(1.0)).unwrap_err();
    assert!(matches!(&error, Error::Option { option: "temperature", .. }), "{error:?}");
}

/// A token is a step of progress.
#[test]
fn an_autoregressive_prior_reports_its_tokens() {
    struct Steps(Vec<(usize, usize)>);
    impl Progress for Steps {
        fn step(&mut self, done: usize, total: usize) {
            self.0.push((done, total));
        }
    }
    let mut prior = Prior::open(fixture("autoregressive/odd")).unwrap();
    let mut steps = Steps(Vec::new());
    prior.embed_with(&["a", "b"], &EmbedOptions::new().batch_size(1), &mut steps).unwrap();
    assert_eq!(steps.0, (1..=14).map(|step| (step, 14)).collect::<Vec<_>>());
}

#[test]
fn shap_e_gives_latents_and_takes_no_negative_prompt() {
    let mut prior = Prior::open(fixture("shap_e/shap_e")).unwrap();
    assert_eq!((prior.row_shape(), prior.embedding_dim()), (Some([6, 5]), 30));
    let latents = prior.embed(&["a red apple", ""], &few_steps()).unwrap();
    assert!(latents.image_embeds.dim() == (2, 30) && latents.negative_image_embeds.is_none());
    for (options, expected) in [
        (few_steps().negative_prompt("blurry"), "negative_prompts"),
        (few_steps().negative_image_embeds(true), "negative_image_embeds"),
    ] {
        match prior.embed(&["a"], &options) {
            Err(Error::Option { option, reason }) => {
                assert!(option == expected && reason.contains("Shap-E"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn errors_are_told_apart_by_their_variants() {
    let missing = Prior::open("/no/such/folder").unwrap_err();
    assert!(matches!(&missing, Error::MissingComponent { component: Component::Prior, .. }), "{missing:?}");
    assert!(missing.is_bad_input() && missing.hint().is_some());

    let mut prior = kandinsky();
    for (options, expected) in [
        (few_steps().steps(0), "steps"),
        (few_steps().steps(prior.max_steps() + 1), "steps"),
        (few_steps().seeds([1, 2]), "seeds"),
        (few_steps().negative_prompts(["a", "b"]), "negative_prompts"),
    ] {
        match prior.embed(&["a red apple"], &options) {
            Err(Error::Option { option, .. }) => assert_eq!(option, expected),
            other => panic!("{other:?}"),
        }
    }
    let far_away = LoadOptions::new().device(Device::Cuda(1000)).builtin();
    assert!(matches!(far_away, Err(Error::Option { option: "device", .. })));

    let model = copy();
    fs::write(model.path().join("model_index.json"), "{").unwrap();
    match Prior::open(model.path()) {
        Err(Error::File { path, hint, .. }) => {
            assert!(path.ends_with("model_index.json") && hint == Some(Hint::FetchAgain), "{path} {hint:?}");
        }
        other => panic!("{other:?}"),
    }
    fs::remove_file(model.path().join("model_index.json")).unwrap();
    fs::remove_dir_all(model.path().join("image_encoder")).unwrap();
    let mut prior = Prior::open(model.path()).unwrap();
    let no_encoder = prior.embed(&["a"], &few_steps().negative_image_embeds(true));
    let component = Component::ImageEncoder;
    assert!(matches!(no_encoder, Err(Error::MissingComponent { component: found, .. }) if found == component));
    fs::remove_dir_all(model.path().join("tokenizer")).unwrap();
    let component = Component::Tokenizer;
    let no_tokenizer = Prior::open(model.path());
    assert!(matches!(no_tokenizer, Err(Error::MissingComponent { component: found, .. }) if found == component));
}

#[derive(Default)]
struct Events {
    loaded: Vec<Component>,
    truncated: Vec<Vec<usize>>,
    steps: Vec<(usize, usize)>,
}

impl Progress for Events {
    fn loading(&mut self, component: Component) {
        self.loaded.push(component);
    }

    fn truncated(&mut self, truncation: &Truncation) {
        assert!(truncation.removed.len() < truncation.prompt.len() && truncation.max_tokens > 2);
        self.truncated.push(truncation.rows.clone());
    }

    fn step(&mut self, done: usize, total: usize) {
        self.steps.push((done, total));
    }
}

#[test]
fn progress_is_reported_over_all_batches() {
    let long = "a very long caption ".repeat(50);
    let mut events = Events::default();
    let options = few_steps().batch_size(2).negative_prompt(&long).negative_image_embeds(true);
    kandinsky().embed_with(&["a", "b", &long], &options, &mut events).unwrap();
    assert_eq!(events.loaded, [Component::TextEncoder, Component::Prior]);
    assert_eq!(events.steps, (1..=12).map(|done| (done, 12)).collect::<Vec<_>>());
    // Row 2, and the negative prompt: of the first batch, and twice as the prompt of a negative embedding.
    assert_eq!(events.truncated, [vec![], vec![2], vec![], vec![]]);
}

#[test]
fn priors_in_several_threads_do_not_disturb_each_other() {
    let embed = |seed: u64| {
        let mut prior = kandinsky();
        let options = few_steps().seed(seed);
        (0..5).map(|_| prior.embed(&["a red apple"], &options).unwrap().image_embeds).collect::<Vec<_>>()
    };
    let expected = [embed(1), embed(2)];
    let threads = [1, 2].map(|seed| std::thread::spawn(move || embed(seed)));
    assert_eq!(threads.map(|thread| thread.join().unwrap()), expected);
}

#[test]
fn a_run_leaves_the_process_as_it_was() {
    let variables: Vec<_> = std::env::vars_os().collect();
    let threads = tch::get_num_threads();
    let draw = || Vec::<f32>::try_from(tch::Tensor::rand([4], tch::kind::FLOAT_CPU)).unwrap();
    tch::manual_seed(5);
    let expected = [draw(), draw()];
    tch::manual_seed(5);
    let first = draw();
    Prior::builtin().unwrap().embed(&["a red apple"], &few_steps()).unwrap();
    assert_eq!([first, draw()], expected, "libtorch's default generator was used");
    assert_eq!(tch::get_num_threads(), threads);
    assert_eq!(std::env::vars_os().collect::<Vec<_>>(), variables);
}

#[test]
fn text_embeddings_and_conditions_are_of_prompts() {
    let mut prior = kandinsky();
    let out = prior.embed(&["a red apple", "two cats"], &few_steps().text_embeds(true)).unwrap();
    let text = out.text_embeds.unwrap();
    assert_eq!(text.dim(), (2, 16));
    assert!(prior.embed(&["a red apple"], &few_steps()).unwrap().text_embeds.is_none());
    // Conditioned on the text embeddings alone.
    let hidden = || (Array3::zeros((2, 77, 16)), Array2::from_elem((2, 77), false));
    let (states, mask) = hidden();
    let conditions = Conditions::new(text.clone(), states, mask).unwrap();
    let options = few_steps().text_embeds(true).samples(2);
    let given = prior.embed_conditions(conditions.clone(), &options, &mut ()).unwrap();
    assert_eq!(given.image_embeds.dim(), (4, 16));
    assert_eq!(given.text_embeds.unwrap().row(3), text.row(1));
    let negative = conditions.clone().with_negative(conditions.clone()).unwrap();
    let refused = [
        prior.embed_conditions(negative, &few_steps().negative_prompt("rain"), &mut ()),
        prior.embed_conditions(conditions, &few_steps().seed_by_prompt(), &mut ()),
    ];
    for result in refused {
        assert!(matches!(result, Err(Error::Option { .. })), "{result:?}");
    }
}

#[test]
fn noise_may_be_given_and_seeds_made_of_prompts() {
    let mut prior = kandinsky();
    let prompts = ["a red apple", "two cats"];
    let first = prior.embed(&prompts, &few_steps().seed_by_prompt()).unwrap().image_embeds;
    let second = prior.embed(&prompts[1..], &few_steps().seed_by_prompt()).unwrap().image_embeds;
    assert!(difference(second.view(), first.slice(s![1.., ..])) < 1e-5);
    // The same noise and prompt, and one step, which draws none: the same row whatever the seed.
    let latents = Array2::from_shape_fn((2, 16), |(_, column)| (column as f32).sin());
    let one_step = EmbedOptions::new().steps(1).latents(latents.clone());
    let [one, other] = [1, 2].map(|seed| prior.embed(&["x", "x"], &one_step.clone().seed(seed)).unwrap().image_embeds);
    assert_eq!(one, other);
    assert!(difference(one.slice(s![..1, ..]), one.slice(s![1.., ..])) < 1e-5);
    for (options, name) in [
        (few_steps().latents(Array2::zeros((3, 16))), "latents"),
        (few_steps().latents(Array2::zeros((2, 5))), "latents"),
        (few_steps().one_generator(0).negative_prompt("n").latents(latents), "latents"),
        (few_steps().one_generator(0).batch_size(1), "batch_size"),
    ] {
        let error = prior.embed(&prompts, &options).unwrap_err();
        assert!(matches!(error, Error::Option { option, .. } if option == name), "{error}");
    }
}

#[cfg(feature = "images")]
#[test]
fn pictures_become_embeddings() {
    let mut prior = kandinsky();
    let picture = |name: &str| fixture("images").join(name);
    let paths: Vec<PathBuf> = (0..20).map(|row| picture(["rgb.png", "exif_6.jpg"][row % 2])).collect();
    let embeds = prior.encode_images(&paths).unwrap();
    assert_eq!(embeds.dim(), (20, prior.embedding_dim()));
    let alone = prior.encode_images(&[picture("exif_6.jpg")]).unwrap();
    assert!(difference(alone.view(), embeds.slice(s![19..20, ..])) < 1e-5);
    assert_eq!(prior.encode_images::<PathBuf>(&[]).unwrap().dim(), (0, prior.embedding_dim()));
    for (name, words) in [("missing.png", "cannot be read"), ("expected.safetensors", "is not a JPEG")] {
        let error = prior.encode_images(&[picture(name)]).unwrap_err();
        assert!(matches!(error, Error::File { .. }) && error.to_string().contains(words), "{error}");
    }
    // The text encoder and the prior work beside it.
    assert_eq!(prior.embed(&["a red apple"], &few_steps()).unwrap().image_embeds.nrows(), 1);
}

#[cfg(feature = "draw")]
#[test]
fn embeddings_of_the_built_in_model_are_drawn() {
    let mut prior = Prior::builtin().unwrap();
    let out = prior.embed(&["a red apple", "a blue car"], &few_steps()).unwrap();
    let pictures = prior.draw(&out.image_embeds).unwrap();
    let (rows, height, width, channels) = pictures.dim();
    assert_eq!((rows, height, channels), (2, width, 3));
    let middle = |row: usize| pictures.slice(s![row, height / 2, width / 2, ..]).to_vec();
    assert!(middle(0)[0] > middle(0)[2] && middle(1)[2] > middle(1)[0], "{:?} {:?}", middle(0), middle(1));
    // More than are drawn at a time.
    let many = Array2::from_shape_fn((130, prior.embedding_dim()), |(row, column)| out.image_embeds[(row % 2, column)]);
    let drawn = prior.draw(&many).unwrap();
    assert!(
        drawn
            .slice(s![129, .., .., ..])
            .iter()
            .zip(pictures.slice(s![1, .., .., ..]))
            .all(|(a, b)| a.abs_diff(*b) <= 1)
    );
    assert_eq!(prior.draw(&Array2::zeros((0, prior.embedding_dim()))).unwrap().dim(), (0, height, width, 3));
    let mut other = kandinsky();
    let embeds = other.embed(&["a red apple"], &few_steps()).unwrap().image_embeds;
    assert!(matches!(other.draw(&embeds), Err(Error::Option { option: "embeds", .. })));
}

/// The numbers of `prior-embed interpolate` and `edit` with the small model, and the negative ones.
#[cfg(feature = "cli")]
fn by_program(folder: &TempDir, arguments: &[&str]) -> [Array2<f32>; 2] {
    use ndarray_npy::ReadNpyExt;
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_prior-embed"));
    command.args(arguments).args(["--steps", "3", "--seed", "5", "--overwrite", "--quiet", "--model"]);
    command.arg(fixture("pipelines/kandinsky22")).args(["--out", "e.npy", "--negative-out", "n.npy"]);
    assert!(command.current_dir(folder.path()).status().unwrap().success());
    ["e.npy", "n.npy"].map(|name| Array2::read_npy(fs::File::open(folder.path().join(name)).unwrap()).unwrap())
}

#[cfg(all(feature = "cli", feature = "images"))]
#[test]
fn mixes_are_those_of_the_program() {
    use ndarray_npy::WriteNpyExt;
    let folder = TempDir::new().unwrap();
    let mut prior = kandinsky();
    let row = prior.embed(&["a house"], &few_steps().seed(9)).unwrap().image_embeds;
    row.write_npy(fs::File::create(folder.path().join("row.npy")).unwrap()).unwrap();
    fs::copy(fixture("images/rgb.png"), folder.path().join("rgb.png")).unwrap();
    let picture = prior.encode_images(&[fixture("images/rgb.png")]).unwrap();
    let items = ["a red apple".into(), picture.row(0).into(), "two cats".into(), row.row(0).into()];
    let weights = [0.5, -0.25, 1.0, 0.125];
    let of_program = ["interpolate", "a red apple", "@rgb.png", "two cats", "@row.npy", "--weights=0.5,-0.25,1,0.125"];
    let options = few_steps().seed(5).negative_image_embeds(true);
    for (given, options) in [
        (&[][..], options.clone()),
        (&["-n", "rain"], options.clone().negative_prompt("rain")),
        (&["--decoder-negative-prompt", "ugly"], options.clone().decoder_negative_prompt("ugly")),
        (&["-n", "rain", "--seed-layout", "call"], options.clone().negative_prompt("rain").one_generator(5)),
    ] {
        let [image, negative] = by_program(&folder, &[&of_program[..], given].concat());
        let mix = prior.interpolate(&items, &weights, &options).unwrap();
        assert!(difference(mix.image_embeds.view(), image.view()) < 1e-5, "{given:?}");
        assert!(difference(mix.negative_image_embeds.unwrap().view(), negative.view()) < 1e-5, "{given:?}");
    }
    // It leaves the prior as it was, with a batch size too.
    let options = few_steps().seed(5);
    let alone = prior.interpolate(&items, &weights, &options.clone().batch_size(1)).unwrap();
    let together = prior.interpolate(&items, &weights, &options).unwrap();
    assert!(difference(alone.image_embeds.view(), together.image_embeds.view()) < 1e-5);
    assert_eq!((together.negative_image_embeds, together.text_embeds), (None, None));
    assert_eq!(prior.embed(&["a house"], &few_steps().seed(9)).unwrap().image_embeds, row);

    let [edited, _] =
        by_program(&folder, &["edit", "@row.npy", "--from", "a house", "--to", "a cat", "--theta", "0.3"]);
    let found = prior.edit(&row, "a house", "a cat", 0.3).unwrap();
    assert!(difference(found.view(), edited.view()) < 1e-5);
    assert_eq!(prior.edit(&row, "a house", "a cat", 0.0).unwrap(), row);
}

#[test]
fn what_cannot_be_mixed_is_told_by_its_option() {
    let mut prior = kandinsky();
    let (short, zeros) = (Array2::zeros((1, 3)), Array2::zeros((2, prior.embedding_dim())));
    let two = ["a cat".into(), "a dog".into()];
    let mut refused = |items: &[Item], weights: &[f64], options: EmbedOptions, option: &str| {
        let error = prior.interpolate(items, weights, &options).unwrap_err();
        assert!(matches!(error, Error::Option { option: found, .. } if found == option), "{option}: {error}");
    };
    refused(&[], &[], few_steps(), "items");
    refused(&[short.row(0).into()], &[1.0], few_steps(), "items");
    refused(&two, &[1.0], few_steps(), "weights");
    refused(&two, &[1.0, f64::NAN], few_steps(), "weights");
    for (option, options) in [
        ("samples", few_steps().samples(2)),
        ("best_of", few_steps().best_of(2)),
        ("seeds", few_steps().seeds([1, 2])),
        ("seed_by_prompt", few_steps().seed_by_prompt()),
        ("negative_prompts", few_steps().negative_prompts(["a", "b"])),
        ("latents", few_steps().latents(zeros.clone())),
        ("image", few_steps().image(zeros.clone(), 0.5)),
        ("text_embeds", few_steps().text_embeds(true)),
        ("steps", few_steps().steps(1001)),
    ] {
        refused(&two, &[0.5, 0.5], options, option);
    }
    let mut refused = |embeds: &Array2<f32>, to: &str, theta: f64, option: &str| {
        let error = prior.edit(embeds, "a cat", to, theta).unwrap_err();
        assert!(matches!(error, Error::Option { option: found, .. } if found == option), "{option}: {error}");
    };
    let ones = Array2::ones((2, zeros.ncols()));
    refused(&short, "a dog", 0.5, "embeds");
    refused(&zeros, "a dog", 0.5, "embeds");
    refused(&ones, "a dog", 1.5, "theta");
    refused(&ones, "a dog", f64::NAN, "theta");
    refused(&ones, "a cat", 0.5, "to");
    let mut shap_e = Prior::open(fixture("shap_e/shap_e")).unwrap();
    assert!(matches!(shap_e.interpolate(&two, &[0.5, 0.5], &few_steps()), Err(Error::Option { option: "items", .. })));
}
