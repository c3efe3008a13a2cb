//! The zip archive that `torch.save` writes: entries as they are, one for the pickle and one for each storage.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use zip::{CompressionMethod, ZipArchive};

/// Where the entries of an archive lie in its file.
pub(crate) struct Archive {
    /// The folder that `torch.save` puts everything into, with a slash, or nothing.
    root: String,
    entries: HashMap<String, Entry, ahash::RandomState>,
}

struct Entry {
    range: Range<usize>,
    is_plain: bool,
}

/// The entry that every archive of `torch.save` has.
const PICKLE: &str = "data.pkl";

impl Archive {
    /// Reads the directory of an archive. No two entries share bytes, and all lie inside the file.
    ///
    /// # Errors
    /// What is wrong, if it is not such an archive.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|error| error.to_string())?;
        let mut entries = HashMap::default();
        for index in 0..zip.len() {
            let file = zip.by_index_raw(index).map_err(|error| error.to_string())?;
            let range = range(file.data_start(), file.compressed_size())
                .filter(|range| range.end <= bytes.len())
                .ok_or_else(|| format!("its entry {:?} reaches past its end", file.name()))?;
            // The size tells when the method lies.
            let is_whole = file.compression() == CompressionMethod::Stored && file.size() == file.compressed_size();
            entries.insert(file.name().to_string(), Entry { range, is_plain: is_whole && !file.encrypted() });
        }
        check_apart(&entries)?;
        let mut roots = entries.keys().filter_map(|name| root_of(name));
        let root = roots.next().map(str::to_string);
        match (root, roots.next()) {
            (Some(root), None) => Ok(Self { root, entries }),
            (None, _) => Err(format!("it has no {PICKLE}")),
            _ => Err(format!("it has several {PICKLE}")),
        }
    }

    /// Where the pickle lies.
    ///
    /// # Errors
    /// As [`Archive::storage`].
    pub(crate) fn pickle(&self) -> Result<Range<usize>, String> {
        self.entry(PICKLE)?.ok_or_else(|| format!("it has no {PICKLE}"))
    }

    /// Where the storage `key` lies.
    ///
    /// # Errors
    /// If there is none, or it is compressed: `torch.save` never does that, and it could not be read where it lies.
    pub(crate) fn storage(&self, key: &str) -> Result<Range<usize>, String> {
        self.entry(&format!("data/{key}"))?.ok_or_else(|| format!("it has no storage {key:?}"))
    }

    /// Where the entry that says `little` or `big` lies, in files of torch 2.1 and later.
    ///
    /// # Errors
    /// If it is compressed.
    pub(crate) fn byte_order(&self) -> Result<Option<Range<usize>>, String> {
        self.entry("byteorder")
    }

    fn entry(&self, name: &str) -> Result<Option<Range<usize>>, String> {
        let name = format!("{}{name}", self.root);
        match self.entries.get(&name) {
            None => Ok(None),
            Some(entry) if entry.is_plain => Ok(Some(entry.range.clone())),
            Some(_) => Err(format!("its entry {name:?} is compressed or encrypted, which torch.save does not do")),
        }
    }
}

/// What comes before [`PICKLE`] in the name of an entry, if that is at most one folder.
fn root_of(name: &str) -> Option<&str> {
    let root = name.strip_suffix(PICKLE)?;
    let folder = root.strip_suffix('/').unwrap_or(root);
    (root.is_empty() || root.ends_with('/') && !folder.contains('/')).then_some(root)
}

fn range(start: u64, len: u64) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    Some(start..start.checked_add(usize::try_from(len).ok()?)?)
}

/// Entries that share bytes are how a small archive holds a large one.
fn check_apart(entries: &HashMap<String, Entry, ahash::RandomState>) -> Result<(), String> {
    let mut ranges: Vec<&Range<usize>> =
        entries.values().map(|entry| &entry.range).filter(|range| !range.is_empty()).collect();
    ranges.sort_by_key(|range| range.start);
    match ranges.windows(2).find(|pair| pair[0].end > pair[1].start) {
        Some(_) => Err("entries of its archive overlap".into()),
        None => Ok(()),
    }
}
