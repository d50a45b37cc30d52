//! Evidence on disk: `evidence/HASH.cbor`, the same as `HASH.json` for people, what a replay needs as `content/HASH`, and of the
//! run `run.manifest` (signed, as peers send it) and `run.data` (where its text lies on this machine).
//!
//! Everything is named by its hash, so that a copy is as good as the original, and a damaged file is noticed. Evidence is kept
//! for good (at most 64 KiB each); content is 12 bytes and more for each parameter, and the oldest of it goes when there are
//! more than `CONTENT_BYTES_MAX`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::SignedManifest;

/// Bytes of content kept beside the evidence. A guess: the segments of a model of 10^9 parameters, once.
const CONTENT_BYTES_MAX: u64 = 16 << 30;

/// The signed manifest of the run.
const MANIFEST: &str = "run.manifest";
/// The path of its text.
const DATA_DIR: &str = "run.data";

/// The folder of a validator's evidence.
#[derive(Clone, Debug)]
pub struct EvidenceDir {
    dir: PathBuf,
}

impl EvidenceDir {
    /// The folder in the state directory `state_dir`.
    pub fn of(state_dir: &Path) -> EvidenceDir {
        EvidenceDir {
            dir: state_dir.join("evidence"),
        }
    }

    /// The folder that `file` lies in.
    pub fn around(file: &Path) -> EvidenceDir {
        let dir = file.parent().unwrap_or(Path::new("")).to_owned();
        EvidenceDir { dir }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    fn content(&self) -> PathBuf {
        self.dir.join("content")
    }

    /// Writes what all pieces of evidence have in common.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn write_run(&self, manifest: &SignedManifest, data_dir: &Path) -> anyhow::Result<()> {
        write_whole(&self.dir.join(MANIFEST), &manifest.encode())?;
        let data_dir = data_dir.as_os_str().as_encoded_bytes();
        write_whole(&self.dir.join(DATA_DIR), data_dir)
    }

    /// The manifest of the run.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn manifest(&self) -> anyhow::Result<SignedManifest> {
        let path = self.dir.join(MANIFEST);
        let bytes = fs::read(&path).with_context(|| {
            format!(
                "{}: evidence is replayed beside the manifest of its run",
                path.display()
            )
        })?;
        SignedManifest::decode(&bytes, None).with_context(|| path.display().to_string())
    }

    /// Where the run's text lay on the machine that wrote the evidence.
    pub fn data_dir(&self) -> Option<PathBuf> {
        let path = fs::read_to_string(self.dir.join(DATA_DIR)).ok()?;
        Some(PathBuf::from(path))
    }

    /// Writes a piece of evidence, with its view for people; gives back where it lies.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn write(&self, hash: &Hash, cbor: &[u8], json: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(format!("{hash}.cbor"));
        write_whole(&path.with_extension("json"), json.as_bytes())?;
        write_whole(&path, cbor)?;
        Ok(path)
    }

    /// Writes what a replay needs; what is there already is left as it is.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn write_content(&self, contents: &[(Hash, bytes::Bytes)]) -> anyhow::Result<()> {
        for (hash, bytes) in contents {
            let path = self.content().join(hash.to_string());
            if !path.exists() {
                write_whole(&path, bytes)?;
            }
        }
        self.make_room()
    }

    /// The content that `hash` names, if it is here and whole.
    pub fn read_content(&self, hash: &Hash) -> Option<bytes::Bytes> {
        let bytes = fs::read(self.content().join(hash.to_string())).ok()?;
        (Hash::of_content(&bytes) == *hash).then(|| bytes.into())
    }

    /// The pieces of evidence here, oldest first.
    ///
    /// # Errors
    /// What the operating system said; a folder that is not there has none.
    pub fn list(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for (path, metadata) in entries(&self.dir)? {
            if path
                .extension()
                .is_some_and(|extension| extension == "cbor")
            {
                files.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
        }
        files.sort();
        Ok(files.into_iter().map(|(_, path)| path).collect())
    }

    fn make_room(&self) -> anyhow::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for (path, metadata) in entries(&self.content())? {
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            files.push((modified, metadata.len(), path));
        }
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, length, path) in files {
            if bytes <= CONTENT_BYTES_MAX {
                break;
            }
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
            bytes -= length;
        }
        Ok(())
    }
}

fn entries(dir: &Path) -> anyhow::Result<Vec<(PathBuf, fs::Metadata)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| dir.display().to_string()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| dir.display().to_string())?;
        let path = entry.path();
        let metadata = entry
            .metadata()
            .with_context(|| path.display().to_string())?;
        found.push((path, metadata));
    }
    Ok(found)
}

/// Writes beside `path` and renames; makes the folder if need be.
fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("{}: check permissions and free space", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(failed)?;
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(failed)?;
    fs::rename(&partial, path).with_context(failed)
}
