//! The names of a LoRA's tensors, in all layouts of diffusers and PEFT.

/// The role of a tensor in a LoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A, `(rank, inputs)`.
    Down,
    /// B, `(outputs, rank)`.
    Up,
    /// The scale of the product, times the rank.
    Alpha,
}

/// The parts of a tensor's name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The name in the model of the linear layer that it changes.
    pub(super) module: String,
    pub(super) role: Role,
    /// Whether it is a name of PEFT, which keeps alpha in a configuration beside the file.
    pub(super) is_peft: bool,
}

/// The suffixes after the module in names of diffusers, including the oldest (attention processors); the longest come first.
const SUFFIXES: [(&str, Role); 13] = [
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_layer.down.weight", Role::Down),
    (".lora_layer.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    ("_lora.alpha", Role::Alpha),
    (".lora.alpha", Role::Alpha),
    (".alpha", Role::Alpha),
];

/// The same of PEFT, before an adapter's name, if there is one, and `weight`.
const PEFT: [(&str, Role); 2] = [(".lora_A.", Role::Down), (".lora_B.", Role::Up)];

/// Prefixes of a module: wrappers, and the component of a pipeline.
const PREFIXES: [&str; 5] = ["base_model.model.", "module.", "_orig_mod.", "prior.", "transformer."];

/// Parses a tensor's name; `None` if it is not a LoRA's.
pub(super) fn parse(name: &str) -> Option<Key> {
    let peft = PEFT.into_iter().find_map(|(middle, role)| {
        let (module, rest) = name.split_once(middle)?;
        let adapter = rest.strip_suffix("weight")?;
        let is_name = adapter.is_empty() || adapter.find('.') == Some(adapter.len() - 1);
        is_name.then(|| Key { module: plain(module), role, is_peft: true })
    });
    peft.or_else(|| {
        let (module, role) =
            SUFFIXES.into_iter().find_map(|(suffix, role)| Some((name.strip_suffix(suffix)?, role)))?;
        Some(Key { module: plain(module), role, is_peft: false })
    })
}

/// A module's name in the model, without prefixes.
fn plain(module: &str) -> String {
    let mut rest = module;
    while let Some(inner) = PREFIXES.into_iter().find_map(|prefix| rest.strip_prefix(prefix)) {
        rest = inner;
    }
    // The processor of an attention used to hold the LoRAs of its projections.
    let mut parts: Vec<&str> = rest.split('.').filter(|part| *part != "processor").collect();
    // The output projection is the first module of a list.
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
        use Role::{Alpha, Down, Up};
        let to_q = "transformer_blocks.0.attn1.to_q";
        for (name, role, is_peft) in [
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
            assert_eq!(parse(name), Some(Key { module: to_q.into(), role, is_peft }), "{name}");
        }
        let out = parse("transformer_blocks.1.attn1.processor.to_out_lora.up.weight").unwrap();
        assert_eq!(out.module, "transformer_blocks.1.attn1.to_out.0");
        let out = parse("base_model.model.transformer_blocks.1.attn1.to_out.0.lora_A.weight").unwrap();
        assert_eq!(out.module, "transformer_blocks.1.attn1.to_out.0");
    }

    #[test]
    fn other_names_are_refused() {
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
