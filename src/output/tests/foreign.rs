//! Whatever others put where an output goes is left alone, and nothing is written through it.

use super::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::PathBuf;

/// Another user.
const NOBODY: u32 = 65534;

/// Puts something in a place.
type Plant = fn(&Place, &Path);

/// A folder to write in, and precious files elsewhere.
struct Place {
    folder: TempDir,
    elsewhere: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: TempDir::new().unwrap(), elsewhere: TempDir::new().unwrap() };
        fs::create_dir(place.elsewhere.path().join("folder")).unwrap();
        for name in ["precious", "folder/journal.jsonl", "folder/image_embeds", "folder/other"] {
            fs::write(place.elsewhere.path().join(name), "precious").unwrap();
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn precious(&self) -> PathBuf {
        self.elsewhere.path().join("precious")
    }

    /// All that is there: names, kinds, owners, and what links lead to or files hold.
    fn state(&self) -> Vec<String> {
        fn add(path: &Path, state: &mut Vec<String>) {
            let metadata = fs::symlink_metadata(path).unwrap();
            let what = match fs::read_link(path) {
                Ok(target) => format!("{target:?}"),
                Err(_) if metadata.is_file() => format!("{:?}", fs::read(path).unwrap()),
                Err(_) => String::new(),
            };
            state.push(format!("{path:?} {:o} {} {what}", metadata.mode(), metadata.uid()));
            if metadata.is_dir() {
                fs::read_dir(path).unwrap().for_each(|entry| add(&entry.unwrap().path(), state));
            }
        }
        let mut state = Vec::new();
        [&self.folder, &self.elsewhere].iter().for_each(|folder| add(folder.path(), &mut state));
        state.sort();
        state
    }

    /// Asserts that a run is refused with any options, and that nothing is touched.
    fn assert_refused(&self, options: &WriteOptions, what: &str) {
        let before = self.state();
        for (resume, overwrite) in [(false, false), (true, false), (false, true), (true, true)] {
            let options = WriteOptions { resume, overwrite, restart: true, ..options.clone() };
            for message in [error_of(check(&options), 2), error_of(EmbeddingWriter::open(options), 2)] {
                assert!(message.contains("is in the way"), "{what}: {message}");
            }
            assert_eq!(self.state(), before, "{what}");
        }
    }
}

fn make_pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// A run of six rows that stopped after four, in its hidden folder.
fn stop(place: &Place, format: OutputFormat) -> (WriteOptions, PathBuf) {
    let options = WriteOptions { rows_per_file: 5, ..options(&place.at("e"), format) };
    let mut writer = EmbeddingWriter::open(options.clone()).unwrap();
    Run::new(6, 3).write_until(&mut writer, 4, 2).unwrap();
    let hidden = writer.dir().unwrap().unwrap().path().to_path_buf();
    (options, hidden)
}

#[test]
fn a_hidden_folder_that_is_not_ours_is_in_the_way() {
    let kinds: [(&str, Plant); 12] = [
        ("a link to a folder", |place, path| symlink(place.elsewhere.path().join("folder"), path).unwrap()),
        ("a dangling link", |place, path| symlink(place.elsewhere.path().join("none"), path).unwrap()),
        ("a link to itself", |_, path| symlink(path, path).unwrap()),
        ("a file", |_, path| fs::write(path, "precious").unwrap()),
        ("a pipe", |_, path| make_pipe(path)),
        ("a folder of the user's own", |_, path| {
            fs::create_dir_all(path.join("below")).unwrap();
            fs::write(path.join("notes.txt"), "precious").unwrap();
        }),
        ("a folder with a file of the journal's name", |_, path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("journal.jsonl"), "{\"my\": \"journal\"}\n").unwrap();
        }),
        ("a folder with an empty file of that name beside others", |_, path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("journal.jsonl"), "").unwrap();
            fs::write(path.join("notes.txt"), "precious").unwrap();
        }),
        ("a folder with a link of that name", |place, path| {
            fs::create_dir(path).unwrap();
            symlink(place.precious(), path.join("journal.jsonl")).unwrap();
        }),
        ("a folder with a dangling link of that name", |place, path| {
            fs::create_dir(path).unwrap();
            symlink(place.elsewhere.path().join("none"), path.join("journal.jsonl")).unwrap();
        }),
        ("a folder with a second name of a file", |place, path| {
            fs::create_dir(path).unwrap();
            fs::write(place.precious(), "").unwrap();
            fs::hard_link(place.precious(), path.join("journal.jsonl")).unwrap();
        }),
        ("a folder with a pipe of that name", |_, path| {
            fs::create_dir(path).unwrap();
            make_pipe(&path.join("journal.jsonl"));
            make_pipe(&path.join("lock"));
        }),
    ];
    for (what, plant) in kinds {
        for format in [OutputFormat::Npy, OutputFormat::Folder] {
            let place = Place::new();
            let options = options(&place.at("e"), format);
            let hidden = match format {
                OutputFormat::Folder => {
                    fs::create_dir(place.at("e")).unwrap();
                    place.at("e/.prior-embed")
                }
                _ => place.at(".e.prior-embed"),
            };
            plant(&place, &hidden);
            place.assert_refused(&options, what);
        }
    }
}

#[test]
fn nothing_is_written_through_what_is_planted_in_a_hidden_folder() {
    let names =
        ["img_emb_0.npy", "rows_0", "negative_img_emb_0.npy", "img_emb_1.npy", "metadata_0.parquet", "record-0.json"];
    for name in names {
        let kinds: [Plant; 4] = [
            |place, path| symlink(place.precious(), path).unwrap(),
            |place, path| symlink(place.elsewhere.path().join("folder"), path).unwrap(),
            |place, path| fs::hard_link(place.precious(), path).unwrap(),
            |_, path| make_pipe(path),
        ];
        for plant in kinds {
            for resume in [true, false] {
                let place = Place::new();
                let (options, hidden) = stop(&place, OutputFormat::Folder);
                let planted = hidden.join(name);
                let is_data = fs::remove_file(&planted).is_ok();
                plant(&place, &planted);
                let before: Vec<String> = place.state();
                let opened = EmbeddingWriter::open(WriteOptions { resume, overwrite: !resume, ..options });
                if is_data && resume {
                    assert!(error_of(opened, 2).contains("cannot be opened"), "{name}");
                    assert_eq!(place.state(), before, "{name}");
                } else {
                    let mut writer = opened.unwrap();
                    assert_eq!(writer.rows_done(), if resume { 4 } else { 0 });
                    Run::new(6, 3).write(&mut writer, 2).unwrap();
                    writer.finish().unwrap();
                    assert!(place.at("e/img_emb").is_dir() && !hidden.exists());
                }
                let elsewhere = |state: &[String]| -> Vec<String> {
                    let start = format!("{:?}", place.elsewhere.path()).trim_end_matches('"').to_string();
                    state.iter().filter(|line| line.starts_with(&start)).cloned().collect()
                };
                assert_eq!(elsewhere(&place.state()), elsewhere(&before), "{name}");
            }
        }
    }
}

#[test]
fn a_hidden_folder_that_is_swapped_meanwhile_is_not_followed() {
    let place = Place::new();
    let mut writer = EmbeddingWriter::open(options(&place.at("e"), OutputFormat::JsonLines)).unwrap();
    Run::new(6, 3).write_until(&mut writer, 2, 2).unwrap();
    let (hidden, away) = (place.at(".e.prior-embed"), place.at("away"));
    fs::rename(&hidden, &away).unwrap();
    symlink(place.elsewhere.path().join("folder"), &hidden).unwrap();
    let before = contents(place.elsewhere.path());
    Run::new(6, 3).write(&mut writer, 2).unwrap();
    // The output is made where the rows are; only the folder's name is another's now.
    assert!(writer.finish().is_err());
    assert_eq!(contents(place.elsewhere.path()), before);
    assert!(place.at("e").is_file());
}

#[test]
fn the_second_output_is_not_written_through_a_link() {
    let place = Place::new();
    let mut options = options(&place.at("e.npy"), OutputFormat::Npy);
    let second = place.at("n.npy");
    options.outputs.push(Output { path: second.clone(), format: OutputFormat::Npy, arrays: Arrays::NEGATIVE });
    // A name that can be guessed from the main output's.
    let run = crc32fast::hash(place.folder.path().canonicalize().unwrap().join("e.npy").as_os_str().as_encoded_bytes());
    symlink(place.precious(), place.at(&format!(".n.npy.prior-embed-part-{run:08x}"))).unwrap();
    write_whole(&Run::new(6, 3), options, 2);
    assert_eq!(fs::read(place.precious()).unwrap(), b"precious");
    assert!(fs::symlink_metadata(&second).unwrap().is_file());
}

#[test]
fn an_empty_hidden_folder_is_used() {
    for format in [OutputFormat::Npy, OutputFormat::Folder] {
        for resume in [false, true] {
            let place = Place::new();
            let mut options = options(&place.at("e"), format);
            options.resume = resume;
            fs::create_dir(place.at("e")).unwrap_or(());
            let hidden =
                if format == OutputFormat::Folder { place.at("e/.prior-embed") } else { place.at(".e.prior-embed") };
            if format != OutputFormat::Folder {
                fs::remove_dir(place.at("e")).unwrap();
            }
            fs::create_dir(&hidden).unwrap();
            write_whole(&Run::new(6, 3), options, 2);
            assert!(place.at("e").exists() && !hidden.exists());
        }
    }
}

/// Gives what is at `path` to another user, if permitted.
fn give_away(path: &Path) -> bool {
    lchown(path, Some(NOBODY), Some(NOBODY)).is_ok()
}

#[test]
fn another_users_folder_is_in_the_way() {
    for name in ["", "journal.jsonl"] {
        for format in [OutputFormat::JsonLines, OutputFormat::Folder] {
            let place = Place::new();
            let (options, hidden) = stop(&place, format);
            // Only root can give files away.
            if give_away(&if name.is_empty() { hidden.clone() } else { hidden.join(name) }) {
                place.assert_refused(&options, "another user's");
            } else {
                assert_eq!(EmbeddingWriter::open(WriteOptions { resume: true, ..options }).unwrap().rows_done(), 4);
            }
        }
    }
    // An empty one, too.
    let place = Place::new();
    let hidden = place.at(".e.prior-embed");
    fs::create_dir(&hidden).unwrap();
    if give_away(&hidden) {
        place.assert_refused(&options(&place.at("e"), OutputFormat::Npy), "another user's");
    }
}

#[test]
fn other_users_links_are_not_followed_in_shared_folders() {
    use std::os::unix::fs::PermissionsExt;
    for (mode, is_shared) in [(0o1777, true), (0o755, false)] {
        let place = Place::new();
        symlink(place.precious(), place.at("e.npy")).unwrap();
        symlink(place.elsewhere.path().join("none"), place.at("dangling.npy")).unwrap();
        let is_given = give_away(&place.at("e.npy")) && give_away(&place.at("dangling.npy"));
        fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        for name in ["e.npy", "dangling.npy"] {
            let mut options = options(&place.at(name), OutputFormat::Npy);
            options.overwrite = true;
            if is_given && is_shared {
                assert!(error_of(check(&options), 2).contains("another user made"));
                assert!(error_of(EmbeddingWriter::open(options), 2).contains("another user made"));
                assert_eq!(fs::read(place.precious()).unwrap(), b"precious");
            } else {
                write_whole(&Run::new(6, 3), options, 2);
                assert!(fs::symlink_metadata(place.at(name)).unwrap().is_symlink());
                assert!(fs::read(place.at(name)).unwrap().starts_with(b"\x93NUMPY"));
            }
        }
    }
}
