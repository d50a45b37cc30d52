//! Is the libtorch that was loaded the one this was built for?

use libloading::os::unix::Library;

/// The version that the bindings are made for.
const EXPECTED: (u8, u8) = (2, 11);

/// A C function of libtorch_cpu.so: `major << 56 | minor << 48 | patch << 40 | tag`
/// (torch/headeronly/version.h, `TORCH_ABI_VERSION`).
const SYMBOL: &[u8] = b"aoti_torch_abi_version\0";

/// The loaded libtorch does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    #[error(
        "libtorch {found} is loaded, this build needs 2.11: point LIBTORCH (and LD_LIBRARY_PATH) at libtorch 2.11, or \
         run `make libtorch`"
    )]
    Mismatch { found: String },
    #[error(
        "the loaded libtorch does not tell its version ({0}), so it is older than 2.11: point LIBTORCH (and \
         LD_LIBRARY_PATH) at libtorch 2.11, or run `make libtorch`"
    )]
    Untold(String),
}

/// The version of the loaded libtorch, for example `2.11.0`, when it is 2.11.
///
/// # Errors
/// [`VersionError`]; training with another version would crash or compute something else.
pub fn version_check() -> Result<String, VersionError> {
    check(loaded_version()?)
}

fn check(version: u64) -> Result<String, VersionError> {
    let [major, minor, patch, ..] = version.to_be_bytes();
    let found = format!("{major}.{minor}.{patch}");
    if (major, minor) == EXPECTED {
        Ok(found)
    } else {
        Err(VersionError::Mismatch { found })
    }
}

#[allow(unsafe_code)]
fn loaded_version() -> Result<u64, VersionError> {
    let process = Library::this();
    // SAFETY: the symbol's type is that of its declaration in torch/csrc/inductor/aoti_torch/c/shim.h, unchanged since
    // it appeared; the function takes nothing, allocates nothing and returns a constant.
    unsafe {
        process
            .get::<unsafe extern "C" fn() -> u64>(SYMBOL)
            .map(|version| version())
    }
    .map_err(|error| VersionError::Untold(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linked_libtorch_tells_its_version() {
        // The call keeps libtorch linked into this test binary.
        assert!(tch::get_num_threads() > 0);
        let version = version_check().expect("tests run with libtorch 2.11");
        assert!(version.starts_with("2.11."), "{version}");
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let error = check(0x020a_0100_0000_0000).expect_err("2.10.1 is not 2.11");
        assert!(error.to_string().starts_with("libtorch 2.10.1 is loaded"));
    }
}
