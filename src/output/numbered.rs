//! The numbered files of a folder, in clip-retrieval's layout: `img_emb/img_emb_0000.npy` and what its rows belong to,
//! `metadata/metadata_0000.parquet`.
//!
//! Each file is written in the hidden folder and moved into place once it is full. The k-th file of shard i of n has
//! number k·n + i − 1, so that shards write different files of one folder.

use super::arrays::ArrayName;
use super::claim::stopped_run;
use super::column::{ColumnSpec, Content};
use super::fingerprint::Fingerprint;
use super::formats::{OutputFormat, npy};
use super::journal::NumberedFile;
use super::options::{Output, SHARD, WriteOptions};
use super::paths::{shard_file, shard_of_name, shown, working_folder};
use super::publish::{Publication, Rules, remove_stale};
use super::record::{FileSum, OutputRecord};
use super::shard::Shard;
use super::sink::Region;
use crate::atomic::sync_path;
use crate::bad_input;
use crate::dir::{Access, Dir};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;

/// Digits of a file's number at least.
const MIN_DIGITS: usize = 4;

/// The folder of the metadata, and the start of its files' names.
const METADATA: &str = "metadata";

/// A kind of file: its folder, which is also the start of its name, and its extension.
type Kind = (&'static str, &'static str);

/// All kinds of files that such a folder may have.
/// Those of arrays come first, in the order of [`ArrayName`].
const KINDS: [Kind; 4] = [("img_emb", "npy"), ("negative_img_emb", "npy"), ("text_emb", "npy"), METADATA_KIND];

const METADATA_KIND: Kind = (METADATA, "parquet");

/// How a folder's files are numbered.
#[derive(Debug, Clone)]
pub(crate) struct Numbering {
    output: Output,
    pub(crate) rows_per_file: u64,
    /// Rows of all shards, if known.
    total_rows: Option<u64>,
    shard: Option<Shard>,
}

impl Numbering {
    /// The numbering of an output; `None` if it is not such a folder.
    pub(crate) fn new(output: &Output, options: &WriteOptions) -> Option<Self> {
        (output.format == OutputFormat::Folder).then(|| Self {
            output: output.clone(),
            rows_per_file: options.rows_per_file,
            total_rows: options.total_rows,
            shard: options.shard,
        })
    }

    /// Whether the names of files are known before the last is written.
    pub(crate) fn knows_names(&self) -> bool {
        self.total_rows.is_some()
    }

    /// The kinds of files, in the order of [`NumberedFile::sums`].
    fn kinds(&self) -> Vec<Kind> {
        let arrays = self.output.arrays.names().iter();
        arrays.map(|array| KINDS[*array as usize]).chain([METADATA_KIND]).collect()
    }

    /// The number of this run's `place`-th file.
    fn number(&self, place: u64) -> u128 {
        let Shard { index, count } = self.shard.unwrap_or(Shard::WHOLE);
        u128::from(place) * u128::from(count) + u128::from(index - 1)
    }

    /// Digits of the numbers if this run has `files` files. Readers sort by name, so all numbers are as wide.
    fn digits(&self, files: u64) -> usize {
        let files = self.total_rows.map_or(files, |rows| rows.div_ceil(self.rows_per_file)).max(1);
        let count = self.shard.map_or(1, |shard| shard.count);
        (u128::from(files) * u128::from(count) - 1).to_string().len().max(MIN_DIGITS)
    }

    /// The name of a file in the hidden folder.
    fn part(&self, (folder, extension): Kind, place: u64) -> String {
        format!("{folder}_{}.{extension}", self.number(place))
    }

    /// Where a file goes, in the folder.
    fn place(&self, (folder, extension): Kind, place: u64, files: u64) -> String {
        format!("{folder}/{folder}_{:0width$}.{extension}", self.number(place), width = self.digits(files))
    }

    /// The name of the metadata in the hidden folder.
    pub(crate) fn metadata_part(&self, place: u64) -> String {
        self.part(METADATA_KIND, place)
    }

    /// The name of the column of what is known of its rows.
    pub(crate) fn rows_part(&self, place: u64) -> String {
        format!("rows_{}", self.number(place))
    }

    /// The columns of the `place`-th file.
    pub(crate) fn columns(&self, place: u64) -> Vec<ColumnSpec> {
        let of_array = |array: &ArrayName| {
            let region = npy::region(*array);
            let location = Some(region.at(&self.part(KINDS[*array as usize], place)));
            ColumnSpec { content: region.content, location, is_numbered: true }
        };
        let rows = Region::only(Content::Rows, 0).at(&self.rows_part(place));
        let rows = ColumnSpec { content: Content::Rows, location: Some(rows), is_numbered: true };
        self.output.arrays.names().iter().map(of_array).chain([rows]).collect()
    }

    /// Whether the `place`-th file is as it was written, in the hidden folder or in its place.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn is_whole(&self, dir: &Dir, place: u64, file: &NumberedFile) -> io::Result<bool> {
        let kinds = self.kinds();
        for (kind, sum) in kinds.iter().zip(&file.sums) {
            let found = match dir.open_file(self.part(*kind, place), Access::Read) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let name = self.place(*kind, place, place + 1);
                    let folder = Dir::open(&self.output.path.join(kind.0));
                    folder.and_then(|folder| folder.open_file(&name[kind.0.len() + 1..], Access::Read))
                }
                found => found,
            };
            let found = match found {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                found => FileSum::of(found?)?,
            };
            if found != *sum {
                return Ok(false);
            }
        }
        Ok(kinds.len() == file.sums.len())
    }

    /// The paths in the folder, lengths and checksums of files.
    pub(crate) fn sums(&self, files: &[NumberedFile]) -> BTreeMap<String, FileSum> {
        let kinds = self.kinds();
        let count = files.len() as u64;
        let sums = files.iter().zip(0..).flat_map(|(file, place)| {
            kinds.iter().zip(&file.sums).map(move |(kind, sum)| (self.place(*kind, place, count), *sum))
        });
        sums.collect()
    }

    /// Moves the `place`-th of `files` files into place, the image embeddings last.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if something is there and must stay; or if they cannot be moved.
    pub(crate) fn publish(&self, place: u64, files: u64, rules: Rules) -> Result<()> {
        for kind in self.kinds().into_iter().rev() {
            let folder = self.output.path.join(kind.0);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    let made = made.and_then(|()| sync_path(&self.output.path));
                    made.with_context(|| format!("cannot make the folder {folder:?}"))?;
                }
            }
            let target = self.output.path.join(self.place(kind, place, files));
            Publication { part: self.part(kind, place), target }.publish(rules)?;
        }
        Ok(())
    }

    /// Removes files of this run, published or not, and the folders that are empty then.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub(crate) fn remove(&self, dir: &Dir, files: Range<u64>) -> io::Result<()> {
        for kind in self.kinds() {
            for place in files.clone() {
                dir.remove(self.part(kind, place))?;
                match fs::remove_file(self.output.path.join(self.place(kind, place, files.end))) {
                    Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
        self.remove_empty_folders();
        Ok(())
    }

    /// What is in the folder and neither of its other shards nor of the first `files` files of this one.
    pub(crate) fn strangers(&self, files: u64) -> Vec<PathBuf> {
        let Shard { index, count } = self.shard.unwrap_or(Shard::WHOLE);
        let siblings = self.siblings();
        let mut strangers = Vec::new();
        for (folder, extension) in KINDS {
            let path = self.output.path.join(folder);
            let is_wanted = self.kinds().contains(&(folder, extension));
            let names = match Dir::open(&path).and_then(|folder| folder.names()) {
                Ok(names) => names,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(_) => {
                    strangers.push(path);
                    continue;
                }
            };
            let is_known = |name: &str| {
                let number =
                    name.strip_prefix(folder)?.strip_prefix('_')?.strip_suffix(extension)?.strip_suffix('.')?;
                let has_digits = number.len() == self.digits(files);
                let number: u128 = number.parse().ok()?;
                let (place, other) = (number / u128::from(count), (number % u128::from(count)) as u64 + 1);
                let is_ours = other == index && place < u128::from(files);
                Some(has_digits && (is_ours || other != index && siblings.contains(&other)))
            };
            let names = names.iter().filter(|name| !(is_wanted && name.to_str().and_then(is_known).unwrap_or(false)));
            strangers.extend(names.map(|name| path.join(name)));
        }
        let names = fs::read_dir(&self.output.path).into_iter().flatten().flatten().map(|entry| entry.path());
        strangers.extend(names.filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let shard = shard_of_name(name).filter(|_| name.ends_with(".json"));
            shard.is_some_and(|other| self.shard.is_none_or(|shard| other.count != shard.count || other == shard))
        }));
        strangers
    }

    /// The indices of the other shards that have begun.
    fn siblings(&self) -> Vec<u64> {
        let Some(shard) = self.shard else { return Vec::new() };
        let names = fs::read_dir(&self.output.path).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let shards = names.filter_map(|name| shard_of_name(name.to_str()?));
        shards
            .filter(|other| other.count == shard.count && other.index != shard.index)
            .map(|other| other.index)
            .collect()
    }

    /// Checks that the other shards that have begun have the same settings, since no merge will.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] with the differences.
    pub(crate) fn check_siblings(&self, fingerprint: &Fingerprint) -> Result<()> {
        let Some(Shard { count, .. }) = self.shard else { return Ok(()) };
        for index in self.siblings() {
            let shard = Shard { index, count };
            let record = OutputRecord::read(&shard_file(&self.output, shard))?.map(|record| record.fingerprint);
            let running = || stopped_run(&working_folder(&self.output, Some(shard)));
            let Some(other) = record.or_else(running) else { continue };
            let differences = other.without(SHARD).differences(&fingerprint.clone().without(SHARD));
            if !differences.is_empty() {
                let (name, differences) = (shown(&self.output.path), differences.join("; "));
                return Err(bad_input!(
                    "{name} holds shard {shard} of another run: {differences}; move it away, or give another name"
                ));
            }
        }
        Ok(())
    }

    /// Removes what is in the folder and not of its shards.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if it must stay; or if it cannot be removed.
    pub(crate) fn clear(&self, files: u64, rules: Rules) -> Result<()> {
        let record = self.shard.map(|shard| shard_file(&self.output, shard));
        let strangers = self.strangers(files).into_iter().filter(|stranger| Some(stranger) != record.as_ref());
        strangers.collect::<Vec<_>>().iter().try_for_each(|stranger| remove_stale(stranger, rules))?;
        self.remove_empty_folders();
        Ok(())
    }

    /// Removes the folders of files in which nothing is. Another shard may be about to use them.
    fn remove_empty_folders(&self) {
        if self.shard.is_none() {
            KINDS.iter().for_each(|(folder, _)| drop(fs::remove_dir(self.output.path.join(folder))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::arrays::Arrays;

    fn numbering(total_rows: Option<u64>, shard: Option<Shard>) -> Numbering {
        let output = Output { path: "embs".into(), format: OutputFormat::Folder, arrays: Arrays::IMAGE };
        let mut options = WriteOptions::new(vec![output.clone()]);
        (options.total_rows, options.rows_per_file, options.shard) = (total_rows, 1, shard);
        Numbering::new(&output, &options).unwrap()
    }

    #[test]
    fn numbers_are_as_wide_as_the_last_one() {
        let digits = |files| numbering(None, None).digits(files);
        assert_eq!([0, 1, 10_000, 10_001, 100_001].map(digits), [4, 4, 4, 5, 6]);
        assert_eq!(numbering(Some(10_001), None).digits(1), 5);
    }

    #[test]
    fn shards_have_numbers_of_their_own_and_as_many_digits() {
        let names = |index| {
            let numbering = numbering(Some(4000), Some(Shard { index, count: 3 }));
            [0, 1, 3999].map(|place| numbering.place(KINDS[0], place, place + 1))
        };
        assert_eq!(names(1), ["00000", "00003", "11997"].map(|number| format!("img_emb/img_emb_{number}.npy")));
        assert_eq!(names(3), ["00002", "00005", "11999"].map(|number| format!("img_emb/img_emb_{number}.npy")));
        let many = numbering(Some(u64::MAX), Some(Shard { index: u64::MAX, count: u64::MAX }));
        assert_eq!(many.place(KINDS[0], u64::MAX - 1, 0).len(), "img_emb/img_emb_.npy".len() + 39);
    }
}
