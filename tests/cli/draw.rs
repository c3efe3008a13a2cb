//! `prior-embed draw` and `--picture`.

use crate::common::{Workplace, assert_done, assert_refused, model, read_npy, send_signal, stderr};
use image::RgbImage;
use ndarray::{Array2, array, s};
use ndarray_npy::{NpzWriter, write_npy};
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Stdio};

const DIM: usize = 192;
const SCALE: u32 = 4;

/// So many rows of numbers.
fn rows(count: usize) -> Array2<f32> {
    Array2::from_shape_fn((count, DIM), |(row, column)| ((row * DIM + column) as f32 * 0.7).sin())
}

fn picture(bytes: &[u8]) -> RgbImage {
    assert!(bytes.starts_with(b"\x89PNG"));
    image::load_from_memory(bytes).unwrap().into_rgb8()
}

fn read(place: &Workplace, name: &str) -> RgbImage {
    picture(&fs::read(place.path(name)).unwrap())
}

/// The largest difference of two pictures, in levels.
fn difference(one: &RgbImage, other: &RgbImage) -> u8 {
    assert_eq!(one.dimensions(), other.dimensions());
    one.as_raw().iter().zip(other.as_raw()).map(|(one, other)| one.abs_diff(*other)).max().unwrap()
}

/// The picture in a place of a sheet.
fn cell(sheet: &RgbImage, size: u32, column: u32, row: u32) -> RgbImage {
    image::imageops::crop_imm(sheet, column * size, row * size, size, size).to_image()
}

#[test]
fn rows_are_drawn_into_a_sheet_a_folder_and_a_pipe() {
    let place = Workplace::new();
    // More than are drawn at a time.
    write_npy(place.path("e.npy"), &rows(67)).unwrap();
    assert_done(place.bare().args(["draw", "e.npy", "-o", "sheet.png", "--scale", "1", "--columns", "10"]));
    assert_done(place.bare().args(["draw", "e.npy", "-o", "new/folder/", "--scale", "1", "--rows", "60..67"]));
    let sheet = read(&place, "sheet.png");
    let side = sheet.width() / 10;
    assert_eq!(sheet.height(), 7 * side);
    for row in 60..67 {
        let alone = read(&place, &format!("new/folder/{row:05}.png"));
        assert!(difference(&cell(&sheet, side, row % 10, row / 10), &alone) <= 1, "{row}");
    }
    assert_eq!(fs::read_dir(place.path("new/folder")).unwrap().count(), 7);
    let last = cell(&sheet, side, 7, 6);
    assert!(last.as_raw().iter().all(|level| *level == 255), "what is left of the grid is white");
    assert!(difference(&cell(&sheet, side, 0, 0), &cell(&sheet, side, 1, 0)) > 50, "rows differ");

    // A folder that is there needs no slash, and keeps what it has.
    fs::create_dir(place.path("there")).unwrap();
    assert_done(place.bare().args(["draw", "e.npy", "-o", "there", "--rows", "3", "--filter", "nearest"]));
    let blocks = read(&place, "there/00003.png");
    assert_eq!(blocks.dimensions(), (SCALE * side, SCALE * side));
    let small = cell(&sheet, side, 3, 0);
    let enlarged = RgbImage::from_fn(SCALE * side, SCALE * side, |x, y| *small.get_pixel(x / SCALE, y / SCALE));
    assert!(difference(&blocks, &enlarged) <= 1);
    assert_refused(&place, place.bare().args(["draw", "e.npy", "-o", "there", "--rows", "2..4"]), 2, &["00003.png"]);
    assert_eq!(fs::read_dir(place.path("there")).unwrap().count(), 1);

    // About square, and the same from every kind of file, through a pipe.
    let five = rows(5);
    let mut npz = NpzWriter::new(Cursor::new(Vec::new()));
    npz.add_array("image_embeds", &five).unwrap();
    npz.add_array("negative_image_embeds", &five.mapv(|value| -value)).unwrap();
    let archive = npz.finish().unwrap().into_inner();
    fs::write(place.path("five.npz"), &archive).unwrap();
    let draw = |embeds: &str, input: &[u8]| {
        let output = place.bare().args(["draw", embeds, "-o", "-"]).write_stdin(input).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
        output.stdout
    };
    let sheet = picture(&draw("five.npz", b""));
    assert_eq!(sheet.dimensions(), (3 * SCALE * side, 2 * SCALE * side));
    assert!(difference(&sheet, &picture(&draw("-", &archive))) <= 1);
}

#[test]
fn a_run_draws_what_it_embeds() {
    let place = Workplace::new();
    let prompts = ["-p", "a red apple", "-p", "a cat", "-p", "a blue car", "--steps", "2", "-q"];
    let run = |options: &[&str]| assert_done(place.bare().args(prompts).args(options));
    run(&["--out", "e.npy", "--picture", "e.png"]);
    assert_done(place.bare().args(["draw", "e.npy", "-o", "drawn.png"]));
    let whole = read(&place, "e.png");
    assert!(difference(&whole, &read(&place, "drawn.png")) <= 1);
    assert_eq!(whole.width(), whole.height());
    let size = whole.width() / 2;
    // The middle of the apple is red, and that of the car blue.
    let [apple, car] =
        [(0, 0), (0, 1)].map(|(column, row)| cell(&whole, size, column, row).get_pixel(size / 2, size / 2).0);
    assert!(apple[0] > 150 && apple[2] < 100 && car[2] > car[0], "{apple:?} {car:?}");
    // In place of embeddings, and of numbers in another form.
    run(&["--picture", "alone.png"]);
    assert!(difference(&whole, &read(&place, "alone.png")) <= 1);
    run(&["--out-dir", "folder", "--picture", "half.png", "--normalize", "--out-dtype", "f16"]);
    assert!(difference(&read(&place, "half.png"), &whole) <= 8);
    // Of a pipe, it is the pipe's end.
    let output = place.bare().args(prompts).args(["--picture", "-"]).output().unwrap();
    assert!(difference(&whole, &picture(&output.stdout)) <= 1);
    assert_eq!(place.names(), ["alone.png", "drawn.png", "e.npy", "e.png", "folder", "half.png"]);
    assert_refused(&place, place.bare().args(prompts).args(["--picture", "e.png"]), 2, &["e.png", "--overwrite"]);
    // Kept draws are drawn, and every sample is.
    run(&["--best-of", "2", "--samples-per-prompt", "2", "--out", "b.jsonl", "--picture", "b.png"]);
    assert_eq!(read(&place, "b.png").dimensions(), (3 * size, 2 * size));
}

#[test]
fn a_run_that_resumes_and_shards_draw_their_rows() {
    let place = Workplace::new();
    fs::write(place.path("p.txt"), "a red apple\na cat\na blue car\n").unwrap();
    let run = |options: &[&str]| {
        let command = ["-f", "p.txt", "--steps", "2", "--batch-size", "1", "-q"];
        assert_done(place.bare().args(command).args(options));
    };
    let picture = |name: &str| fs::read(place.path(name)).unwrap();
    run(&["--out", "e.npy", "--picture", "e.png", "--resume"]);
    let whole = picture("e.png");
    // It is done, and is found so.
    run(&["--out", "e.npy", "--picture", "e.png", "--resume"]);
    assert!(picture("e.png") == whole);
    // Until one of them is not as it was written.
    fs::write(place.path("e.png"), &whole[..whole.len() - 1]).unwrap();
    let resume =
        ["-f", "p.txt", "--steps", "2", "--batch-size", "1", "--out", "e.npy", "--picture", "e.png", "--resume"];
    assert_refused(
        &place,
        place.bare().args(resume),
        2,
        &["e.png\"", "not as this run wrote it (it is damaged)", "--overwrite"],
    );
    // Of shards, each has its own rows, and one without rows a blank.
    for (shard, name, count) in [("1/2", "one.png", 2), ("2/2", "two.png", 1)] {
        run(&["--shard", shard, "--picture", name, "--resume"]);
        run(&["--shard", shard, "--picture", name, "--resume"]);
        let sheet = read(&place, name);
        assert_eq!(sheet.width() / sheet.height(), count, "{name}");
    }
    run(&["--shard", "4/4", "--picture", "none.png"]);
    assert!(read(&place, "none.png").as_raw().iter().all(|level| *level == 255));
    assert_refused(
        &place,
        place.bare().args(["merge", "one.png", "two.png", "-o", "m.npy"]),
        2,
        &["one.png", "a picture"],
    );
}

#[test]
fn mixes_and_pictures_are_drawn() {
    let place = Workplace::new();
    let mix = ["interpolate", "a red apple", "a blue car", "--slerp", "--frames", "4", "-q"];
    assert_done(place.bare().args(mix).args(["--out", "e.npy", "--picture", "e.png"]));
    let frames = read(&place, "e.png");
    let size = frames.width() / 2;
    assert_eq!(read_npy(&fs::read(place.path("e.npy")).unwrap()).nrows(), 4);
    // The decoder's picture of a picture of its own resembles it.
    image::imageops::crop_imm(&frames, 0, 0, size, size).to_image().save(place.path("apple.png")).unwrap();
    assert_done(place.bare().args(["encode-image", "apple.png", "--picture", "again.png", "-q"]));
    let (apple, again) = (read(&place, "apple.png"), read(&place, "again.png"));
    let off: f64 = apple.as_raw().iter().zip(again.as_raw()).map(|(one, other)| f64::from(one.abs_diff(*other))).sum();
    assert!(off / (apple.as_raw().len() as f64) < 40.0, "{off}");
}

#[test]
fn captions_name_what_is_near() {
    let place = Workplace::new();
    let prompts = ["-p", "a red apple", "-p", "a pizza"];
    assert_done(place.bare().args(prompts).args(["-q", "--out", "e.npy"]));
    let output = place.bare().args(["draw", "e.npy", "-o", "e.png", "--captions"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!([&lines[0][..3], &lines[1][..3]], [["0", "🍎", "red apple"], ["1", "🍕", "pizza"]]);
    assert!(lines.iter().all(|line| (0.5..=1.0).contains(&line[3].parse::<f64>().unwrap())), "{text}");
    assert_refused(
        &place,
        place.bare().args(["draw", "e.npy", "-o", "-", "--captions"]),
        2,
        &["--captions", "standard output"],
    );
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let place = Workplace::new();
    let mut bad = rows(3);
    write_npy(place.path("good.npy"), &bad).unwrap();
    bad.slice_mut(s![2, ..]).fill(3e38);
    write_npy(place.path("huge.npy"), &bad).unwrap();
    bad[(1, 7)] = f32::NAN;
    write_npy(place.path("nan.npy"), &bad).unwrap();
    write_npy(place.path("wide.npy"), &Array2::<f32>::ones((2, 1280))).unwrap();
    write_npy(place.path("integers.npy"), &array![[1_i32]]).unwrap();
    fs::write(place.path("cut.npy"), &fs::read(place.path("good.npy")).unwrap()[..999]).unwrap();
    fs::write(place.path("text.txt"), "a").unwrap();
    fs::create_dir(place.path("folder.png")).unwrap();
    for (arguments, words) in [
        (&["huge.npy", "-o", "x.png"][..], &["row 2 of \"huge.npy\"", "too large"][..]),
        (&["huge.npy", "-o", "x/"], &["row 2 of \"huge.npy\"", "too large"]),
        (&["nan.npy", "-o", "x/"], &["row 1 of \"nan.npy\"", "NaN"]),
        (&["wide.npy", "-o", "x.png"], &["\"wide.npy\"", "1280", "192", "scripts/decode.py"]),
        (&["integers.npy", "-o", "x.png"], &["\"i4\""]),
        (&["cut.npy", "-o", "x.png"], &["\"cut.npy\" is truncated"]),
        (&["none.npy", "-o", "x.png"], &["\"none.npy\"", "No such file"]),
        (&["text.txt", "-o", "x.png"], &["\"text.txt\" does not end in"]),
        (&["good.npy", "-o", "x.jpg"], &["\"x.jpg\"", ".png", "folder"]),
        (&["good.npy", "-o", "x"], &["\"x\"", ".png", "\"x/\""]),
        (&["good.npy", "-o", "folder.png"], &["\"folder.png\" is a folder"]),
        (&["good.npy", "-o", "none/x.png"], &["there is no folder \"none\""]),
        (&["good.npy", "-o", "text.txt/"], &["text.txt"]),
        (&["good.npy", "-o", "x.png", "--rows", "1..4"], &["--rows 1..4", "rows 0 to 2"]),
        (&["good.npy", "-o", "x.png", "--rows", "2..2"], &["--rows", "range"]),
        (&["good.npy", "-o", "x.png", "--scale", "65"], &["--scale", "1 and 64"]),
        (&["good.npy", "-o", "x.png", "--columns", "0"], &["--columns"]),
        (&["good.npy", "-o", "x.png", "--filter", "cubic"], &["--filter"]),
        (&["good.npy"], &["--out"]),
        (&["-", "-o", "x.png"], &["standard input is not"]),
    ] {
        assert_refused(&place, place.bare().arg("draw").args(arguments), 2, words);
    }
    write_npy(place.path("many.npy"), &rows(9000)).unwrap();
    let many = ["draw", "many.npy", "-o", "x.png", "--scale", "64"];
    assert_refused(&place, place.bare().args(many), 2, &["9000 rows", "pixels", "--scale"]);

    let small = model().display().to_string();
    for (arguments, words) in [
        (&["-m", &small, "--picture", "x.png"][..], &["--picture", "192", "scripts/decode.py"][..]),
        (&["-m", "kandinsky-2.2", "--picture", "x.png"], &["--picture", "kandinsky-2.2", "scripts/decode.py"]),
        (&["--picture", "x.jpg"], &["\"x.jpg\"", ".png"]),
        (&["--picture", "folder.png"], &["folder.png", "a folder", "prior-embed draw"]),
        (&["--picture", "none/x.png"], &["none"]),
        (&["--out", "x.png"], &["\"x.png\"", "--picture"]),
        (&["--out", "-", "--picture", "-"], &["\"-\"", "twice"]),
        (&["--picture", "x.png", "--text-out", "x.png"], &["same file"]),
        (&["--picture", "x.png", "--stats", "x.png"], &["--picture and --stats", "same file"]),
        (&["--picture", "-", "--resume"], &["--resume needs files"]),
        (&[], &["required", "--out <FILE>"]),
    ] {
        assert_refused(&place, place.bare().args(["-p", "a cat", "--offline"]).args(arguments), 2, words);
    }
}

/// The disk is full: nothing is left, and the message says so.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told() {
    let place = Workplace::new();
    write_npy(place.path("e.npy"), &rows(1)).unwrap();
    assert!(Path::new("/dev/full").exists());
    assert_refused(&place, place.bare().args(["draw", "e.npy", "-o", "/dev/full"]), 1, &["/dev/full", "disk full"]);
    assert_refused(&place, place.bare().args(["-p", "a", "--picture", "/dev/full", "-q"]), 1, &["/dev/full"]);
}

#[test]
fn a_signal_leaves_no_part_of_a_sheet() {
    let place = Workplace::new();
    write_npy(place.path("e.npy"), &rows(9000)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_prior-embed"));
    command.args(["draw", "e.npy", "-o", "e.png", "--scale", "2"]).current_dir(place.folder.path());
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    place.wait_until(|| place.names().iter().any(|name| name.ends_with(".part")));
    send_signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), place.names()), (Some(143), vec!["e.npy".to_string()]), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped"), "{}", stderr(&output));
}
