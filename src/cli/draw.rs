//! `prior-embed draw EMBS -o PNG`: pictures of embeddings, by the built-in model's decoder.

use super::args::{at_least_one, one_of, warn_no_effect};
use super::context::Context;
use super::stdout;
use crate::bad_input;
use crate::bad_input::OrBadInput;
use crate::images::{Enlarging, Sheet};
use crate::job::{Stop, signal_exit_code};
use crate::output::destination::Destination;
use crate::output::{Interrupted, is_stream};
use crate::pipeline::{BuiltinDecoder, EmojiIndex};
use crate::rows::Bank;
use crate::search::Block;
use anyhow::Result;
use ndarray::{Array1, Array2, ArrayView3};
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What messages call what is drawn.
const PICTURES: &str = "pictures";

/// Draw embeddings of the built-in model
///
/// Its decoder makes a small picture of each row, which is enlarged: one PNG, a contact sheet of several rows, or a
/// folder with a picture of each. Embeddings of other models take a decoder of theirs: scripts/decode.py runs those of
/// diffusers.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Embeddings: .npy, .npz, .safetensors, .parquet, a folder of numbered files; `-` for .npy or .npz on standard input
    #[arg(value_name = "EMBS")]
    embeds: PathBuf,

    /// Output: a .png, a folder (DIR/, or one that is there) for a picture of each row, or `-` for standard output
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,

    /// Only rows A to B, B not included, counted from 0; or one row
    #[arg(long, value_name = "A..B", value_parser = rows)]
    rows: Option<Range<u64>>,

    /// Pictures in a row of a contact sheet [default: about as many as there are rows]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = at_least_one("a number of columns"))]
    columns: Option<usize>,

    /// Enlarge N times, 1 to 64
    #[arg(long, value_name = "N", default_value_t = Sheet::SCALE, allow_negative_numbers = true, value_parser = scale)]
    scale: usize,

    /// How to enlarge: lanczos, which is smooth, or nearest, in blocks
    #[arg(long, value_name = "NAME", default_value = "lanczos", hide_possible_values = true,
          value_parser = one_of([("lanczos", Enlarging::Lanczos), ("nearest", Enlarging::Nearest)]))]
    filter: Enlarging,

    /// Print the nearest emoji too, a line a row with tabs between: row, emoji, name, cosine
    #[arg(long)]
    captions: bool,

    /// Replace existing pictures
    #[arg(long)]
    overwrite: bool,
}

fn rows(text: &str) -> Result<Range<u64>, String> {
    let range = match text.split_once("..") {
        Some((from, to)) => from.parse().ok().zip(to.parse().ok()).map(|(from, to)| from..to),
        None => text.parse().ok().filter(|row| *row < u64::MAX).map(|row| row..row + 1),
    };
    let range = range.filter(|rows| !rows.is_empty());
    range.ok_or_else(|| "it must be a range of rows, as 0..8, or one row".into())
}

fn scale(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|scale| (1..=64).contains(scale)).ok_or_else(|| "it must be between 1 and 64".into())
}

/// Draws the pictures and returns the exit code.
///
/// # Errors
/// [`crate::bad_input::BadInput`] for what the user can fix, and whatever goes wrong on the way.
pub(super) fn run(args: &Args, context: &Context) -> Result<u8> {
    let is_stdout = args.out.as_os_str() == "-";
    if args.captions && is_stdout {
        return Err(bad_input!("--captions and a picture both go to standard output; give the picture a file name"));
    }
    if args.captions || is_stdout {
        stdout::check()?;
    }
    if context.hub.cache_dir.is_some() {
        warn_no_effect("--cache-dir", "draw uses no model that is downloaded");
    }
    if args.overwrite && is_stream(&args.out) {
        warn_no_effect("--overwrite", "a stream replaces nothing");
    }
    let (dim, side) = BuiltinDecoder::sizes()?;
    let target = if is_folder(&args.out) { Target::Folder } else { Target::Sheet(sheet_file(args)?) };
    let bank = Bank::open(&args.embeds)?;
    let name = bank.name();
    if bank.dim() != dim {
        let found = bank.dim();
        return Err(bad_input!(
            "{name} has rows of {found} numbers, and the built-in decoder draws those of the built-in model, which \
             have {dim}; scripts/decode.py --decoder draws others with diffusers"
        ));
    }
    let rows = match &args.rows {
        Some(rows) if rows.end > bank.rows() => {
            let (last, Range { start, end }) = (bank.rows() - 1, rows);
            return Err(bad_input!("--rows {start}..{end}: {name} has rows 0 to {last}"));
        }
        Some(rows) => rows.clone(),
        None => 0..bank.rows(),
    };
    let (count, columns) = (rows.end - rows.start, args.columns.map(|columns| columns as u64));
    let sheet = Sheet { count, columns, side, scale: args.scale, filter: args.filter };
    if matches!(target, Target::Sheet(_)) {
        sheet.size().map_err(|reason| {
            bad_input!("a contact sheet of {count} rows {reason}; choose --rows, a smaller --scale, or a folder")
        })?;
    }
    let captions = args.captions.then(EmojiIndex::load).transpose()?;
    let stop = Stop::listen()?;
    let drawing = Drawing { bank: &bank, rows, stop: &stop };
    let draw = || -> Result<()> {
        drawing.check()?;
        match target {
            Target::Sheet(destination) => destination
                .write(|output| sheet.write(output, |add| drawing.for_each(|_, picture| add(&bytes(picture)))))?,
            Target::Folder => {
                if args.columns.is_some() {
                    warn_no_effect("--columns", "it is for a contact sheet, and there is none");
                }
                drawing.write_to_folder(&args.out, &Sheet { count: 1, ..sheet }, args.overwrite)?;
            }
        }
        match captions {
            Some(captions) => drawing.print(&captions),
            None => Ok(()),
        }
    };
    match (draw(), stop.signal()) {
        (Err(error), Some(signal)) if error.is::<Interrupted>() => {
            context.screen.error("stopped; pictures that are complete are kept");
            Ok(signal_exit_code(signal))
        }
        (drawn, _) => drawn.map(|()| 0),
    }
}

/// Where pictures go.
enum Target {
    Sheet(Destination),
    Folder,
}

/// Whether a path is that of a folder, by what is there or by its last character.
fn is_folder(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir() && !is_png(path)
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
}

/// The file of a contact sheet.
fn sheet_file(args: &Args) -> Result<Destination> {
    let path = &args.out;
    if !is_png(path) && !is_stream(path) {
        return Err(bad_input!(
            "{path:?} does not end in .png; rename it, or write \"{}/\" for a folder",
            path.display()
        ));
    }
    Destination::open_for(PICTURES, path, args.overwrite)
}

/// Rows to draw.
struct Drawing<'a> {
    bank: &'a Bank,
    rows: Range<u64>,
    stop: &'a Stop,
}

impl Drawing<'_> {
    /// Calls `visit` with the rows to draw, a few at a time: the number of the first, and their embeddings.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if some numbers are no embedding's; [`Interrupted`]; those of `visit`.
    fn for_each_batch(&self, mut visit: impl FnMut(u64, &Array2<f32>) -> Result<()>) -> Result<()> {
        self.bank.for_each_block(BuiltinDecoder::BATCH, &mut |block| {
            let (start, end) = (block.first, block.first + block.rows() as u64);
            let rows = self.rows.start.max(start)..self.rows.end.min(end);
            if self.stop.signal().is_some() {
                return Err(Interrupted.into());
            }
            if rows.is_empty() { Ok(()) } else { visit(rows.start, &self.embeds(block, rows)?) }
        })
    }

    /// Rows of a block in float32.
    fn embeds(&self, block: &Block, rows: Range<u64>) -> Result<Array2<f32>> {
        let name = self.bank.name();
        let mut embeds = Array2::zeros((0, block.dim));
        for row in rows {
            let numbers = block.numbers((row - block.first) as usize);
            let embed: Array1<f32> = numbers.iter().map(|number| *number as f32).collect();
            if numbers.iter().any(|number| !number.is_finite()) {
                return Err(bad_input!("row {row} of {name} has NaN or infinity; make it again"));
            }
            if !embed.dot(&embed).is_finite() {
                return Err(bad_input!(
                    "row {row} of {name} is no embedding of the built-in model: its numbers are too large"
                ));
            }
            embeds.push_row(embed.view())?;
        }
        Ok(embeds)
    }

    /// Checks the numbers of all rows, before anything is written.
    fn check(&self) -> Result<()> {
        self.for_each_batch(|_, _| Ok(()))
    }

    /// Calls `visit` with the number and the picture, `(height, width, 3)`, of each row.
    fn for_each(&self, mut visit: impl FnMut(u64, ArrayView3<u8>) -> Result<()>) -> Result<()> {
        let decoder = BuiltinDecoder::open()?;
        self.for_each_batch(|first, embeds| {
            let pictures = decoder.draw(first, embeds.view())?;
            (first..).zip(pictures.outer_iter()).try_for_each(|(row, picture)| visit(row, picture))
        })
    }

    /// Writes a picture of each row to a folder, which is made if need be.
    fn write_to_folder(&self, folder: &Path, sheet: &Sheet, overwrite: bool) -> Result<()> {
        let open = |row: u64| Destination::open_for(PICTURES, &folder.join(format!("{row:05}.png")), overwrite);
        if folder.is_dir() {
            self.rows.clone().try_for_each(|row| open(row).map(drop))?;
        } else {
            fs::create_dir_all(folder).or_bad_input(|| format!("cannot make the folder {folder:?}"))?;
        }
        self.for_each(|row, picture| open(row)?.write(|output| sheet.write(output, |add| add(&bytes(picture)))))
    }

    /// Prints the caption of each row.
    fn print(&self, index: &EmojiIndex) -> Result<()> {
        let mut lines = String::new();
        self.for_each_batch(|first, embeds| {
            for (row, embed) in (first..).zip(embeds.outer_iter()) {
                let (emoji, cosine) = index.nearest(embed)?;
                lines += &format!("{row}\t{}\t{}\t{cosine:.4}\n", emoji.characters(), emoji.name);
            }
            Ok(())
        })?;
        stdout::write_with(|| io::stdout().write_all(lines.as_bytes()))
    }
}

fn bytes(picture: ArrayView3<u8>) -> Vec<u8> {
    picture.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_a_range_or_one() {
        assert_eq!(rows("2..5"), Ok(2..5));
        assert_eq!(rows("7"), Ok(7..8));
        for text in ["", "..", "5..5", "5..2", "-1", "a", "1..=2", "18446744073709551615", "0...3"] {
            assert!(rows(text).is_err(), "{text}");
        }
    }
}
