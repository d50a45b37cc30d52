//! The state directory of one run on one machine: what lies where, and who may use it.
//!
//! | name | what |
//! |---|---|
//! | `node.key` | this peer's secret key |
//! | `lock` | held by the daemon that uses the directory; its process id, for people |
//! | `store.redb` | decisions, journal, manifest ([`crate::store`]) |
//! | `status.json` | where the running daemon's status server listens |
//! | `status.token` | what a request that changes something must carry |
//! | `checkpoints/round-NNNNNN/` | one checkpoint per epoch |
//!
//! Everything else in it belongs to the driver.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Length of the status token in bytes before hex: as hard to guess as a key.
const TOKEN_BYTES: usize = 32;
/// The longest of our own small files that is read.
const SMALL_FILE_BYTES_MAX: u64 = 4096;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another process holds the lock.
    #[error(
        "state directory {} is in use by another daemon (process {holder}): stop it with `gradmesh leave --dir {}` or a \
         signal, or choose another directory with --dir",
        .dir.display(), .dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// What the lock file says about its holder.
        holder: String,
    },
    /// The operating system refused.
    #[error("{}: {source}: check permissions and free space", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A small file of ours is not what was written.
    #[error("{}: damaged ({reason}): delete it; a running daemon writes it anew at its next start", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The platform names no home directory.
    #[error("this user has no home directory: say where the state is to lie with --dir")]
    NoHome,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateDirError + '_ {
    |source| StateDirError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Where a daemon's status server listens; content of `status.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusAddress {
    /// For example `http://127.0.0.1:40213`.
    pub url: String,
    /// Process id of the daemon.
    pub pid: u32,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    dir: PathBuf,
}

/// The right to use a state directory; given back when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl StateDir {
    /// The layout below `dir`, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> StateDir {
        StateDir { dir: dir.into() }
    }

    /// The directory of this user's runs: one state directory each.
    ///
    /// # Errors
    /// [`StateDirError::NoHome`].
    pub fn runs_root() -> Result<PathBuf, StateDirError> {
        let dirs =
            directories::ProjectDirs::from("", "", "gradmesh").ok_or(StateDirError::NoHome)?;
        Ok(dirs.data_dir().join("runs"))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// `node.key`.
    pub fn node_key(&self) -> PathBuf {
        self.dir.join("node.key")
    }

    /// `store.redb`.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store.redb")
    }

    /// `checkpoints`.
    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// The checkpoint after `round`; six digits, so that names sort as rounds do.
    pub fn checkpoint(&self, round: u64) -> PathBuf {
        self.checkpoints().join(format!("round-{round:06}"))
    }

    /// The checkpoints that are there, by round.
    ///
    /// # Errors
    /// [`StateDirError::Io`]; a directory without checkpoints has none.
    pub fn list_checkpoints(&self) -> Result<Vec<(u64, PathBuf)>, StateDirError> {
        let root = self.checkpoints();
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(&root)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error(&root))?;
            let name = entry.file_name();
            let round = name.to_str().and_then(|name| name.strip_prefix("round-"));
            if let Some(round) = round.and_then(|digits| digits.parse().ok()) {
                found.push((round, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Makes the directory, readable by its owner only, if it is not there.
    ///
    /// # Errors
    /// [`StateDirError::Io`].
    pub fn create(&self) -> Result<(), StateDirError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(io_error(&self.dir))
    }

    /// Takes the lock, making the directory first if need be. The lock ends with the process, however it ends.
    ///
    /// # Errors
    /// [`StateDirError::Locked`], [`StateDirError::Io`].
    pub fn lock(&self) -> Result<Lock, StateDirError> {
        self.create()?;
        let path = self.dir.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = file.take(32).read_to_string(&mut holder);
                let known = read.is_ok() && !holder.trim().is_empty();
                return Err(StateDirError::Locked {
                    dir: self.dir.clone(),
                    holder: if known {
                        holder.trim().to_owned()
                    } else {
                        "unknown".to_owned()
                    },
                });
            }
            Err(fs::TryLockError::Error(error)) => return Err(io_error(&path)(error)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(io_error(&path))?;
        Ok(Lock { _file: file })
    }

    /// Says where the status server of this process listens.
    ///
    /// # Errors
    /// [`StateDirError::Io`].
    pub fn write_status_address(&self, url: &str) -> Result<(), StateDirError> {
        let address = StatusAddress {
            url: url.to_owned(),
            pid: std::process::id(),
        };
        let json = serde_json::to_string(&address).expect("two plain fields are JSON");
        // A reader sees the old file or the new one, never half of it.
        let (path, partial) = (self.status_address_path(), self.dir.join(".status.json"));
        fs::write(&partial, json)
            .and_then(|()| fs::rename(&partial, &path))
            .map_err(io_error(&path))
    }

    /// Where the status server listens or last listened; `None` if no daemon ever ran here.
    ///
    /// # Errors
    /// [`StateDirError::Io`], [`StateDirError::Damaged`].
    pub fn status_address(&self) -> Result<Option<StatusAddress>, StateDirError> {
        let path = self.status_address_path();
        let Some(text) = read_small(&path)? else {
            return Ok(None);
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| StateDirError::Damaged {
                path,
                reason: error.to_string(),
            })
    }

    /// Draws a new status token and writes it for the owner's eyes.
    ///
    /// # Errors
    /// [`StateDirError::Io`].
    pub fn renew_token(&self) -> Result<String, StateDirError> {
        let path = self.token_path();
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes)
            .map_err(|error| io_error(&path)(io::Error::other(error.to_string())))?;
        let token = hex::encode(bytes);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(io_error(&path)(error));
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error(&path))?;
        file.write_all(token.as_bytes()).map_err(io_error(&path))?;
        Ok(token)
    }

    /// The token of the running daemon; `None` if none ever ran here.
    ///
    /// # Errors
    /// [`StateDirError::Io`].
    pub fn token(&self) -> Result<Option<String>, StateDirError> {
        read_small(&self.token_path())
    }

    fn status_address_path(&self) -> PathBuf {
        self.dir.join("status.json")
    }

    fn token_path(&self) -> PathBuf {
        self.dir.join("status.token")
    }
}

fn read_small(path: &Path) -> Result<Option<String>, StateDirError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path)(error)),
    };
    let mut text = String::new();
    file.take(SMALL_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(io_error(path))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_second_user_of_a_directory_learns_who_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::new(temp.path().join("run"));
        let lock = dir.lock().unwrap();
        let error = dir.lock().unwrap_err();
        let pid = std::process::id().to_string();
        assert!(matches!(&error, StateDirError::Locked { holder, .. } if *holder == pid));
        drop(lock);
        dir.lock().unwrap();
    }

    #[test]
    fn the_token_is_new_each_time_and_private() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::new(temp.path());
        assert_eq!(dir.token().unwrap(), None);
        let (first, second) = (dir.renew_token().unwrap(), dir.renew_token().unwrap());
        assert_ne!(first, second);
        assert_eq!(dir.token().unwrap(), Some(second));
        let mode = fs::metadata(dir.token_path()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_status_address_is_an_error_that_names_the_file() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::new(temp.path());
        assert_eq!(dir.status_address().unwrap(), None);
        dir.write_status_address("http://127.0.0.1:1").unwrap();
        let address = dir.status_address().unwrap().unwrap();
        assert_eq!(address.pid, std::process::id());
        fs::write(dir.status_address_path(), "{").unwrap();
        let error = dir.status_address().unwrap_err();
        assert!(error.to_string().contains("status.json: damaged"));
    }

    #[test]
    fn checkpoints_are_listed_by_round_and_other_files_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::new(temp.path());
        assert_eq!(dir.list_checkpoints().unwrap(), []);
        for name in ["round-000012", "round-000003", ".round-000020", "notes"] {
            fs::create_dir_all(dir.checkpoints().join(name)).unwrap();
        }
        let expected = [3, 12].map(|round| (round, dir.checkpoint(round)));
        assert_eq!(dir.list_checkpoints().unwrap(), expected);
    }
}
