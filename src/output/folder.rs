//! A folder of numbered files, as clip-retrieval writes and embedding-reader reads it:
//! `img_emb/img_emb_0000.npy` and what its rows belong to, `metadata/metadata_0000.parquet`.

use super::atomic;
use super::dir::{Access, Dir};
use super::store::Store;
use super::{ArrayName, Arrays, npy, parquet};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};

/// The folder of what rows belong to.
pub(crate) const METADATA: &str = "metadata";

/// The folder of an array's files, and the start of their names.
pub(crate) fn array_folder(array: ArrayName) -> &'static str {
    match array {
        ArrayName::Image => "img_emb",
        ArrayName::Negative => "negative_img_emb",
    }
}

/// The folders of an output, in the order in which they are moved into place: embeddings last.
pub(crate) fn parts(arrays: Arrays) -> Vec<&'static str> {
    std::iter::once(METADATA).chain(arrays.names().iter().rev().map(|array| array_folder(*array))).collect()
}

/// Writes all files below `folder`, `rows_per_file` rows in each.
pub(crate) fn write(store: &Store, arrays: Arrays, rows_per_file: u64, folder: &Dir) -> Result<()> {
    let metadata = folder.make_dir(METADATA)?;
    let arrays = arrays.names().iter().map(|array| Ok((*array, folder.make_dir(array_folder(*array))?)));
    let arrays = arrays.collect::<Result<Vec<_>>>()?;
    // One file at least, so that readers see the shape of no rows.
    let files = store.rows.div_ceil(rows_per_file).max(1);
    let width = number_width(files);
    let mut rows = store.output_rows()?;
    for file in 0..files {
        let first = file * rows_per_file;
        let count = rows_per_file.min(store.rows - first);
        for (array, folder) in &arrays {
            let name = array_folder(*array);
            create(folder, &format!("{name}_{file:0width$}.npy"), |output| {
                npy::write(store, *array, first, count, output)
            })?;
        }
        create(&metadata, &format!("{METADATA}_{file:0width$}.parquet"), |mut output| {
            parquet::write_metadata(&mut rows, count, &mut output)
        })?;
    }
    arrays.iter().map(|(_, folder)| folder).chain([&metadata, folder]).try_for_each(|folder| Ok(folder.sync()?))
}

/// Digits of a file's number. Readers sort by name, so all have as many.
fn number_width(files: u64) -> usize {
    files.saturating_sub(1).to_string().len().max(4)
}

/// Makes a file, and waits until it is on the disk. What an earlier try left of it goes.
pub(crate) fn create(dir: &Dir, name: &str, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let make = || {
        dir.remove(name)?;
        dir.create(name, Access::Write)
    };
    let file = make().with_context(|| format!("cannot create {:?}", dir.path().join(name)))?;
    let mut output = BufWriter::with_capacity(1 << 20, file);
    write(&mut output)?;
    output.flush()?;
    Ok(atomic::sync_all(output.get_ref())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_wide_as_the_last_one() {
        assert_eq!([1, 10_000, 10_001, 100_001].map(number_width), [4, 4, 5, 6]);
    }
}
