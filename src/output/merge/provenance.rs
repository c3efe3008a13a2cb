//! The provenance of a whole, which is that of its shards but for the shard.

use super::part::Part;
use crate::bad_input::OrBadInput;
use crate::output::paths::shown;
use crate::output::provenance;
use anyhow::Result;
use std::sync::Arc;

/// The provenance of all parts together; `None` if a part has none. Parts of one run that were made in different ways,
/// with a model of another name for example, have none in common: that is a warning.
///
/// # Errors
/// [`crate::bad_input::BadInput`] if that of a part is not JSON.
pub(super) fn of_whole(parts: &[Part]) -> Result<Option<Arc<str>>> {
    let mut whole: Option<Arc<str>> = None;
    for part in parts {
        let Some(text) = &part.record.provenance else { return Ok(None) };
        let text = provenance::without_shard(text);
        let text = text.or_bad_input(|| format!("{}: its provenance cannot be read", shown(&part.path)))?;
        if whole.as_ref().is_some_and(|whole| *whole != text) {
            log::warn!("{} has another provenance than the parts before it, and the whole has none", shown(&part.path));
            return Ok(None);
        }
        whole = Some(text);
    }
    Ok(whole)
}
