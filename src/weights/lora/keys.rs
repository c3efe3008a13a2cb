//! The names of a LoRA's tensors, in all the layouts that diffusers and PEFT have written.

/// What a tensor of a LoRA is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A, `(rank, inputs)`.
    Down,
    /// B, `(outputs, rank)`.
    Up,
    /// What the product is scaled by, times the rank.
    Alpha,
}

/// A tensor's name, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// The linear layer that it changes, by its name in the model.
    pub(crate) module: String,
    pub(crate) part: Part,
    /// Whether it is PEFT's name, whose scale is in a configuration beside the file.
    pub(crate) is_peft: bool,
}

/// What follows the module in diffusers' names, from the oldest (attention processors) on; the longest come first.
const ENDINGS: [(&str, Part); 13] = [
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_layer.down.weight", Part::Down),
    (".lora_layer.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    ("_lora.alpha", Part::Alpha),
    (".lora.alpha", Part::Alpha),
    (".alpha", Part::Alpha),
];

/// PEFT's, before an adapter's name, if there is one, and `weight`.
const PEFT: [(&str, Part); 2] = [(".lora_A.", Part::Down), (".lora_B.", Part::Up)];

/// What may come before a module: wrappers, and the component of a pipeline.
const PREFIXES: [&str; 5] = ["base_model.model.", "module.", "_orig_mod.", "prior.", "transformer."];

/// Takes a name apart; `None` if it is none of a LoRA's.
pub(crate) fn parse(name: &str) -> Option<Key> {
    let peft = PEFT.into_iter().find_map(|(middle, part)| {
        let (module, rest) = name.split_once(middle)?;
        let adapter = rest.strip_suffix("weight")?;
        let is_name = adapter.is_empty() || adapter.find('.') == Some(adapter.len() - 1);
        is_name.then(|| Key { module: plain(module), part, is_peft: true })
    });
    peft.or_else(|| {
        let (module, part) = ENDINGS.into_iter().find_map(|(ending, part)| Some((name.strip_suffix(ending)?, part)))?;
        Some(Key { module: plain(module), part, is_peft: false })
    })
}

/// A module's name in the model.
fn plain(module: &str) -> String {
    let mut rest = module;
    while let Some(inner) = PREFIXES.into_iter().find_map(|prefix| rest.strip_prefix(prefix)) {
        rest = inner;
    }
    // An attention's processor held the LoRA of its projections.
    let mut parts: Vec<&str> = rest.split('.').filter(|part| *part != "processor").collect();
    // The output projection is the first of a list.
    if parts.last() == Some(&"to_out") {
        parts.push("0");
    }
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_layout_lead_to_the_same_module() {
        use Part::{Alpha, Down, Up};
        let to_q = "transformer_blocks.0.attn1.to_q";
        for (name, part, is_peft) in [
            ("transformer_blocks.0.attn1.processor.to_q_lora.down.weight", Down, false),
            ("prior.transformer_blocks.0.attn1.processor.to_q_lora.up.weight", Up, false),
            ("transformer_blocks.0.attn1.to_q_lora.down.weight", Down, false),
            ("transformer_blocks.0.attn1.to_q.lora.up.weight", Up, false),
            ("prior.transformer_blocks.0.attn1.to_q.lora_linear_layer.down.weight", Down, false),
            ("transformer_blocks.0.attn1.to_q.alpha", Alpha, false),
            ("transformer_blocks.0.attn1.processor.to_q_lora.alpha", Alpha, false),
            ("base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight", Down, true),
            ("base_model.model.transformer_blocks.0.attn1.to_q.lora_B.default.weight", Up, true),
            ("prior.transformer_blocks.0.attn1.to_q.lora_A.weight", Down, true),
            ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", Down, true),
            ("module._orig_mod.transformer_blocks.0.attn1.to_q.lora_B.default.weight", Up, true),
        ] {
            assert_eq!(parse(name), Some(Key { module: to_q.into(), part, is_peft }), "{name}");
        }
        let out = parse("transformer_blocks.1.attn1.processor.to_out_lora.up.weight").unwrap();
        assert_eq!(out.module, "transformer_blocks.1.attn1.to_out.0");
        let out = parse("base_model.model.transformer_blocks.1.attn1.to_out.0.lora_A.weight").unwrap();
        assert_eq!(out.module, "transformer_blocks.1.attn1.to_out.0");
    }

    #[test]
    fn other_names_are_no_lora() {
        for name in [
            "proj_in.weight",
            "proj_in.lora_magnitude_vector",
            "proj_in.lora_B.bias",
            "proj_in.lora_A.a.b.weight",
            "proj_in.lora_embedding_A",
            "alpha",
            "",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
