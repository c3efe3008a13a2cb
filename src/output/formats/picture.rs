//! A contact sheet of pictures, as PNG: the built-in decoder draws each row.

use crate::bad_input;
use crate::images::Sheet;
use crate::output::arrays::{ArrayName, Arrays};
use crate::output::record::OutputRecord;
use crate::output::sink::{Layout, ReadRows, Shape, Sink, contents};
use crate::output::store::Store;
use crate::pipeline::BuiltinDecoder;
use anyhow::Result;
use ndarray::ArrayView2;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::Path;

/// The format.
pub(crate) struct Picture;

impl Sink for Picture {
    fn name(&self) -> &'static str {
        "png"
    }

    fn holds_several(&self) -> bool {
        false
    }

    fn holds_numbers(&self) -> bool {
        false
    }

    fn layout(&self, shape: &Shape) -> Result<Layout> {
        let (dim, side) = BuiltinDecoder::sizes()?;
        if let Some(found) = shape.dim.filter(|found| *found != dim) {
            return Err(bad_input!(
                "--picture: the built-in decoder draws embeddings of the built-in model, of {dim} numbers, and this \
                 model's have {found}; scripts/decode.py draws them with a decoder of diffusers"
            ));
        }
        if let Some(rows) = shape.rows {
            let size = Sheet::new(rows, side).size();
            size.map_err(|reason| {
                bad_input!(
                    "--picture: one of {rows} rows {reason}; prior-embed draw has a --scale, and folders of pictures"
                )
            })?;
        }
        Ok(Layout::Gathered(contents(shape.arrays, false)))
    }

    fn write(&self, store: &Store, _: Arrays, _: Option<&OutputRecord>, output: &mut BufWriter<File>) -> Result<()> {
        let decoder = BuiltinDecoder::open()?;
        let sheet = Sheet::new(store.rows, decoder.side());
        sheet.size().map_err(|reason| bad_input!("--picture: one of {} rows {reason}", store.rows))?;
        let mut input = store.values(ArrayName::Image)?;
        sheet.write(output, |add| {
            for first in (0..store.rows).step_by(BuiltinDecoder::BATCH) {
                let rows = (store.rows - first).min(BuiltinDecoder::BATCH as u64) as usize;
                let mut bytes = vec![0; rows * store.row_bytes()];
                input.read_exact(&mut bytes)?;
                let mut values = Vec::with_capacity(rows * store.dim);
                store.dtype.decode(&bytes, &mut values);
                let embeds = ArrayView2::from_shape((rows, store.dim), &values)?;
                decoder
                    .draw(first, embeds)?
                    .outer_iter()
                    .try_for_each(|picture| add(&picture.iter().copied().collect::<Vec<_>>()))?;
            }
            Ok(())
        })
    }

    fn open(&self, path: &Path, _: &OutputRecord) -> Result<Box<dyn ReadRows>> {
        Err(bad_input!("{path:?} is a picture, and holds no embeddings"))
    }
}
