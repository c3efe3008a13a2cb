//! Parts of a run to mutate, made and merged by the program itself.

use crate::cases::Outcome;
use crate::program::{self, program};
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

/// The parts of a run of two shards: Parquet, and what the program writes beside it.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/kandinsky22");
        for shard in ["1/2", "2/2"] {
            let mut command = program(folder.path());
            command.arg("-m").arg(&model).args(["--steps", "1", "--batch-size", "2", "--shard", shard]);
            command.args(["-p", "a", "-p", "b", "-p", "c", "-p", "d"]);
            let output = command.args(["--out", &format!("{}.parquet", &shard[..1])]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        folder
    });
    made.path()
}

/// Joins the parts in a folder.
pub fn merge(folder: &Path) -> Outcome {
    program::outcome(program(folder).args(["merge", "1.parquet", "2.parquet", "--out", "all.parquet"]))
}
