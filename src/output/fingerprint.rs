//! What decides the rows of a run: another run resumes from them only if it would have computed the same.

use crate::text::shorten;
use serde::{Deserialize, Serialize};

/// Settings by name, in the order in which they are shown, such as `("--steps", "25")`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Vec<(String, String)>);

impl Fingerprint {
    /// Adds a setting under the name that the user knows it by: an option, or what was hashed.
    pub fn push(&mut self, name: &str, value: impl ToString) {
        self.0.push((name.to_string(), value.to_string()));
    }

    /// The settings but one.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.0.retain(|(other, _)| other != name);
        self
    }

    /// How `now` differs from these settings, each as `--steps was 25, is 30`.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        // A negative prompt may be long.
        const MAX_CHARS: usize = 60;
        let told = |value: Option<&str>| value.map_or_else(|| "not set".to_string(), |value| shorten(value, MAX_CHARS));
        let of_old = self.0.iter().map(|(name, _)| name);
        let only_new = now.0.iter().map(|(name, _)| name).filter(|name| self.value(name).is_none());
        of_old
            .chain(only_new)
            .filter(|name| self.value(name) != now.value(name))
            .map(|name| format!("{name} was {}, is {}", told(self.value(name)), told(now.value(name))))
            .collect()
    }

    /// The value of a setting.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(settings: &[(&str, &str)]) -> Fingerprint {
        let mut fingerprint = Fingerprint::default();
        settings.iter().for_each(|(name, value)| fingerprint.push(name, value));
        fingerprint
    }

    #[test]
    fn every_difference_is_named_with_both_values() {
        let was = fingerprint(&[("--steps", "25"), ("--seed", "0"), ("--gone", "x")]);
        let is = fingerprint(&[("--seed", "0"), ("--steps", "30"), ("--new", "y")]);
        let expected = ["--steps was 25, is 30", "--gone was x, is not set", "--new was not set, is y"];
        assert_eq!(was.differences(&is), expected);
        assert!(was.differences(&was).is_empty());
    }

    #[test]
    fn a_long_value_is_truncated_between_characters() {
        let was = fingerprint(&[("--negative-prompt", &"ä".repeat(100))]);
        let difference = was.differences(&Fingerprint::default()).remove(0);
        assert_eq!(difference, format!("--negative-prompt was {}…, is not set", "ä".repeat(60)));
    }
}
