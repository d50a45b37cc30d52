//! Is there a libtorch, and is it the one that gradmesh is built for?
//!
//! Links no libtorch, so that an executable can ask before the dynamic loader does: the loader ends a process whose
//! libraries are missing or lack a symbol before its `main`, with words that help nobody.

use std::mem;

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};

/// The major and minor version that the bindings (tch) are made for.
const EXPECTED: (u8, u8) = (2, 11);

/// A C function of libtorch_cpu: `major << 56 | minor << 48 | patch << 40 | tag`
/// (torch/headeronly/version.h, `TORCH_ABI_VERSION`).
const SYMBOL: &[u8] = b"aoti_torch_abi_version\0";

/// As the dynamic loader finds it: on Linux through LD_LIBRARY_PATH and the executable's rpath. macOS asks the rpath
/// only when told to.
#[cfg(target_os = "macos")]
const LIBRARY: &str = "@rpath/libtorch_cpu.dylib";
#[cfg(not(target_os = "macos"))]
const LIBRARY: &str = "libtorch_cpu.so";

/// The loaded libtorch does not fit. Only whoever installed gradmesh can help; each message says how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    #[error(
        "libtorch {found} is loaded, this build needs 2.11: point LD_LIBRARY_PATH at the directory `lib` of libtorch \
         2.11 (and LIBTORCH at libtorch 2.11 when building), or run `make libtorch` and build again"
    )]
    Mismatch { found: String },
    #[error(
        "the loaded libtorch does not tell its version ({0}), so it is older than 2.11: point LD_LIBRARY_PATH at the \
         directory `lib` of libtorch 2.11 (and LIBTORCH at libtorch 2.11 when building), or run `make libtorch` and \
         build again"
    )]
    Untold(String),
}

/// libtorch cannot be loaded, or does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// With the loader's words, which name the missing file: it need not be libtorch itself.
    #[error(
        "cannot load libtorch ({0}): put the directory `lib` of libtorch 2.11 beside the executable or into \
         LD_LIBRARY_PATH, or run `make libtorch` and build again"
    )]
    Missing(String),
    #[error(transparent)]
    Version(#[from] VersionError),
}

/// The version, for example `2.11.0`, of the libtorch that this process already has, when it is 2.11.
///
/// # Errors
/// [`VersionError`], also when none is loaded; training with another version would crash or compute something else.
pub fn version_check() -> Result<String, VersionError> {
    version_of(&Library::this())
}

/// Loads libtorch as the dynamic loader would for this executable and gives its version, as [`version_check`] does.
///
/// It stays loaded until the process ends: its destructors are not made for less. Cost: what the start of any program
/// with libtorch costs, a quarter of a second of one core, nearly all of it libtorch registering its operators.
///
/// # Errors
/// [`LoadError`].
#[allow(unsafe_code)]
pub fn load() -> Result<String, LoadError> {
    // SAFETY: the constructors of libtorch run, as they would when it is linked; this process calls nothing else of it.
    let library = unsafe { Library::open(Some(LIBRARY), RTLD_LAZY | RTLD_LOCAL) }
        .map_err(|error| LoadError::Missing(error.to_string()))?;
    let version = version_of(&library);
    mem::forget(library);
    Ok(version?)
}

#[allow(unsafe_code)]
fn version_of(library: &Library) -> Result<String, VersionError> {
    // SAFETY: the symbol's type is that of its declaration in torch/csrc/inductor/aoti_torch/c/shim.h, unchanged since
    // it appeared; the function takes nothing, allocates nothing and returns a constant.
    let version = unsafe {
        library
            .get::<unsafe extern "C" fn() -> u64>(SYMBOL)
            .map(|version| version())
    };
    check(version.map_err(|error| VersionError::Untold(error.to_string()))?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_patch_of_the_expected_version_fits() {
        assert_eq!(check(0x020b_0000_0000_0000), Ok("2.11.0".to_owned()));
        assert_eq!(check(0x020b_0300_0000_0001), Ok("2.11.3".to_owned()));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        for (version, name) in [
            (0x020a_0100_0000_0000, "2.10.1"),
            (0x020c_0000_0000_0000, "2.12.0"),
            (0x030b_0000_0000_0000, "3.11.0"),
        ] {
            let found = name.to_owned();
            assert_eq!(check(version), Err(VersionError::Mismatch { found }));
        }
    }

    #[test]
    fn a_process_without_libtorch_has_no_version() {
        assert!(matches!(version_check(), Err(VersionError::Untold(_))));
    }

    #[test]
    fn every_message_says_what_to_do() {
        let found = "2.10.1".to_owned();
        for error in [
            LoadError::Missing("no such file".to_owned()),
            VersionError::Mismatch { found }.into(),
            VersionError::Untold("no such symbol".to_owned()).into(),
        ] {
            let text = error.to_string();
            for part in ["libtorch 2.11", "LD_LIBRARY_PATH", "`make libtorch`"] {
                assert!(text.contains(part), "{part} is missing in: {text}");
            }
        }
    }
}
