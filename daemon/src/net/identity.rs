//! The node key: an ed25519 seed in a file that only its owner may read.
//!
//! One seed names a peer everywhere: the libp2p control plane, the TLS certificates of the bulk plane and the
//! signatures of protocol messages. The seed is never logged; [`NodeKey`]'s `Debug` prints the [`PeerId`] alone.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use libp2p::PeerId;
use libp2p::identity::{Keypair, ed25519};

/// Length of an ed25519 seed in bytes (RFC 8032, section 5.1.5).
pub const SEED_BYTES: usize = 32;

/// A key file holds 64 hex digits and perhaps a newline, or 32 raw bytes; anything longer than this is refused
/// without being read to its end.
const KEY_FILE_BYTES_MAX: u64 = 128;

/// Why a node key could not be loaded or created.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no key file; [`NodeKey::load_or_create`] makes one.
    #[error("node key file {path} does not exist", path = .path.display())]
    Missing { path: PathBuf },
    /// A key file is never overwritten: it is the identity that stake and reputation belong to.
    #[error("node key file {path} exists already and is not overwritten", path = .path.display())]
    Exists { path: PathBuf },
    /// Others than the owner may read or write the file.
    #[error("node key file {path} has mode {mode:04o}; run `chmod 600 {path}`", path = .path.display())]
    Permissions { path: PathBuf, mode: u32 },
    /// The file is neither 32 raw bytes nor 64 hex digits.
    #[error(
        "node key file {path} holds {length} bytes; a key is 64 hex digits (a final newline is fine) or 32 raw bytes",
        path = .path.display()
    )]
    Malformed { path: PathBuf, length: usize },
    /// The operating system refused.
    #[error("node key file {path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A peer's long-lived ed25519 key.
#[derive(Clone)]
pub struct NodeKey {
    signing: SigningKey,
}

impl NodeKey {
    /// A new key from the operating system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        let secret = ed25519::Keypair::generate().secret();
        let mut seed = [0u8; SEED_BYTES];
        seed.copy_from_slice(secret.as_ref());
        Self::from_seed(seed)
    }

    /// The key with this seed (RFC 8032 secret key).
    #[must_use]
    pub fn from_seed(seed: [u8; SEED_BYTES]) -> Self {
        Self {
            signing: SigningKey::from_bytes(&seed),
        }
    }

    /// Reads the key at `path`, or creates one there with mode 0600 when the file does not exist.
    ///
    /// # Errors
    /// As [`NodeKey::load`] and [`NodeKey::create`].
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match Self::load(path) {
            Err(IdentityError::Missing { .. }) => Self::create(path),
            loaded => loaded,
        }
    }

    /// Reads the key at `path`: 64 hex digits, or 32 raw bytes.
    ///
    /// # Errors
    /// [`IdentityError::Missing`], [`IdentityError::Permissions`] when group or others have any right on the file
    /// (checked on the open file, so that it cannot be exchanged in between), [`IdentityError::Malformed`],
    /// [`IdentityError::Io`].
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let io_error = |source| IdentityError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => IdentityError::Missing {
                path: path.to_owned(),
            },
            _ => io_error(source),
        })?;
        let mode = file.metadata().map_err(io_error)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Permissions {
                path: path.to_owned(),
                mode,
            });
        }
        let mut content = Vec::new();
        file.take(KEY_FILE_BYTES_MAX)
            .read_to_end(&mut content)
            .map_err(io_error)?;
        let seed = parse_seed(&content).ok_or_else(|| IdentityError::Malformed {
            path: path.to_owned(),
            length: content.len(),
        })?;
        Ok(Self::from_seed(seed))
    }

    /// Creates a key and its file, mode 0600, synced to disk before this returns.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] when there is a file at `path`, [`IdentityError::Io`].
    pub fn create(path: &Path) -> Result<Self, IdentityError> {
        let io_error = |source| IdentityError::Io {
            path: path.to_owned(),
            source,
        };
        let key = Self::generate();
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => IdentityError::Exists {
                    path: path.to_owned(),
                },
                _ => io_error(source),
            })?;
        let line = format!("{}\n", hex::encode(key.signing.to_bytes()));
        file.write_all(line.as_bytes()).map_err(io_error)?;
        file.sync_all().map_err(io_error)?;
        Ok(key)
    }

    /// The name of this peer on both planes.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.to_libp2p_keypair().public().to_peer_id()
    }

    /// The key as libp2p wants it.
    #[must_use]
    pub fn to_libp2p_keypair(&self) -> Keypair {
        Keypair::ed25519_from_bytes(self.signing.to_bytes())
            .expect("every 32-byte string is an ed25519 seed")
    }

    /// The key for protocol signatures.
    #[must_use]
    pub fn signing_key(&self) -> &SigningKey {
        &self.signing
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeKey").field(&self.peer_id()).finish()
    }
}

fn parse_seed(content: &[u8]) -> Option<[u8; SEED_BYTES]> {
    if let Ok(raw) = <[u8; SEED_BYTES]>::try_from(content) {
        return Some(raw);
    }
    let mut seed = [0u8; SEED_BYTES];
    hex::decode_to_slice(content.trim_ascii_end(), &mut seed).ok()?;
    Some(seed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write_key(path: &Path, content: &[u8], mode: u32) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn libp2p_and_dalek_derive_the_same_public_key_and_accept_each_others_signatures() {
        let key = NodeKey::from_seed([7; SEED_BYTES]);
        let libp2p_public = key
            .to_libp2p_keypair()
            .public()
            .try_into_ed25519()
            .unwrap()
            .to_bytes();
        assert_eq!(libp2p_public, key.signing_key().verifying_key().to_bytes());

        use ed25519_dalek::Signer;
        let signature = key.signing_key().sign(b"round 1").to_bytes();
        let public = key.to_libp2p_keypair().public();
        assert!(public.verify(b"round 1", &signature));
        assert!(!public.verify(b"round 2", &signature));
    }

    #[test]
    fn created_key_is_private_and_loads_as_the_same_peer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let created = NodeKey::load_or_create(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(
            NodeKey::load_or_create(&path).unwrap().peer_id(),
            created.peer_id()
        );
    }

    #[test]
    fn raw_and_hex_files_give_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, text) = (dir.path().join("raw"), dir.path().join("text"));
        write_key(&raw, &[9; 32], 0o600);
        write_key(
            &text,
            format!("{}\n", hex::encode([9; 32])).as_bytes(),
            0o400,
        );
        assert_eq!(
            NodeKey::load(&raw).unwrap().peer_id(),
            NodeKey::load(&text).unwrap().peer_id()
        );
    }

    #[test]
    fn key_readable_by_others_is_refused_with_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        write_key(&path, &[1; 32], 0o640);
        let error = NodeKey::load(&path).unwrap_err();
        assert!(matches!(
            error,
            IdentityError::Permissions { mode: 0o640, .. }
        ));
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn key_of_wrong_length_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        for content in [vec![], vec![b'a'; 31], vec![b'a'; 63], vec![b'z'; 64]] {
            write_key(&path, &content, 0o600);
            assert!(matches!(
                NodeKey::load_or_create(&path).unwrap_err(),
                IdentityError::Malformed { length, .. } if length == content.len()
            ));
            assert_eq!(fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn existing_file_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        write_key(&path, b"precious", 0o600);
        assert!(matches!(
            NodeKey::create(&path).unwrap_err(),
            IdentityError::Exists { .. }
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
