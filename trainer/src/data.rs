//! Training data: the same bytes on every machine, and who trains on which of them.
//!
//! **Files.** A data directory is every regular file below it whose extension is one of [`EXTENSIONS`], sorted by its
//! relative path (bytes, `/` between parts). Files and directories whose name begins with `.` are left out, links are
//! not followed. Pre-tokenised `.bin` and parquet are not read.
//!
//! **Tokens.** Bytes: token id = byte value, 256 of them. The corpus is the text of all files in order, with one newline
//! after each. A `.jsonl` file contributes the string under `"text"` of each line that has one, each followed by a
//! newline; every other file contributes its bytes as they are.
//!
//! **Windows.** Window `i` of length L is the tokens `i L ..= i L + L`: L predictions, and the last token of one window is
//! the first of the next. The last 1/64 of the windows, at least one, are held out for validation; all before them are
//! for training.

mod assignment;
mod corpus;
mod manifest;

use std::io;
use std::path::PathBuf;

pub use assignment::assignment;
pub use corpus::{Corpus, VOCAB, Windows};
pub use manifest::{DataFile, DataManifest, Difference};

/// Extensions read as text; everything else in a data directory is ignored.
pub const EXTENSIONS: [&str; 14] = [
    "c", "cpp", "css", "h", "html", "js", "json", "jsonl", "md", "py", "rs", "toml", "ts", "txt",
];

/// Most files of a manifest. A guess: a cargo registry with 600 crates has about 40,000 source files.
pub const FILES_MAX: usize = 1 << 18;

/// Most directories inside one another. A guess; stops a walk that a file system makes endless.
pub const DEPTH_MAX: usize = 64;

/// Longest relative path, in bytes: the usual `PATH_MAX` of Linux.
pub const PATH_BYTES_MAX: usize = 4096;

/// What went wrong with a data directory.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{}: cannot be read ({source}): check that it exists and its permissions", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: not a directory: data is a directory of text files", .0.display())]
    NotADirectory(PathBuf),
    #[error(
        "{}: no usable text: put files with one of the extensions {} in it",
        .0.display(),
        EXTENSIONS.join(", ")
    )]
    NoText(PathBuf),
    #[error("{}: more than {FILES_MAX} files: merge small files, or choose fewer", .0.display())]
    TooManyFiles(PathBuf),
    #[error("{}: more than {DEPTH_MAX} directories deep: choose a flatter directory", .0.display())]
    TooDeep(PathBuf),
    #[error("{}: path is not UTF-8, or longer than {PATH_BYTES_MAX} bytes: rename it", .0.display())]
    Path(PathBuf),
    #[error("{}: line {line} is not a JSON object: {reason}", .path.display())]
    Jsonl {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    #[error("the text has more than {cap_bytes} bytes: choose less data, or raise the cap")]
    TooLarge { cap_bytes: u64 },
    #[error("{}: differs from the manifest: get the same data as the launcher", .0.display())]
    Changed(PathBuf),
    #[error(
        "{tokens} tokens make {windows} windows of {seq_len}: two are needed, one of them held out; use more text or a \
         shorter sequence"
    )]
    TooShort {
        tokens: usize,
        windows: u64,
        seq_len: usize,
    },
    #[error("window {index} does not exist, there are {windows}")]
    NoWindow { index: u64, windows: u64 },
    #[error("data manifest is malformed: {0}")]
    Manifest(String),
}
