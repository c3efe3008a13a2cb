//! A file of torch for diffusers' `ip_adapter_image_embeds`: a list of one tensor, `(2, rows, dim)`: the negative
//! embeddings that an IP-Adapter takes, zeros, and the image embeddings.
//!
//! Under classifier-free guidance diffusers halves the tensor along its first dimension and repeats each half for every
//! picture of a call. The second dimension is that of images which guide a picture together. So all rows of a file do,
//! and `[embeds[0][:, row : row + 1]]` is one of them. A batch of rows has no place in it: diffusers takes `(2 · rows, 1,
//! dim)` too, but repeats all of it for every picture, and mixes rows that should have been apart.
//!
//! Source: diffusers 0.42 `pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py`,
//! `prepare_ip_adapter_image_embeds`; torch 2.13 `serialization.py` and `_utils.py`, `_rebuild_tensor_v2`; for the
//! opcodes Python's `Lib/pickletools.py`.

use super::npy::ArrayRows;
use crate::output::arrays::Arrays;
use crate::output::dtype::OutputDtype;
use crate::output::record::OutputRecord;
use crate::output::sink::{Layout, ReadRows, Shape, Sink, contents};
use crate::output::store::Store;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

/// The folder in the archive. torch takes any name.
const FOLDER: &str = "archive";

/// What torch aligns numbers to, so that a file can be mapped.
const ALIGNMENT: u16 = 64;

/// The format.
pub(crate) struct IpAdapter;

impl Sink for IpAdapter {
    fn name(&self) -> &'static str {
        "ipadpt"
    }

    fn holds_several(&self) -> bool {
        false
    }

    fn layout(&self, shape: &Shape) -> Result<Layout> {
        Ok(Layout::Gathered(contents(shape.arrays, false)))
    }

    fn write(
        &self,
        store: &Store,
        arrays: Arrays,
        _: Option<&OutputRecord>,
        output: &mut BufWriter<File>,
    ) -> Result<()> {
        let array = arrays.names()[0];
        let mut archive = ZipWriter::new(output);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .with_alignment(ALIGNMENT);
        let mut entry = |name: &str, options, write: &mut dyn FnMut(&mut dyn Write) -> Result<()>| -> Result<()> {
            archive.start_file(format!("{FOLDER}/{name}"), options)?;
            write(&mut archive)
        };
        let pickle = pickle(store.rows, store.dim, store.dtype)?;
        entry("data.pkl", options, &mut |entry| Ok(entry.write_all(&pickle)?))?;
        entry("byteorder", options, &mut |entry| Ok(entry.write_all(b"little")?))?;
        let bytes = store.array_bytes().checked_mul(2).with_context(|| format!("{} rows are too many", store.rows))?;
        let large = options.large_file(bytes > u32::MAX.into());
        entry("data/0", large, &mut |entry| {
            io::copy(&mut io::repeat(0).take(store.array_bytes()), entry)?;
            store.copy_values(array, entry)
        })?;
        entry("version", options, &mut |entry| Ok(entry.write_all(b"3\n")?))?;
        archive.finish()?;
        Ok(())
    }

    fn open(&self, path: &Path, record: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        let mut archive = ZipArchive::new(BufReader::new(File::open(path)?))?;
        let entry = archive.by_name(&format!("{FOLDER}/data/0")).context("no numbers")?;
        let bytes = record.rows.count() * (record.dim * record.dtype.size()) as u64;
        if entry.compression() != CompressionMethod::Stored || Some(entry.size()) != bytes.checked_mul(2) {
            bail!("not {} rows of {} numbers in {}", record.rows.count(), record.dim, record.dtype.name());
        }
        let start = entry.data_start().context("it has no numbers")? + bytes;
        if !BufReader::new(entry.take(bytes)).bytes().all(|byte| byte.is_ok_and(|byte| byte == 0)) {
            bail!("its negative embeddings are not zeros");
        }
        Ok(Box::new(vec![ArrayRows::new(File::open(path)?, start, record)?]))
    }
}

/// A pickle of protocol 2: `[torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())]`.
fn pickle(rows: u64, dim: usize, dtype: OutputDtype) -> Result<Vec<u8>> {
    let too_many = || format!("{rows} rows are too many");
    let (rows, dim) = (i64::try_from(rows).with_context(too_many)?, dim as i64);
    let half = rows.checked_mul(dim).with_context(too_many)?;
    let count = half.checked_mul(2).with_context(too_many)?;
    let storage: &[u8] = match dtype {
        OutputDtype::F32 => b"ctorch\nFloatStorage\n",
        OutputDtype::F16 => b"ctorch\nHalfStorage\n",
    };
    let mut pickle = b"\x80\x02](".to_vec();
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(");
    // The storage, by what torch calls a persistent id.
    pickle.push(b'(');
    text(&mut pickle, "storage");
    pickle.extend(storage);
    text(&mut pickle, "0");
    text(&mut pickle, "cpu");
    integer(&mut pickle, count);
    pickle.extend(b"tQ");
    integer(&mut pickle, 0);
    for tuple in [[2, rows, dim], [half, dim, 1]] {
        tuple.into_iter().for_each(|number| integer(&mut pickle, number));
        pickle.push(b'\x87');
    }
    pickle.extend(b"\x89ccollections\nOrderedDict\n)R");
    // The call's arguments, the call, the list, the end.
    pickle.extend(b"tRe.");
    Ok(pickle)
}

/// Adds a string (`BINUNICODE`).
fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

/// Adds an integer (`BININT`, or `LONG1` if it is larger).
fn integer(pickle: &mut Vec<u8>, number: i64) {
    match i32::try_from(number) {
        Ok(number) => {
            pickle.push(b'J');
            pickle.extend(number.to_le_bytes());
        }
        Err(_) => {
            pickle.extend([b'\x8a', 8]);
            pickle.extend(number.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `pickletools.dis` reads as the list of one tensor.
    #[test]
    fn the_pickle_is_this() {
        let expected =
            b"\x80\x02](ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nHalfStorage\nX\x01\0\0\x000\
                         X\x03\0\0\0cpuJ\x1e\0\0\0tQJ\0\0\0\0J\x02\0\0\0J\x03\0\0\0J\x05\0\0\0\x87\
                         J\x0f\0\0\0J\x05\0\0\0J\x01\0\0\0\x87\x89ccollections\nOrderedDict\n)RtRe.";
        assert_eq!(pickle(3, 5, OutputDtype::F16).unwrap(), expected);
        let large = pickle(1 << 30, 1 << 10, OutputDtype::F32).unwrap();
        assert!(large.windows(10).any(|bytes| bytes == b"\x8a\x08\0\0\0\0\0\x02\0\0"), "2^41 numbers");
        assert!(pickle(1 << 62, 1 << 10, OutputDtype::F32).is_err());
    }
}
