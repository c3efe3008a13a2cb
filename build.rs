//! Builds the C++ kernels against libtorch, and tells the linker where libtorch is, for good: the binary runs from
//! anywhere without `LD_LIBRARY_PATH`.

use std::path::{Path, PathBuf};

const KERNELS: &str = "src/kernels";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={KERNELS}");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    // Set by torch-sys' build script; absent in its `doc-only` build.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else { return };
    build_kernels(&lib);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    if lib.join("libtorch_cuda.so").exists() {
        // No symbol of it is used directly, so that the linker would leave it out, and libtorch would see no GPU.
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state");
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
        // Without it, at::parallel_for runs on one thread. Apple's compiler knows only the part for vectors.
        .flag(if cfg!(target_os = "macos") { "-fopenmp-simd" } else { "-fopenmp" })
        // What libtorch's headers warn of is not for us to mend.
        .warnings(false)
        .opt_level(3);
    // What may set errno or trap does not run on vectors.
    let mut normals = build.clone();
    normals.flag("-fno-math-errno").flag("-fno-trapping-math");
    normals.file(Path::new(KERNELS).join("normals.cpp")).compile("prior_embed_normals");
    build
        .files(
            [
                "activation.cpp",
                "attention.cpp",
                "bfloat16.cpp",
                "foreign.cpp",
                "int8.cpp",
                "linear.cpp",
                "process.cpp",
                "processor.cpp",
            ]
            .map(|file| Path::new(KERNELS).join(file)),
        )
        .compile("prior_embed_kernels");
}
