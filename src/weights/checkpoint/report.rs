//! The findings of the first pass over a checkpoint, which reads no numbers.

use super::store::is_constant;
use crate::error::{Error, Result};
use crate::text;
use std::collections::BTreeSet;

/// How the tensors of a checkpoint differ from those that a module asks for.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The names of all tensors that the module asks for.
    pub(super) seen: BTreeSet<String>,
    /// The same, in the order that it asks for them.
    pub(super) in_order: Vec<String>,
    /// Prefixes of tensors that belong to other modules.
    pub(super) ignored: Vec<String>,
    pub(super) missing: Vec<String>,
    /// Tensors of the wrong shape or type, with what is wrong.
    pub(super) wrong: Vec<String>,
}

impl Report {
    /// Compares the names below `prefix` with those that the module asked for, and gives these in their order.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] if a tensor is missing or wrong, or one is unexpected that would change the result.
    pub(super) fn finish<'a>(
        self,
        names: impl Iterator<Item = &'a str>,
        prefix: &str,
        origin: &str,
    ) -> Result<Vec<String>> {
        let is_unexpected = |name: &&str| name.starts_with(prefix) && !self.knows(name) && !is_constant(name);
        let unexpected: Vec<String> = names.filter(is_unexpected).map(String::from).collect();
        if self.missing.is_empty() && self.wrong.is_empty() && !self.would_matter(&unexpected) {
            if !unexpected.is_empty() {
                log::warn!("{origin}: tensors that are not needed are ignored: {}", text::list(&unexpected));
            }
            return Ok(self.in_order);
        }
        let Self { missing, wrong, .. } = self;
        Err(Error::MissingTensors { path: origin.into(), missing, unexpected, wrong })
    }

    fn knows(&self, name: &str) -> bool {
        self.seen.contains(name) || self.ignored.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Whether one of the unexpected tensors shows that the module is not the one that was saved, and would compute
    /// something else: a tensor inside one of its layers, such as a bias, a scale or a LoRA, or one of a layer after
    /// its last.
    fn would_matter(&self, unexpected: &[String]) -> bool {
        let layers: BTreeSet<&str> = self.seen.iter().flat_map(|name| numbered(name)).collect();
        let lists: BTreeSet<&str> = layers.iter().filter_map(|layer| list_of(layer)).collect();
        let is_in_layer = |name: &str| {
            let mut modules = name.match_indices('.').map(|(end, _)| &name[..end]);
            modules.any(|module| self.seen.contains(&format!("{module}.weight")))
        };
        let is_beyond = |name: &str| {
            let mut new = numbered(name).filter(|layer| !layers.contains(layer));
            new.any(|layer| list_of(layer).is_some_and(|list| lists.contains(list)))
        };
        unexpected.iter().any(|name| is_in_layer(name) || is_beyond(name) || name.contains("lora"))
    }
}

/// The module list that a numbered layer is in.
fn list_of(layer: &str) -> Option<&str> {
    layer.rsplit_once('.').map(|(list, _)| list)
}

/// The prefixes of a name that end in a number: `a.0` and `a.0.b.1` of `a.0.b.1.weight`.
fn numbered(name: &str) -> impl Iterator<Item = &str> {
    let ends = name.match_indices('.').map(|(end, _)| end);
    ends.map(|end| &name[..end]).filter(|prefix| {
        let last = prefix.rsplit('.').next().unwrap_or_default();
        !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unexpected_tensors_matter_where_the_module_would_compute_something_else() {
        let seen =
            ["embed.class", "blocks.0.to_q.weight", "blocks.1.to_q.weight", "norm.weight", "blocks.1.ff.net.0.weight"];
        let report = Report { seen: seen.map(String::from).into(), ..Report::default() };
        for (name, expected) in [
            ("embed.position_ids", false),
            ("causal_attention_mask", false),
            ("logit_scale", false),
            ("other.0.weight", false),
            ("blocks.1.mask", false),
            ("blocks.1.bias", false),
            ("blocks.2.mask", true),
            ("blocks.2.to_q.weight", true),
            ("blocks.0.to_q.bias", true),
            ("blocks.0.to_q.weight_scale", true),
            ("norm.base_layer.weight", true),
            ("blocks.0.to_q.lora_A.default.weight", true),
            ("blocks.0.processor.to_q_lora.down.weight", true),
            ("blocks.1.ff.net.2.weight", true),
        ] {
            assert_eq!(report.would_matter(&[name.to_string()]), expected, "{name}");
        }
    }
}
