//! The content-addressed list of training files.
//!
//! **Canonical bytes.** `gradmesh-data-1\n`, then u32 file count, then per file in sorted order: u32 path length, the
//! path, u64 byte length, the 32 bytes of BLAKE3. All integers little-endian. The root is the BLAKE3 of these bytes; the
//! run's manifest names it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{DEPTH_MAX, DataError, EXTENSIONS, FILES_MAX, PATH_BYTES_MAX};

const MAGIC: &[u8] = b"gradmesh-data-1\n";

/// One file of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Relative path, `/` between parts.
    pub path: String,
    pub bytes: u64,
    pub blake3: [u8; 32],
}

/// Sorted list of files with their hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataManifest {
    files: Vec<DataFile>,
}

/// One file that is not what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    Missing(String),
    Changed(String),
    /// A usable file that the manifest does not name.
    Extra(String),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "{path}: missing"),
            Self::Changed(path) => write!(f, "{path}: content differs"),
            Self::Extra(path) => write!(f, "{path}: not in the manifest"),
        }
    }
}

impl DataManifest {
    /// Hashes every usable file below `dir` (`data`, "Files"). Reads each file once, in pieces.
    ///
    /// # Errors
    /// [`DataError`] with the path and what to do; an unreadable file is an error, never left out in silence.
    pub fn scan(dir: &Path) -> Result<Self, DataError> {
        let metadata = fs::metadata(dir).map_err(|source| read_error(dir, source))?;
        if !metadata.is_dir() {
            return Err(DataError::NotADirectory(dir.to_path_buf()));
        }
        let mut paths = Vec::new();
        walk(dir, "", 0, &mut paths)?;
        paths.sort_unstable();
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let (bytes, blake3) = hash_file(&dir.join(&path))?;
            files.push(DataFile {
                path,
                bytes,
                blake3,
            });
        }
        if files.iter().all(|file| file.bytes == 0) {
            return Err(DataError::NoText(dir.to_path_buf()));
        }
        Ok(Self { files })
    }

    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// Sum of file lengths.
    pub fn total_bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// What [`Self::root`] hashes (module doc, "Canonical bytes").
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&length(self.files.len()));
        for file in &self.files {
            bytes.extend_from_slice(&length(file.path.len()));
            bytes.extend_from_slice(file.path.as_bytes());
            bytes.extend_from_slice(&file.bytes.to_le_bytes());
            bytes.extend_from_slice(&file.blake3);
        }
        bytes
    }

    /// Reads [`Self::to_bytes`], also from a peer: only canonical bytes are accepted.
    ///
    /// # Errors
    /// [`DataError::Manifest`] for anything else, including paths that leave the directory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DataError> {
        let mut reader = Reader(bytes);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(malformed("unknown first line"));
        }
        let count = reader.length()?;
        if count > FILES_MAX {
            return Err(DataError::Manifest(format!(
                "{count} files, at most {FILES_MAX}"
            )));
        }
        let mut files: Vec<DataFile> = Vec::new();
        for _ in 0..count {
            let path_bytes = reader.length()?;
            let path = std::str::from_utf8(reader.take(path_bytes)?)
                .map_err(|_| malformed("a path is not UTF-8"))?;
            if !is_relative(path) {
                return Err(DataError::Manifest(format!(
                    "path {path:?} is not a plain relative path to a known kind of file"
                )));
            }
            if files.last().is_some_and(|last| last.path.as_str() >= path) {
                return Err(DataError::Manifest(format!(
                    "path {path:?} is not in sorted order"
                )));
            }
            files.push(DataFile {
                path: path.to_owned(),
                bytes: u64::from_le_bytes(reader.array()?),
                blake3: reader.array()?,
            });
        }
        if !reader.0.is_empty() {
            return Err(malformed("bytes after the last file"));
        }
        Ok(Self { files })
    }

    /// BLAKE3 of the canonical bytes.
    pub fn root(&self) -> [u8; 32] {
        *blake3::hash(&self.to_bytes()).as_bytes()
    }

    /// Names each file of `dir` that differs from this manifest; empty when the directory is the same.
    ///
    /// # Errors
    /// As [`Self::scan`]; a directory without text is no error here, its files are missing.
    pub fn verify(&self, dir: &Path) -> Result<Vec<Difference>, DataError> {
        let found = match Self::scan(dir) {
            Ok(found) => found.files,
            Err(DataError::NoText(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut differences = Vec::new();
        let (mut expected, mut found) = (self.files.iter().peekable(), found.iter().peekable());
        loop {
            let order = match (expected.peek(), found.peek()) {
                (Some(a), Some(b)) => a.path.cmp(&b.path),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return Ok(differences),
            };
            let wanted = if order.is_le() { expected.next() } else { None };
            let present = if order.is_ge() { found.next() } else { None };
            match (wanted, present) {
                (Some(a), Some(b)) if a != b => {
                    differences.push(Difference::Changed(a.path.clone()));
                }
                (Some(a), None) => differences.push(Difference::Missing(a.path.clone())),
                (None, Some(b)) => differences.push(Difference::Extra(b.path.clone())),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
    }
}

/// Collects relative paths of usable files below `dir/prefix`.
fn walk(dir: &Path, prefix: &str, depth: usize, paths: &mut Vec<String>) -> Result<(), DataError> {
    let here = dir.join(prefix);
    if depth > DEPTH_MAX {
        return Err(DataError::TooDeep(here));
    }
    for entry in fs::read_dir(&here).map_err(|source| read_error(&here, source))? {
        let entry = entry.map_err(|source| read_error(&here, source))?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let kind = entry
            .file_type()
            .map_err(|source| read_error(&entry.path(), source))?;
        if !(kind.is_dir() || kind.is_file() && is_text(Path::new(&name))) {
            continue;
        }
        let Some(name) = name.to_str() else {
            return Err(DataError::Path(entry.path()));
        };
        let path = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}/{name}")
        };
        if path.len() > PATH_BYTES_MAX {
            return Err(DataError::Path(entry.path()));
        }
        if kind.is_dir() {
            walk(dir, &path, depth + 1, paths)?;
        } else if paths.len() == FILES_MAX {
            return Err(DataError::TooManyFiles(dir.to_path_buf()));
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

fn is_text(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension))
}

/// Whether a path out of a manifest names a file that [`walk`] could have found.
fn is_relative(path: &str) -> bool {
    path.len() <= PATH_BYTES_MAX
        && is_text(Path::new(path))
        && !path.contains(['\\', '\0', ':'])
        && path.split('/').count() <= DEPTH_MAX + 1
        && path
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.'))
}

fn hash_file(path: &Path) -> Result<(u64, [u8; 32]), DataError> {
    let fail = |source| read_error(path, source);
    let mut file = File::open(path).map_err(fail)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&piece[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok((hasher.count(), *hasher.finalize().as_bytes()))
}

pub(super) fn read_error(path: &Path, source: io::Error) -> DataError {
    DataError::Read {
        path: PathBuf::from(path),
        source,
    }
}

fn length(value: usize) -> [u8; 4] {
    u32::try_from(value)
        .expect("counts and paths are bounded far below u32")
        .to_le_bytes()
}

fn malformed(reason: &str) -> DataError {
    DataError::Manifest(reason.to_owned())
}

/// Bytes still to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DataError> {
        let (head, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| malformed("it ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DataError> {
        let (head, rest) = self
            .0
            .split_first_chunk()
            .ok_or_else(|| malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn length(&mut self) -> Result<usize, DataError> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| malformed("length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(dir.path().join("sub/.hidden")).expect("directories");
        for (path, text) in [
            ("b.txt", "second"),
            ("a.md", "first"),
            ("sub/c.rs", "third"),
            ("sub/.hidden/d.rs", "hidden"),
            (".e.txt", "hidden"),
            ("image.png", "not text"),
        ] {
            fs::write(dir.path().join(path), text).expect("file");
        }
        dir
    }

    #[test]
    fn scan_lists_usable_files_in_order() {
        let dir = directory();
        let manifest = DataManifest::scan(dir.path()).expect("scan");
        let paths: Vec<_> = manifest
            .files
            .iter()
            .map(|file| file.path.as_str())
            .collect();
        assert_eq!(paths, ["a.md", "b.txt", "sub/c.rs"]);
        assert_eq!(manifest.total_bytes(), 16);
        assert_eq!(
            hex::encode(manifest.root()),
            "39463b162a7ec20e1b30a3d40cfae63245b718a8cbad72a1d9c0f05ec51c199e",
            "golden value: running runs name their data by it"
        );
    }

    #[test]
    fn bytes_round_trip_and_every_other_form_is_refused() {
        let dir = directory();
        let manifest = DataManifest::scan(dir.path()).expect("scan");
        let bytes = manifest.to_bytes();
        assert_eq!(
            DataManifest::from_bytes(&bytes).expect("own bytes"),
            manifest
        );
        for cut in 0..bytes.len() {
            assert!(
                DataManifest::from_bytes(&bytes[..cut]).is_err(),
                "cut at {cut}"
            );
        }
        assert!(DataManifest::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
        let mut swapped = manifest.clone();
        swapped.files.swap(0, 1);
        assert!(DataManifest::from_bytes(&swapped.to_bytes()).is_err());
        for path in [
            "../a.txt",
            "/etc/a.txt",
            "a//b.txt",
            "a/./b.txt",
            "C:a.txt",
            "a.png",
        ] {
            let mut escaping = manifest.clone();
            escaping.files.truncate(1);
            escaping.files[0].path = path.to_owned();
            assert!(
                DataManifest::from_bytes(&escaping.to_bytes()).is_err(),
                "{path}"
            );
        }
    }

    #[test]
    fn a_huge_claimed_count_is_refused_without_allocating() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            DataManifest::from_bytes(&bytes),
            Err(DataError::Manifest(_))
        ));
    }

    #[test]
    fn verify_names_each_difference() {
        let dir = directory();
        let manifest = DataManifest::scan(dir.path()).expect("scan");
        assert_eq!(manifest.verify(dir.path()).expect("verify"), []);
        fs::write(dir.path().join("a.md"), "f1rst").expect("file");
        fs::remove_file(dir.path().join("b.txt")).expect("file");
        fs::write(dir.path().join("z.txt"), "new").expect("file");
        assert_eq!(
            manifest.verify(dir.path()).expect("verify"),
            [
                Difference::Changed("a.md".to_owned()),
                Difference::Missing("b.txt".to_owned()),
                Difference::Extra("z.txt".to_owned()),
            ]
        );
    }

    #[test]
    fn directories_without_text_say_what_to_do() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = DataManifest::scan(dir.path()).expect_err("empty");
        assert!(matches!(error, DataError::NoText(_)));
        assert!(error.to_string().contains("jsonl"), "{error}");
        fs::write(dir.path().join("empty.txt"), "").expect("file");
        assert!(matches!(
            DataManifest::scan(dir.path()),
            Err(DataError::NoText(_))
        ));
        assert!(matches!(
            DataManifest::scan(&dir.path().join("empty.txt")),
            Err(DataError::NotADirectory(_))
        ));
        assert!(matches!(
            DataManifest::scan(&dir.path().join("absent")),
            Err(DataError::Read { .. })
        ));
    }
}
