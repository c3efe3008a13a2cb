//! Computes the embeddings of a block of pictures.

use super::decode::{Decoded, PictureDecoder};
use super::options::OnError;
use super::progress::JobProgress;
use super::worker::{BatchProgress, Computation, Embedded};
use crate::pipeline::Pipeline;
use crate::rows::{BadRow, Place};
use crate::{Error, bad_input};
use anyhow::Result;
use ndarray::{Array2, Axis};
use std::sync::atomic::{AtomicBool, Ordering};
use tch::Tensor;

impl Computation {
    /// Computes the embeddings of a block of pictures.
    pub(super) fn encode_pictures(
        &self,
        decoder: &PictureDecoder,
        pipeline: &mut Pipeline,
        Decoded { block, pixels }: Decoded,
        progress: &dyn JobProgress,
        cancel: &AtomicBool,
    ) -> Result<Embedded> {
        let mut embedded =
            Embedded { image: Array2::zeros((block.rows.len(), self.dim)), bytes: block.bytes, ..Embedded::default() };
        let (mut good, mut values) = (Vec::new(), Vec::new());
        for (place, (prompt, pixels)) in block.prompts.iter().zip(pixels).enumerate() {
            let Some(file) = prompt.as_ref().and_then(|prompt| prompt.picture.as_ref()) else { continue };
            match pixels {
                Some(Ok(pixels)) => {
                    good.push(place);
                    values.push(pixels);
                }
                Some(Err(reason)) if self.options.on_error == OnError::Fail => {
                    return Err(bad_input!("{} {reason}; leave it out, or give --on-error skip", file.name));
                }
                Some(Err(reason)) => {
                    let row = block.rows[place].row;
                    let reason = format!("{} {reason}", file.name);
                    embedded.skipped.push((row, BadRow { place: Place::Row(row + 1), reason }));
                }
                None if cancel.load(Ordering::Relaxed) => return Err(Error::Cancelled.into()),
                None => return Err(Error::Internal(format!("{} was not decoded", file.name)).into()),
            }
        }
        for (places, values) in good.chunks(self.batch_size).zip(values.chunks(self.batch_size)) {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled.into());
            }
            let mut loading = BatchProgress { progress, cancel, targets: &[], rows_per_step: 0.0 };
            pipeline.load_image_encoder(&mut loading)?;
            let [count, size] = [values.len(), decoder.size].map(|length| length as i64);
            let pixels = Tensor::from_slice(&values.concat()).f_reshape([count, 3, size, size])?;
            let embeds = pipeline.image_embeds(&pixels)?;
            for (place, embed) in places.iter().zip(embeds.axis_iter(Axis(0))) {
                embedded.image.row_mut(*place).assign(&embed);
            }
            progress.computed(places.len() as f64);
        }
        embedded.rows = block.rows;
        Ok(embedded)
    }
}
