//! Which files are chosen, and what is told from what.

use super::*;
use crate::weights::checkpoint::candidates::is_weights;

/// A listing, or the part of it that is here.
struct Fake {
    files: Vec<&'static str>,
    is_complete: bool,
    index: &'static str,
}

impl Tree for Fake {
    fn presence(&self, path: &str) -> Presence {
        match self.files.contains(&path) {
            true => Presence::Yes,
            false if self.is_complete => Presence::No,
            false => Presence::Unknown,
        }
    }

    fn may_have_folder(&self, name: &str) -> bool {
        let prefix = format!("{name}/");
        self.files.iter().any(|file| file.starts_with(&prefix))
    }

    fn read_text(&mut self, path: &str) -> Result<String> {
        Ok(match path {
            INDEX => MODEL_INDEX.into(),
            _ if path.ends_with(".index.json") => self.index.into(),
            _ => "{}".into(),
        })
    }

    fn is_remote(&self) -> bool {
        self.is_complete
    }

    fn title(&self) -> String {
        "fake".into()
    }
}

const MODEL_INDEX: &str = r#"{
    "prior": ["diffusers", "PriorTransformer"], "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "UnCLIPScheduler"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"]
}"#;

const SMALL: [&str; 5] = [
    "prior/config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "scheduler/scheduler_config.json",
];
const WHOLE: Scope = Scope::Model { replaced: &[] };
const RUN: Needs = Needs::ALL;

fn plan(weights: &[&'static str], is_complete: bool, needs: Needs) -> Plan {
    let files = SMALL.iter().chain(weights).copied().collect();
    let index = r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-1.safetensors"}}"#;
    Plan::new(&mut Fake { files, is_complete, index }, WHOLE, needs).unwrap()
}

/// The file of the prior's weights that is chosen.
fn chosen(weights: &[&'static str], needs: Needs) -> Option<String> {
    let files = plan(weights, true, needs).files;
    files.into_iter().find(|path| path.starts_with("prior/d")).map(|path| path["prior/".len()..].to_string())
}

#[test]
fn weights_are_chosen_as_they_are_loaded() {
    let all = [
        "prior/diffusion_pytorch_model.safetensors",
        "prior/diffusion_pytorch_model.bin",
        "prior/diffusion_pytorch_model.fp16.safetensors",
    ];
    let sixteen_bit = Needs { sixteen_bit: true, ..RUN };
    assert_eq!(chosen(&all, RUN).unwrap(), "diffusion_pytorch_model.safetensors");
    assert_eq!(chosen(&all[1..], RUN).unwrap(), "diffusion_pytorch_model.bin");
    assert_eq!(chosen(&all[2..], RUN).unwrap(), "diffusion_pytorch_model.fp16.safetensors");
    assert_eq!(chosen(&all, sixteen_bit).unwrap(), "diffusion_pytorch_model.fp16.safetensors");
    assert_eq!(chosen(&all[..2], sixteen_bit).unwrap(), "diffusion_pytorch_model.safetensors");
    assert_eq!(plan(&[], true, RUN).missing, ["prior/*.safetensors"]);
}

#[test]
fn what_is_not_needed_is_left_out() {
    let others = [
        "prior/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "README.md",
    ];
    let is_needed = |plan: &Plan, part: &str| plan.files.iter().any(|file| file.starts_with(part));
    let without = plan(&others, true, RUN);
    assert!(without.is_whole() && !is_needed(&without, "image_encoder") && !is_needed(&without, "unet"));
    let with = plan(&others, true, Needs { image_encoder: Wish::Needed, ..RUN });
    assert!(with.is_whole() && is_needed(&with, "image_encoder/model.safetensors"));
    let small = plan(&others, true, Needs { weights: false, ..RUN });
    assert!(small.is_whole() && !small.files.iter().any(|file| is_weights(file)));
}

#[test]
fn pictures_need_the_image_encoder_and_its_processor_alone() {
    let others = [
        "prior/diffusion_pytorch_model.safetensors",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "image_processor/preprocessor_config.json",
        "feature_extractor/preprocessor_config.json",
    ];
    let pictures =
        Needs { prior: false, text_encoder: false, image_encoder: Wish::Needed, image_processor: true, ..RUN };
    let needed = plan(&others, true, pictures);
    assert!(needed.is_whole());
    let weights: Vec<&String> = needed.files.iter().filter(|file| is_weights(file)).collect();
    assert_eq!(weights, ["image_encoder/model.safetensors"]);
    let has = |plan: &Plan, part: &str| plan.files.iter().any(|file| file.contains(part));
    assert!(has(&needed, "image_processor/preprocessor_config.json") && has(&needed, "prior/config.json"));
    assert!(!has(&plan(&others, true, Needs { image_encoder: Wish::Needed, ..RUN }), "preprocessor_config.json"));
}

#[test]
fn shards_are_those_of_the_index() {
    let index = "prior/diffusion_pytorch_model.safetensors.index.json";
    let found = plan(&[index, "prior/x-1.safetensors", "prior/x-2.safetensors", "prior/x-3.safetensors"], true, RUN);
    let prior: Vec<&String> = found.files.iter().filter(|file| file.starts_with("prior/x")).collect();
    assert_eq!(prior, ["prior/x-1.safetensors", "prior/x-2.safetensors"]);
    assert_eq!(plan(&[index, "prior/x-1.safetensors"], true, RUN).missing, ["prior/x-2.safetensors"]);
    let mut hostile = Fake {
        files: SMALL.iter().copied().chain([index]).collect(),
        is_complete: true,
        index: r#"{"weight_map": {"a": "../../x.safetensors"}}"#,
    };
    assert!(Plan::new(&mut hostile, WHOLE, RUN).unwrap_err().to_string().contains("plain file name"));
}

#[test]
fn each_library_chooses_between_whole_and_sharded_weights_in_its_own_way() {
    let whole = "prior/diffusion_pytorch_model.safetensors";
    let index = "prior/diffusion_pytorch_model.safetensors.index.json";
    let shards = ["prior/x-1.safetensors", "prior/x-2.safetensors"];
    let prior = |weights: &[&'static str], is_complete| {
        let plan = plan(weights, is_complete, RUN);
        let files = plan.files.iter().filter(|path| path.starts_with("prior/") && is_weights(path));
        (files.cloned().collect::<Vec<_>>(), plan)
    };
    let (files, plan) = prior(&[whole, index, shards[0], shards[1]], true);
    assert!(files == shards && plan.is_whole(), "{files:?}");
    let (files, plan) = prior(&[whole, index, shards[0]], true);
    assert!(files == [whole] && plan.is_usable() && plan.absent.contains(&shards[1].to_string()), "stale: {files:?}");
    let (files, plan) = prior(&[whole, index], false);
    assert!(files == [whole] && plan.is_usable() && !plan.is_whole(), "the hub may have the shards");
    let encoder = Fake {
        files: SMALL
            .into_iter()
            .chain([whole, "text_encoder/model.safetensors.index.json", "text_encoder/x-1.safetensors"])
            .chain(["text_encoder/x-2.safetensors", "model_index.json"])
            .collect(),
        is_complete: true,
        index: r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}"#,
    };
    let files = Plan::new(&mut { encoder }, WHOLE, RUN).unwrap().files;
    let files: Vec<&String> =
        files.iter().filter(|path| path.starts_with("text_encoder/") && is_weights(path)).collect();
    assert_eq!(files, ["text_encoder/model.safetensors"]);
}

#[test]
fn a_part_of_a_model_is_told_from_a_whole() {
    let half = ["prior/diffusion_pytorch_model.fp16.safetensors"];
    let sixteen_bit = Needs { sixteen_bit: true, ..RUN };
    let unknown = |plan: Plan| plan.unknown.iter().any(|file| file.starts_with("prior/"));
    assert!(unknown(plan(&half, false, RUN)), "the hub may have more exact weights");
    assert!(plan(&half, false, RUN).is_usable());
    assert!(!unknown(plan(&half, false, sixteen_bit)), "what is here is enough");
    assert!(!plan(&[], false, RUN).is_usable());
}

#[test]
fn what_matters_little_is_not_asked_for() {
    let weights = ["prior/diffusion_pytorch_model.bin", "tokenizer/tokenizer_config.json", "model_index.json"];
    assert!(plan(&weights, false, RUN).is_whole(), "a cache that nobody made notes in");
    assert!(plan(&weights[..2], false, RUN).unknown.contains(&INDEX.to_string()));
    assert!(!plan(&weights[1..], false, RUN).is_usable());
}

#[test]
fn what_is_welcome_is_not_missed() {
    let here = [
        "prior/diffusion_pytorch_model.safetensors",
        "tokenizer/tokenizer_config.json",
        "model_index.json",
        "image_encoder/config.json",
    ];
    let with = |image_encoder| plan(&here, false, Needs { image_encoder, ..RUN });
    assert!(with(Wish::No).is_whole());
    assert!(!with(Wish::Welcome).is_whole() && with(Wish::Welcome).is_usable());
    assert!(!with(Wish::Needed).is_usable());
}

#[test]
fn paths_stay_in_the_folder() {
    assert!(is_safe_path("prior/config.json") && is_safe_path(".gitattributes") && is_safe_path("a b/ü"));
    for path in ["", "/etc/passwd", "a/../b", "..", "a//b", "a\\b", "C:/x", "a/./b", "a/", "a\0b"] {
        assert!(!is_safe_path(path), "{path:?}");
    }
}

/// The files that are needed of one component.
fn component(files: &[&'static str], component: Component, subfolder: Option<&str>) -> Plan {
    let mut tree = Fake { files: files.to_vec(), is_complete: true, index: "" };
    Plan::new(&mut tree, Scope::Component { component, subfolder }, RUN).unwrap()
}

#[test]
fn a_component_is_at_the_root_or_in_its_usual_folder() {
    let clip = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(component(&clip, Component::TextEncoder, None).files, ["config.json", "model.safetensors"]);
    let tokenizer = component(&clip, Component::Tokenizer, None);
    assert_eq!(tokenizer.files, ["tokenizer_config.json", "tokenizer.json"]);
    assert!(tokenizer.is_usable() && component(&clip, Component::TextEncoder, None).is_usable());
    let prior = "prior/diffusion_pytorch_model.safetensors";
    // A folder comes before the root only if an index names it.
    let bare = [&SMALL[..], &[prior]].concat();
    assert_eq!(component(&bare, Component::Prior, None).files, ["prior/config.json", prior]);
    let indexed = [&bare[..], &["model_index.json", "config.json"]].concat();
    assert_eq!(component(&indexed, Component::Prior, None).files, ["model_index.json", "prior/config.json", prior]);
    let both = [&bare[..], &["config.json", "diffusion_pytorch_model.bin"]].concat();
    assert_eq!(component(&both, Component::Prior, None).files, ["config.json", "diffusion_pytorch_model.bin"]);
    assert_eq!(component(&both, Component::Prior, Some("prior")).files, ["prior/config.json", prior]);
    assert_eq!(
        component(&SMALL, Component::ImageEncoder, None).missing,
        ["the image encoder in image_encoder/ or prior_image_encoder/"]
    );
    assert_eq!(component(&bare, Component::Prior, Some("x")).missing, ["x/config.json", "x/*.safetensors"]);
}

#[test]
fn what_comes_from_elsewhere_is_not_needed() {
    let replaced = [Component::TextEncoder, Component::Tokenizer];
    let files = vec!["model_index.json", "prior/config.json", "prior/diffusion_pytorch_model.bin", SMALL[4]];
    let mut tree = Fake { files, is_complete: true, index: "" };
    let plan = Plan::new(&mut tree, Scope::Model { replaced: &replaced }, RUN).unwrap();
    assert!(plan.is_usable(), "{:?}", plan.missing);
    assert!(!Plan::new(&mut tree, WHOLE, RUN).unwrap().is_usable());
    let replaced = [Component::Prior, Component::ImageEncoder];
    let mut tree = Fake { files: SMALL.to_vec(), is_complete: true, index: "" };
    let needs = Needs { image_encoder: Wish::Needed, ..RUN };
    let plan = Plan::new(&mut tree, Scope::Model { replaced: &replaced }, needs).unwrap();
    assert!(plan.is_usable() && !plan.files.iter().any(|file| file.starts_with("prior/")), "{plan:?}");
    assert!(!plan.absent.iter().any(|file| file.contains("image_encoder")), "{plan:?}");
}
