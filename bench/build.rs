//! Tells the executable where libtorch lies, so that it runs without `LD_LIBRARY_PATH`: in the directory that torch-sys
//! linked against.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if !matches!(target.as_str(), "linux" | "macos") {
        return;
    }
    // The key `libtorch_lib` of torch-sys, whose `links` is `tch`.
    match env::var("DEP_TCH_LIBTORCH_LIB") {
        Ok(lib) => println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}"),
        Err(_) => println!(
            "cargo:warning=torch-sys does not say where libtorch lies; run gradmesh-bench with LD_LIBRARY_PATH"
        ),
    }
}
