//! Tells the executables where libtorch lies, so that they run without `LD_LIBRARY_PATH`.
//!
//! Two places, in this order: `lib` beside the executable, for a packaged gradmesh, and the directory that torch-sys
//! linked against (`LIBTORCH`, the Python torch, or the link `libtorch` in the checkout: see scripts/libtorch.py).

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let beside = match target.as_str() {
        "macos" => "@executable_path/lib",
        "linux" => "$ORIGIN/lib",
        _ => return,
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{beside}");
    // The key `libtorch_lib` of torch-sys, whose `links` is `tch`.
    match env::var("DEP_TCH_LIBTORCH_LIB") {
        Ok(lib) => println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}"),
        Err(_) => println!(
            "cargo:warning=torch-sys does not say where libtorch lies; run gradmesh with LD_LIBRARY_PATH"
        ),
    }
}
