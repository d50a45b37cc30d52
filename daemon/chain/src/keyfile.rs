//! Bittensor's keyfiles: one key in one file.
//!
//! What a file may hold, told apart by its first bytes (keyfile/content.rs and keyfile/envelope.rs give every byte):
//!
//! | starts with | form | opened | written |
//! |---|---|---|---|
//! | `{` | JSON: secret key or public half | yes | yes |
//! | `0x`, hex digits | seed (64 digits) or private key (128 digits) | yes | no |
//! | words | BIP39 phrase | yes | no |
//! | `$NACL` | any of the above, encrypted: Argon2i, XSalsa20-Poly1305 | yes | yes |
//! | `$ANSIBLE_VAULT` | the same, by ansible's vault: AES-256-CTR, HMAC-SHA256 | yes | no |
//! | `gAAAAA` | the same, by Fernet: AES-128-CBC, HMAC-SHA256 | yes | no |
//!
//! Opening or sealing `$NACL` takes 512 MiB and some seconds, by design; `gAAAAA` some seconds. **Everything here blocks:
//! an async caller uses `spawn_blocking`.**
//!
//! A file with a secret that its group or others may read or write is refused, encrypted or not. Files are made
//! with mode 0600 in directories of mode 0700, appear whole or not at all, and never replace one that is there. Secrets
//! are wiped from memory after use and appear in no message.

use std::path::{Path, PathBuf};

use crate::account::{AccountId, AddressError};
use crate::key::{Key, KeyError};

mod content;
mod disk;
mod envelope;
mod password;

pub use content::Phrase;
pub(crate) use content::{public_json, secret_json};
pub use password::{Password, PasswordError};

/// A keyfile could not be opened or made: which, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("keyfile {}: {fault}", path.display())]
pub struct KeyfileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a keyfile. Nothing secret is in here.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No such file.
    #[error("there is none")]
    Missing,
    /// A directory, a device, a pipe.
    #[error("it is not a regular file")]
    NotAFile,
    /// Group or others may read or write it.
    #[error("its mode {mode:04o} lets others at the secret in it")]
    Permissions {
        /// Permission bits.
        mode: u32,
    },
    /// The system refuses.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried, in words.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Longer than any keyfile.
    #[error("it is longer than {max} bytes")]
    TooLong {
        /// Longest that is read.
        max: u64,
    },
    /// None of the forms in the table above.
    #[error("it is in no known form")]
    UnknownFormat,
    /// Starts like one of the forms, is none.
    #[error("it is damaged: {what}")]
    Damaged {
        /// The first thing that is wrong.
        what: String,
    },
    /// Encrypted, and no password came along, nor is one in the environment.
    #[error("it is encrypted and no password was given")]
    PasswordNeeded {
        /// The environment variable that was looked at.
        variable: String,
    },
    /// What the environment holds is no password.
    #[error("environment variable {variable}: {source}")]
    PasswordVariable {
        /// The environment variable.
        variable: String,
        /// What is wrong with it.
        source: PasswordError,
    },
    /// Or its bytes were changed: the two cannot be told apart.
    #[error("the password does not open it")]
    WrongPassword,
    /// The key derivation needs more memory than there is.
    #[error("{mib} MiB of memory are needed to open or make it, and could not be had")]
    Memory {
        /// MiB that are needed.
        mib: u32,
    },
    /// Not a key of Bittensor's neurons.
    #[error("it holds an ed25519 key, hotkeys and coldkeys are sr25519")]
    Ed25519,
    /// A seed, phrase or private key that is none.
    #[error("{0}")]
    Secret(#[from] KeyError),
    /// The address in it is none.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// The secret in it is another key's.
    #[error("it states the address {stated}, its secret is that of {derived}")]
    AddressMismatch {
        /// The address that the file states.
        stated: AccountId,
        /// The address of the secret in it.
        derived: AccountId,
    },
    /// Only the public half is there.
    #[error("it holds no secret, only the address {0}")]
    PublicOnly(AccountId),
    /// One is there already.
    #[error("there is one already")]
    Exists,
    /// The name of a wallet or hotkey that is no plain file name.
    #[error("{name:?} is not a name for a wallet or a hotkey")]
    Name {
        /// The name.
        name: String,
    },
}

impl From<getrandom::Error> for Fault {
    fn from(source: getrandom::Error) -> Fault {
        Fault::Io {
            doing: "draw entropy",
            source: source.into(),
        }
    }
}

impl KeyfileError {
    pub(crate) fn new(path: &Path, fault: impl Into<Fault>) -> KeyfileError {
        KeyfileError {
            path: path.to_owned(),
            fault: fault.into(),
        }
    }

    /// What a person can do about it: one sentence.
    pub fn what_to_do(&self) -> String {
        let path = self.path.display();
        match &self.fault {
            Fault::Missing => {
                "check wallet and hotkey name, or make them: gradmesh wallet new".into()
            }
            Fault::NotAFile => "name the keyfile itself".into(),
            Fault::Permissions { .. } => format!("chmod 600 {path}"),
            Fault::Io { .. } => format!(
                "make sure that this user may read and write {path} and that the disk has room"
            ),
            Fault::TooLong { .. } | Fault::UnknownFormat | Fault::Damaged { .. } => {
                "restore it from a backup, or make it anew from its phrase".into()
            }
            Fault::PasswordNeeded { variable } => {
                format!("give its password, or put it into {variable} (base64)")
            }
            Fault::PasswordVariable { variable, .. } => {
                format!(
                    "unset {variable} and give the password, or set it again with Bittensor's own tool"
                )
            }
            Fault::WrongPassword => "try again; the password is the one it was made with".into(),
            Fault::Memory { .. } => "free some memory, or open it on another machine".into(),
            Fault::Ed25519 => "use or make an sr25519 key: gradmesh wallet new".into(),
            Fault::Secret(_) | Fault::Address(_) | Fault::AddressMismatch { .. } => {
                "the file was edited or damaged: restore it from a backup".into()
            }
            Fault::PublicOnly(_) => {
                format!("name the file with the secret key, which usually lies beside {path}")
            }
            Fault::Exists => "choose another name; a key is never replaced".into(),
            Fault::Name { .. } => "use letters, digits, '-', '_' and '.', not at the start".into(),
        }
    }
}

/// The secret key in the file at `path`.
///
/// `password` opens an encrypted one; without it, the variable of [`Password::variable`] is looked at. Blocks.
pub fn read_key(path: &Path, password: Option<&Password>) -> Result<Key, KeyfileError> {
    let open = || {
        let bytes = disk::read_secret(path)?;
        let content = if envelope::is_sealed(&bytes) {
            let password = match password {
                Some(password) => password.clone(),
                None => Password::from_environment(path)?,
            };
            content::Content::parse(&envelope::open(&bytes, &password)?)?
        } else {
            content::Content::parse(&bytes)?
        };
        content.key()
    };
    open().map_err(|fault| KeyfileError::new(path, fault))
}

/// The address in the public file at `path` (`coldkeypub.txt`, `hotkeys/NAMEpub.txt`).
///
/// A file with a secret key in the clear gives its address too; an encrypted one is [`Fault::PasswordNeeded`].
pub fn read_account(path: &Path) -> Result<AccountId, KeyfileError> {
    let open = || {
        let bytes = disk::read_public(path)?;
        if envelope::is_sealed(&bytes) {
            return Err(Fault::PasswordNeeded {
                variable: Password::variable(path),
            });
        }
        content::Content::parse(&bytes)?.account()
    };
    open().map_err(|fault| KeyfileError::new(path, fault))
}

/// Whether opening the file at `path` takes a password. Reads it, whatever its permissions.
pub fn is_encrypted(path: &Path) -> Result<bool, KeyfileError> {
    match disk::read_public(path) {
        Ok(bytes) => Ok(envelope::is_sealed(&bytes)),
        Err(fault) => Err(KeyfileError::new(path, fault)),
    }
}

/// Writes `bytes` to a new file at `path`, mode 0600, encrypted (`$NACL`) if there is a password. Blocks.
pub(crate) fn write(
    path: &Path,
    bytes: &[u8],
    password: Option<&Password>,
) -> Result<(), KeyfileError> {
    let write = || match password {
        Some(password) => disk::create(path, &envelope::seal(bytes, password)?),
        None => disk::create(path, bytes),
    };
    write().map_err(|fault| KeyfileError::new(path, fault))
}
