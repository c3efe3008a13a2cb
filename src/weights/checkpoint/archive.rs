//! The zip archive of `torch.save`: uncompressed members, one for the pickle and one for each storage.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use zip::{CompressionMethod, ZipArchive};

/// Where the members of an archive lie in its file.
pub(crate) struct Archive {
    /// The folder that `torch.save` puts everything into, with a slash; empty without one.
    root: String,
    members: HashMap<String, Member, ahash::RandomState>,
}

struct Member {
    range: Range<usize>,
    /// Whether it is neither compressed nor encrypted.
    is_plain: bool,
}

/// The member that every archive of `torch.save` has.
const PICKLE: &str = "data.pkl";

impl Archive {
    /// Reads the directory of an archive. All members lie inside the file, and no two overlap.
    ///
    /// # Errors
    /// What is wrong, if it is not such an archive.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|error| error.to_string())?;
        let mut members = HashMap::default();
        for index in 0..zip.len() {
            let file = zip.by_index_raw(index).map_err(|error| error.to_string())?;
            let name = file.name().map_err(|error| error.to_string())?.into_owned();
            let range = file.data_start().and_then(|start| range(start, file.compressed_size()));
            let range = range.filter(|range| range.end <= bytes.len());
            let range = range.ok_or_else(|| format!("its member {name:?} reaches past its end"))?;
            // The sizes show where the method is wrong.
            let is_whole = file.compression() == CompressionMethod::Stored && file.size() == file.compressed_size();
            members.insert(name, Member { range, is_plain: is_whole && !file.encrypted() });
        }
        check_overlap(&members)?;
        let mut roots = members.keys().filter_map(|name| root_of(name));
        let root = roots.next().map(str::to_string);
        match (root, roots.next()) {
            (Some(root), None) => Ok(Self { root, members }),
            (None, _) => Err(format!("it has no {PICKLE}")),
            _ => Err(format!("it has several {PICKLE}")),
        }
    }

    /// The bytes of the pickle.
    ///
    /// # Errors
    /// As [`Archive::storage`].
    pub(crate) fn pickle(&self) -> Result<Range<usize>, String> {
        self.member(PICKLE)?.ok_or_else(|| format!("it has no {PICKLE}"))
    }

    /// The bytes of the storage `key`.
    ///
    /// # Errors
    /// If there is none, or it is compressed: `torch.save` never does that, and it could not be read in place.
    pub(crate) fn storage(&self, key: &str) -> Result<Range<usize>, String> {
        self.member(&format!("data/{key}"))?.ok_or_else(|| format!("it has no storage {key:?}"))
    }

    /// The bytes that say `little` or `big`, in files of torch 2.1 and later.
    ///
    /// # Errors
    /// If it is compressed.
    pub(crate) fn byte_order(&self) -> Result<Option<Range<usize>>, String> {
        self.member("byteorder")
    }

    fn member(&self, name: &str) -> Result<Option<Range<usize>>, String> {
        let name = format!("{}{name}", self.root);
        match self.members.get(&name) {
            None => Ok(None),
            Some(member) if member.is_plain => Ok(Some(member.range.clone())),
            Some(_) => Err(format!("its member {name:?} is compressed or encrypted, which torch.save does not do")),
        }
    }
}

/// What precedes [`PICKLE`] in the name of a member, if that is at most one folder.
fn root_of(name: &str) -> Option<&str> {
    let root = name.strip_suffix(PICKLE)?;
    let folder = root.strip_suffix('/').unwrap_or(root);
    (root.is_empty() || root.ends_with('/') && !folder.contains('/')).then_some(root)
}

fn range(start: u64, len: u64) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    Some(start..start.checked_add(usize::try_from(len).ok()?)?)
}

/// Refuses members that overlap, by which a small archive could hold any amount of data.
fn check_overlap(members: &HashMap<String, Member, ahash::RandomState>) -> Result<(), String> {
    let mut ranges: Vec<&Range<usize>> =
        members.values().map(|member| &member.range).filter(|range| !range.is_empty()).collect();
    ranges.sort_by_key(|range| range.start);
    match ranges.windows(2).find(|pair| pair[0].end > pair[1].start) {
        Some(_) => Err("members of its archive overlap".into()),
        None => Ok(()),
    }
}
