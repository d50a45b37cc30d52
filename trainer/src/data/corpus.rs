//! The text of a data directory as byte tokens in memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::manifest::read_error;
use super::{DataError, DataManifest};
use crate::training::Batch;

/// Byte tokens of all files of a manifest, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    tokens: Vec<u8>,
}

/// Number of token ids: one per byte.
pub const VOCAB: usize = 256;

#[derive(Deserialize)]
struct JsonLine {
    text: Option<String>,
}

impl Corpus {
    /// Reads the files of `manifest` from `dir` and checks each against its hash, holding at most `cap_bytes` of text
    /// and one file.
    ///
    /// # Errors
    /// [`DataError::TooLarge`] beyond the cap (before reading a file that cannot fit), [`DataError::Changed`] for a file
    /// that is not the manifest's, [`DataError::Jsonl`] for a line that does not parse.
    pub fn load(dir: &Path, manifest: &DataManifest, cap_bytes: u64) -> Result<Self, DataError> {
        let too_large = || DataError::TooLarge { cap_bytes };
        let mut tokens: Vec<u8> = Vec::new();
        for file in manifest.files() {
            let path = dir.join(&file.path);
            let held = u64::try_from(tokens.len()).map_err(|_| too_large())?;
            if file.bytes > cap_bytes.saturating_sub(held) {
                return Err(too_large());
            }
            let mut bytes = Vec::new();
            File::open(&path)
                // One byte more than expected is enough to see that a file has grown.
                .and_then(|open| {
                    open.take(file.bytes.saturating_add(1))
                        .read_to_end(&mut bytes)
                })
                .map_err(|source| read_error(&path, source))?;
            if *blake3::hash(&bytes).as_bytes() != file.blake3 {
                return Err(DataError::Changed(path));
            }
            if path
                .extension()
                .is_some_and(|extension| extension == "jsonl")
            {
                push_json_lines(&mut tokens, &bytes, &path)?;
            } else {
                tokens.extend_from_slice(&bytes);
                tokens.push(b'\n');
            }
        }
        Ok(Self { tokens })
    }

    /// A corpus from text in memory.
    pub fn from_bytes(text: Vec<u8>) -> Self {
        Self { tokens: text }
    }

    /// Byte tokens.
    pub fn tokens(&self) -> &[u8] {
        &self.tokens
    }

    /// Cuts the corpus into windows (`data`, "Windows").
    ///
    /// # Errors
    /// [`DataError::TooShort`] when there are not two windows.
    pub fn windows(&self, seq_len: usize) -> Result<Windows<'_>, DataError> {
        let predictions = self.tokens.len().saturating_sub(1);
        let windows = predictions.checked_div(seq_len).unwrap_or(0) as u64;
        if windows < 2 {
            return Err(DataError::TooShort {
                tokens: self.tokens.len(),
                windows,
                seq_len,
            });
        }
        Ok(Windows {
            tokens: &self.tokens,
            seq_len,
            held_out: (windows / 64).max(1),
            windows,
        })
    }
}

fn push_json_lines(tokens: &mut Vec<u8>, bytes: &[u8], path: &Path) -> Result<(), DataError> {
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let parsed: JsonLine = serde_json::from_slice(line).map_err(|error| DataError::Jsonl {
            path: path.to_path_buf(),
            line: index + 1,
            reason: error.to_string(),
        })?;
        if let Some(text) = parsed.text {
            tokens.extend_from_slice(text.as_bytes());
            tokens.push(b'\n');
        }
    }
    Ok(())
}

/// Equal windows over a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows<'a> {
    tokens: &'a [u8],
    seq_len: usize,
    windows: u64,
    held_out: u64,
}

impl Windows<'_> {
    /// Predictions per window.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Windows for training: indices `0..training()`.
    pub fn training(&self) -> u64 {
        self.windows - self.held_out
    }

    /// Windows for validation: indices `0..held_out()` of [`Self::validation_batch`].
    pub fn held_out(&self) -> u64 {
        self.held_out
    }

    /// The training windows of `indices`, in that order.
    ///
    /// # Errors
    /// [`DataError::NoWindow`] for an index that is not a training window, or when `indices` is empty.
    pub fn training_batch(&self, indices: &[u64]) -> Result<Batch, DataError> {
        self.batch(indices, 0, self.training())
    }

    /// The held-out windows of `indices`, in that order.
    ///
    /// # Errors
    /// [`DataError::NoWindow`] for an index from [`Self::held_out`] on, or when `indices` is empty.
    pub fn validation_batch(&self, indices: &[u64]) -> Result<Batch, DataError> {
        self.batch(indices, self.training(), self.held_out)
    }

    fn batch(&self, indices: &[u64], first: u64, windows: u64) -> Result<Batch, DataError> {
        let mut tokens = Vec::with_capacity(indices.len() * (self.seq_len + 1));
        for index in indices {
            let missing = || DataError::NoWindow {
                index: *index,
                windows,
            };
            if *index >= windows {
                return Err(missing());
            }
            let start = usize::try_from(first + index)
                .ok()
                .and_then(|window| window.checked_mul(self.seq_len))
                .ok_or_else(missing)?;
            let window = self
                .tokens
                .get(start..)
                .and_then(|rest| rest.get(..=self.seq_len))
                .ok_or_else(missing)?;
            tokens.extend(window.iter().copied().map(u32::from));
        }
        Batch::new(tokens, indices.len()).map_err(|_| DataError::NoWindow { index: 0, windows })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn windows_share_one_token_and_the_tail_is_held_out() {
        let corpus = Corpus::from_bytes((0..=255).collect());
        let windows = corpus.windows(3).expect("85 windows");
        assert_eq!((windows.training(), windows.held_out()), (84, 1));
        let batch = windows.training_batch(&[1, 0]).expect("batch");
        assert_eq!(batch.tokens(), [3, 4, 5, 6, 0, 1, 2, 3]);
        let held = windows.validation_batch(&[0]).expect("batch");
        assert_eq!(held.tokens(), [252, 253, 254, 255]);
        assert!(matches!(
            windows.training_batch(&[84]),
            Err(DataError::NoWindow { index: 84, .. })
        ));
        assert!(matches!(
            windows.validation_batch(&[1]),
            Err(DataError::NoWindow { .. })
        ));
        assert!(windows.training_batch(&[]).is_err());
    }

    #[test]
    fn too_little_text_is_an_error() {
        let corpus = Corpus::from_bytes(vec![0; 6]);
        assert!(matches!(
            corpus.windows(3),
            Err(DataError::TooShort { windows: 1, .. })
        ));
        assert!(matches!(corpus.windows(0), Err(DataError::TooShort { .. })));
    }

    #[test]
    fn files_are_joined_and_jsonl_gives_its_text() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("a.txt"), "plain").expect("file");
        let lines = "{\"text\": \"one\\ntwo\", \"id\": 7}\n\n{\"id\": 8}\n";
        fs::write(dir.path().join("b.jsonl"), lines).expect("file");
        let manifest = DataManifest::scan(dir.path()).expect("scan");
        let corpus = Corpus::load(dir.path(), &manifest, 1000).expect("load");
        assert_eq!(corpus.tokens(), b"plain\none\ntwo\n");
        assert!(matches!(
            Corpus::load(dir.path(), &manifest, 20),
            Err(DataError::TooLarge { cap_bytes: 20 })
        ));
        fs::write(dir.path().join("a.txt"), "plain and longer").expect("file");
        assert!(matches!(
            Corpus::load(dir.path(), &manifest, 1000),
            Err(DataError::Changed(path)) if path.ends_with("a.txt")
        ));
    }

    #[test]
    fn a_broken_json_line_is_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("a.jsonl"), "{\"text\": \"x\"}\n{oops\n").expect("file");
        let manifest = DataManifest::scan(dir.path()).expect("scan");
        assert!(matches!(
            Corpus::load(dir.path(), &manifest, 1000),
            Err(DataError::Jsonl { line: 2, .. })
        ));
    }
}
