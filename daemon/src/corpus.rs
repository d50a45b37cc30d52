//! The demo's training text: source and documentation of the crates in the local cargo registry.
//!
//! Real text that is on every machine that built gradmesh, so that nothing is downloaded. The choice is a pure function
//! of what lies in the registry and the budget. Crates come in the order of the hash of their names, so that a small
//! budget is not spent on everything that begins with "a"; each gives at most `CRATE_BYTES_MAX`.
//!
//! The crates' licences allow to copy them; the corpus stays on this machine all the same, and the file `SOURCES` beside
//! the text names every crate that is in it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// How much text the demo takes unless told otherwise: eight times what a 1 M parameter model sees in two minutes on
/// two cores, so that nothing is seen twice.
pub const BUDGET_BYTES: u64 = 8 << 20;
/// The most that one crate gives.
const CRATE_BYTES_MAX: u64 = 128 << 10;
/// Longer files are mostly generated tables.
const FILE_BYTES_MAX: u64 = 96 << 10;
/// Less text than this teaches nothing within a demo.
const TEXT_BYTES_MIN: u64 = 256 << 10;
/// Bytes after which the next part begins.
const PART_BYTES: u64 = 1 << 20;
/// Directories inside one another that are looked into; crates are shallower.
const DEPTH_MAX: usize = 12;
/// What is taken of a crate.
const EXTENSIONS: [&str; 3] = ["rs", "md", "toml"];

/// Why there is no corpus.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// No registry, or nothing in it.
    #[error(
        "{}: no crates of a cargo registry ({reason}): build gradmesh with cargo on this machine first, set CARGO_HOME, or \
         name a directory of text with --data DIR",
        .registry.display()
    )]
    NoRegistry {
        /// Where it was looked for.
        registry: PathBuf,
        /// What was found instead.
        reason: String,
    },
    /// Not enough text.
    #[error(
        "{}: only {found} bytes of text, {TEXT_BYTES_MIN} are needed: name a directory of text with --data DIR",
        .registry.display()
    )]
    TooLittle {
        /// The registry.
        registry: PathBuf,
        /// What there was.
        found: u64,
    },
    /// The corpus cannot be written.
    #[error("{}: {source}: check permissions and free space", .path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// What a corpus consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorpusFacts {
    /// Crates that gave text.
    pub crates: usize,
    /// Files of them.
    pub files: usize,
    /// Bytes of text.
    pub bytes: u64,
}

/// Where cargo keeps unpacked crates: `$CARGO_HOME/registry/src`, or the same below `~/.cargo`.
pub fn registry() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(directories::BaseDirs::new()?.home_dir().join(".cargo")))
        .unwrap_or_else(|| PathBuf::from(".cargo"));
    home.join("registry").join("src")
}

/// Writes a corpus of at most `budget_bytes` from `registry` into the new directory `out`, which appears whole or not at
/// all.
///
/// # Errors
/// [`CorpusError`].
pub fn build(registry: &Path, out: &Path, budget_bytes: u64) -> Result<CorpusFacts, CorpusError> {
    let crates = crates(registry)?;
    let partial = out.with_extension("partial");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CorpusError::Write { path, source }
    };
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(failed(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(failed(&partial))?;

    let mut facts = CorpusFacts {
        crates: 0,
        files: 0,
        bytes: 0,
    };
    let mut sources =
        String::from("Crates of the local cargo registry whose text is in this corpus:\n");
    let (mut part, mut part_bytes) = (Vec::new(), Vec::new());
    for (name, dir) in crates {
        let left = budget_bytes - facts.bytes;
        let (text, files) = crate_text(&dir, left.min(CRATE_BYTES_MAX));
        if files == 0 {
            continue;
        }
        facts.crates += 1;
        facts.files += files;
        facts.bytes += text.len() as u64;
        sources.push_str(&format!("{name}\n"));
        part.extend_from_slice(&text);
        if part.len() as u64 >= PART_BYTES {
            part_bytes.push(std::mem::take(&mut part));
        }
        // What is left then is too little for most files; looking for some that fit costs more than it gives.
        if budget_bytes - facts.bytes < FILE_BYTES_MAX / 16 {
            break;
        }
    }
    if facts.bytes < TEXT_BYTES_MIN.min(budget_bytes / 2) {
        // The partial directory is empty but for itself; failing to delete it harms nobody.
        let _ = fs::remove_dir_all(&partial);
        return Err(CorpusError::TooLittle {
            registry: registry.to_owned(),
            found: facts.bytes,
        });
    }
    if !part.is_empty() {
        part_bytes.push(part);
    }
    for (place, part) in part_bytes.iter().enumerate() {
        let path = partial.join(format!("part-{place:03}.txt"));
        File::create(&path)
            .and_then(|mut file| file.write_all(part))
            .map_err(failed(&path))?;
    }
    let path = partial.join("SOURCES");
    fs::write(&path, sources).map_err(failed(&path))?;
    fs::rename(&partial, out).map_err(failed(out))?;
    Ok(facts)
}

/// Name and directory of every crate in the registry, in the order of the hash of the name.
fn crates(registry: &Path) -> Result<Vec<(String, PathBuf)>, CorpusError> {
    let missing = |reason: String| CorpusError::NoRegistry {
        registry: registry.to_owned(),
        reason,
    };
    let indexes = sorted_entries(registry).map_err(|error| missing(error.to_string()))?;
    let mut found = Vec::new();
    for index in indexes.into_iter().filter(|path| path.is_dir()) {
        for dir in sorted_entries(&index).unwrap_or_default() {
            let name = dir.file_name().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|_| dir.is_dir()) {
                found.push((name.to_owned(), dir.clone()));
            }
        }
    }
    if found.is_empty() {
        return Err(missing("it is empty".to_owned()));
    }
    found
        .sort_by_cached_key(|(name, dir)| (*blake3::hash(name.as_bytes()).as_bytes(), dir.clone()));
    Ok(found)
}

/// The text of a crate, file after file in the order of their paths, and how many files it is of.
fn crate_text(dir: &Path, budget_bytes: u64) -> (Vec<u8>, usize) {
    let mut paths = Vec::new();
    walk(dir, DEPTH_MAX, &mut paths);
    let (mut text, mut files) = (Vec::new(), 0);
    for path in paths {
        let left = budget_bytes - text.len() as u64;
        // An unreadable file is one that the corpus goes without.
        if let Some(content) = read_whole(&path, left.min(FILE_BYTES_MAX)) {
            text.extend_from_slice(content.as_bytes());
            files += 1;
        }
    }
    (text, files)
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for path in sorted_entries(dir).unwrap_or_default() {
        let hidden = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_none_or(|name| name.starts_with('.'));
        let Ok(kind) = path.symlink_metadata() else {
            continue;
        };
        if hidden {
            continue;
        }
        if kind.is_dir() && depth > 0 {
            walk(&path, depth - 1, found);
        } else if kind.is_file()
            && path
                .extension()
                .and_then(|extension| extension.to_str())
                .is_some_and(|extension| EXTENSIONS.contains(&extension))
        {
            found.push(path);
        }
    }
}

/// The file's text ending in a newline; `None` if it is empty, longer than `bytes_max` or not UTF-8.
fn read_whole(path: &Path, bytes_max: u64) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .ok()?;
    let mut text = String::from_utf8(bytes).ok()?;
    if text.is_empty() {
        return None;
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    (text.len() as u64 <= bytes_max).then_some(text)
}

fn sorted_entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A registry of `crates` crates with one readable file of `bytes` bytes each, and things to leave out.
    fn registry_of(dir: &Path, crates: usize, bytes: usize) -> PathBuf {
        let registry = dir.join("registry/src");
        for number in 0..crates {
            let root = registry.join(format!("index-1/crate{number}-1.0.0"));
            fs::create_dir_all(root.join("src")).unwrap();
            let line = format!("// crate {number}\n");
            fs::write(root.join("src/lib.rs"), line.repeat(bytes / line.len())).unwrap();
            fs::write(root.join("src/table.rs"), [0xff, 0xfe]).unwrap();
            fs::write(root.join("image.png"), "no text").unwrap();
            fs::write(root.join(".hidden.md"), "hidden").unwrap();
        }
        registry
    }

    fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let paths = sorted_entries(dir).unwrap();
        paths
            .into_iter()
            .map(|path| {
                let bytes = fs::read(&path).unwrap();
                (path.strip_prefix(dir).unwrap().to_owned(), bytes)
            })
            .collect()
    }

    #[test]
    fn the_same_registry_gives_the_same_corpus_within_the_budget() {
        let temp = tempfile::tempdir().unwrap();
        let registry = registry_of(temp.path(), 60, 60_000);
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        let facts = build(&registry, &a, 2 << 20).unwrap();
        assert_eq!(build(&registry, &b, 2 << 20).unwrap(), facts);
        assert_eq!(content(&a), content(&b));
        assert!(facts.bytes <= 2 << 20 && facts.bytes > 1 << 20, "{facts:?}");
        assert_eq!(facts.files, facts.crates);
        let text: u64 = content(&a)
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "txt"))
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        assert_eq!(text, facts.bytes);
        let sources = fs::read_to_string(a.join("SOURCES")).unwrap();
        assert_eq!(sources.lines().count(), facts.crates + 1);
        assert!(!temp.path().join("a.partial").exists());
    }

    #[test]
    fn without_a_registry_the_error_says_what_to_do() {
        let temp = tempfile::tempdir().unwrap();
        let nowhere = temp.path().join("nowhere");
        let error = build(&nowhere, &temp.path().join("out"), 1 << 20).unwrap_err();
        assert!(matches!(error, CorpusError::NoRegistry { .. }));
        assert!(error.to_string().contains("--data DIR"), "{error}");
    }

    #[test]
    fn too_little_text_is_refused_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let registry = registry_of(temp.path(), 2, 1000);
        let out = temp.path().join("out");
        let error = build(&registry, &out, 8 << 20).unwrap_err();
        assert!(matches!(error, CorpusError::TooLittle { found, .. } if found < 2000));
        assert!(!out.exists() && !temp.path().join("out.partial").exists());
    }
}
