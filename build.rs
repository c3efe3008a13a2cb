//! Builds the C++ kernels against libtorch, and links the program so that it finds libtorch from anywhere, without
//! `LD_LIBRARY_PATH`.

use std::path::{Path, PathBuf};

const KERNELS: &str = "src/kernels";

const SOURCES: [&str; 10] = [
    "activation.cpp",
    "attention.cpp",
    "bfloat16.cpp",
    "foreign.cpp",
    "int8.cpp",
    "linear.cpp",
    "panels.cpp",
    "process.cpp",
    "processor.cpp",
    "record.cpp",
];

/// Compiled with flags of its own.
const NORMALS: &str = "normals.cpp";

const HEADERS: [&str; 4] = ["activation.h", "border.h", "panels.h", "panels_tile.h"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for file in SOURCES.iter().chain(&HEADERS).chain(&[NORMALS]) {
        println!("cargo:rerun-if-changed={KERNELS}/{file}");
    }
    find_image_encoder();
    find_autoregressive();
    find_decoder();
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    // Set by torch-sys' build script; absent in its `doc-only` build.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else { return };
    build_kernels(&lib);
    help_dependents(&lib);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    if lib.join("libtorch_cuda.so").exists() {
        // No symbol of it is used directly: the linker would drop it, and libtorch would see no GPU.
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state");
    }
}

/// The built-in model's image encoder, which the package on crates.io leaves out, is built in where it is there.
fn find_image_encoder() {
    const MODEL: &str = "assets/emoji";
    const FILES: [&str; 3] =
        ["image_encoder/config.json", "image_encoder/model.safetensors", "image_processor/preprocessor_config.json"];
    println!("cargo:rustc-check-cfg=cfg(builtin_image_encoder)");
    println!("cargo:rerun-if-changed={MODEL}");
    if FILES.iter().all(|file| Path::new(MODEL).join(file).is_file()) {
        println!("cargo:rustc-cfg=builtin_image_encoder");
    }
}

/// So is the autoregressive prior.
fn find_autoregressive() {
    const MODEL: &str = "assets/emoji-ar";
    println!("cargo:rustc-check-cfg=cfg(builtin_autoregressive)");
    watch(MODEL);
    if Path::new(MODEL).is_dir() {
        println!("cargo:rustc-cfg=builtin_autoregressive");
    }
}

/// So are its decoder and its index of emoji, by the feature `draw`.
fn find_decoder() {
    const FILES: [&str; 3] = ["decoder/decoder.safetensors", "index/index.safetensors", "index/emoji.json"];
    println!("cargo:rustc-check-cfg=cfg(builtin_decoder)");
    watch("assets/decoder");
    watch("assets/index");
    let is_wanted = std::env::var_os("CARGO_FEATURE_DRAW").is_some();
    if is_wanted && FILES.iter().all(|file| Path::new("assets").join(file).is_file()) {
        println!("cargo:rustc-cfg=builtin_decoder");
    }
}

/// Builds anew when a folder of assets changes, or comes.
fn watch(folder: &str) {
    // What is not there would have changed at every build.
    let watched = if Path::new(folder).is_dir() { folder } else { "assets" };
    println!("cargo:rerun-if-changed={watched}");
}

/// Link arguments do not reach the programs that depend on the library. Cargo runs and tests them with the link search
/// paths below the target folder in `LD_LIBRARY_PATH`, so one of these leads to libtorch; their own build scripts find it
/// in `DEP_PRIOR_EMBED_LIBTORCH_LIB`.
fn help_dependents(lib: &Path) {
    println!("cargo:libtorch_lib={}", lib.display());
    #[cfg(unix)]
    if let Some(out) = std::env::var_os("OUT_DIR") {
        let link = PathBuf::from(out).join("libtorch");
        let _ = std::fs::remove_file(&link);
        if std::os::unix::fs::symlink(lib, &link).is_ok() {
            println!("cargo:rustc-link-search=native={}", link.display());
        }
    }
}

fn build_kernels(lib: &Path) {
    let root = std::env::var_os("LIBTORCH_INCLUDE").map(PathBuf::from);
    let root = root.or_else(|| lib.parent().map(Path::to_path_buf)).unwrap_or_default();
    let mut build = cc::Build::new();
    // For scripts/check-memory.
    println!("cargo:rerun-if-env-changed=PRIOR_EMBED_SANITIZE");
    if std::env::var_os("PRIOR_EMBED_SANITIZE").is_some() {
        build.flag("-fsanitize=address,undefined").flag("-fno-sanitize-recover=undefined").flag("-g");
        println!("cargo:rustc-link-arg=-lasan");
        println!("cargo:rustc-link-arg=-lubsan");
    }
    build
        .cpp(true)
        .std("c++17")
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        // Without it, at::parallel_for runs on one thread. Apple's compiler has OpenMP's SIMD directives alone.
        .flag(if cfg!(target_os = "macos") { "-fopenmp-simd" } else { "-fopenmp" })
        // libtorch's headers have many.
        .warnings(false)
        .opt_level(3);
    // Calls that may set errno or trap are not vectorized.
    let mut normals = build.clone();
    normals.flag("-fno-math-errno").flag("-fno-trapping-math");
    normals.file(Path::new(KERNELS).join(NORMALS)).compile("prior_embed_normals");
    build.files(SOURCES.map(|file| Path::new(KERNELS).join(file))).compile("prior_embed_kernels");
}
