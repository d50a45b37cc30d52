//! Wallets: directories of keyfiles, Bittensor's own.
//!
//! ```text
//! ROOT/NAME/coldkey                 secret, encrypted unless its owner says otherwise: registers, stakes, owns
//! ROOT/NAME/coldkeypub.txt          its public half
//! ROOT/NAME/hotkeys/HOTKEY          secret, usually in the clear: signs what a running peer does
//! ROOT/NAME/hotkeys/HOTKEYpub.txt   its public half
//! ```
//! ROOT is `~/.bittensor/wallets` unless told otherwise. A daemon needs the hotkey only. Everything here blocks
//! ([`crate::keyfile`]).

use std::path::{Path, PathBuf};

use crate::account::AccountId;
use crate::key::Key;
use crate::keyfile::{self, Fault, KeyfileError, Password, Phrase};

const PUBLIC_SUFFIX: &str = "pub.txt";

/// One wallet, which need not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalletDir {
    path: PathBuf,
}

/// What to make.
#[derive(Debug)]
pub struct NewWallet {
    /// The directory of wallets, usually [`WalletDir::default_root`].
    pub root: PathBuf,
    /// Name of the wallet.
    pub name: String,
    /// Name of its first hotkey.
    pub hotkey: String,
    /// What the coldkey is encrypted with.
    pub coldkey: Protection,
}

/// How a key lies on disk.
#[derive(Debug)]
pub enum Protection {
    /// Encrypted under this password.
    Password(Password),
    /// For anyone to read who can read the file.
    None,
}

/// A key that was made: the only time that its phrase is seen.
#[derive(Debug)]
pub struct NewKey {
    /// Its address.
    pub account: AccountId,
    /// What it can be made from again. Nothing else can, once the file is lost.
    pub phrase: Phrase,
}

/// A wallet that was made.
#[derive(Debug)]
pub struct Created {
    /// The wallet.
    pub wallet: WalletDir,
    /// Its coldkey.
    pub coldkey: NewKey,
    /// Its first hotkey.
    pub hotkey: NewKey,
}

impl WalletDir {
    /// `~/.bittensor/wallets`, where Bittensor's tools keep wallets; none without a home directory.
    pub fn default_root() -> Option<PathBuf> {
        std::env::home_dir()
            .filter(|home| !home.as_os_str().is_empty())
            .map(|home| home.join(".bittensor/wallets"))
    }

    /// The wallet `name` in `root`.
    ///
    /// # Errors
    /// [`Fault::Name`].
    pub fn new(root: &Path, name: &str) -> Result<WalletDir, KeyfileError> {
        require_name(root, name)?;
        Ok(WalletDir {
            path: root.join(name),
        })
    }

    /// The wallet's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the coldkey lies.
    pub fn coldkey_path(&self) -> PathBuf {
        self.path.join("coldkey")
    }

    /// Where the coldkey's public half lies.
    pub fn coldkeypub_path(&self) -> PathBuf {
        self.path.join("coldkeypub.txt")
    }

    /// Where the hotkey `name` lies.
    ///
    /// # Errors
    /// [`Fault::Name`].
    pub fn hotkey_path(&self, name: &str) -> Result<PathBuf, KeyfileError> {
        let hotkeys = self.path.join("hotkeys");
        require_name(&hotkeys, name)?;
        Ok(hotkeys.join(name))
    }

    /// The hotkey `name`. A password is needed for an encrypted one only.
    pub fn hotkey(&self, name: &str, password: Option<&Password>) -> Result<Key, KeyfileError> {
        keyfile::read_key(&self.hotkey_path(name)?, password)
    }

    /// The address of the hotkey `name`: from its public half where there is one, else from the key if that is in the clear.
    pub fn hotkey_account(&self, name: &str) -> Result<AccountId, KeyfileError> {
        let path = self.hotkey_path(name)?;
        let public = self.hotkey_path(&format!("{name}{PUBLIC_SUFFIX}"))?;
        keyfile::read_account(if public.exists() { &public } else { &path })
    }

    /// The coldkey. Its password may come from the environment ([`Password::variable`]).
    pub fn coldkey(&self, password: Option<&Password>) -> Result<Key, KeyfileError> {
        keyfile::read_key(&self.coldkey_path(), password)
    }

    /// The coldkey's address, from its public half.
    pub fn coldkey_account(&self) -> Result<AccountId, KeyfileError> {
        keyfile::read_account(&self.coldkeypub_path())
    }

    /// Names of all hotkeys, sorted. Empty where there is no such wallet.
    pub fn hotkeys(&self) -> Result<Vec<String>, KeyfileError> {
        let hotkeys = self.path.join("hotkeys");
        let failed = |source| {
            KeyfileError::new(
                &hotkeys,
                Fault::Io {
                    doing: "list",
                    source,
                },
            )
        };
        let entries = match std::fs::read_dir(&hotkeys) {
            Ok(entries) => entries,
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(fault) => return Err(failed(fault)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            match name.to_str() {
                Some(name) if is_name(name) && !name.ends_with(PUBLIC_SUFFIX) => {
                    names.push(name.to_owned())
                }
                Some(_) | None => {}
            }
        }
        names.sort();
        Ok(names)
    }

    /// Makes a wallet with a fresh coldkey and a fresh hotkey, each from 12 words of the system's entropy.
    ///
    /// The hotkey lies in the clear (mode 0600): the daemon must open it unattended. Nothing is left behind where any of
    /// the four files cannot be made.
    ///
    /// # Errors
    /// [`Fault::Exists`] if any of the four is there already.
    pub fn create(new: NewWallet) -> Result<Created, KeyfileError> {
        let wallet = WalletDir::new(&new.root, &new.name)?;
        let hotkey_path = wallet.hotkey_path(&new.hotkey)?;
        let coldkey_path = wallet.coldkey_path();
        let (coldkey, hotkey) = (fresh_key(&coldkey_path)?, fresh_key(&hotkey_path)?);
        let mut files = FreshFiles::default();
        files.add_key(
            &coldkey_path,
            &wallet.coldkeypub_path(),
            &coldkey,
            &new.coldkey,
        )?;
        files.add_key(
            &hotkey_path,
            &public_path(&wallet, &new.hotkey)?,
            &hotkey,
            &Protection::None,
        )?;
        files.keep();
        Ok(Created {
            wallet,
            coldkey,
            hotkey,
        })
    }

    /// Makes another hotkey in this wallet, in the clear.
    ///
    /// # Errors
    /// [`Fault::Exists`].
    pub fn create_hotkey(&self, name: &str) -> Result<NewKey, KeyfileError> {
        let path = self.hotkey_path(name)?;
        let hotkey = fresh_key(&path)?;
        let mut files = FreshFiles::default();
        files.add_key(&path, &public_path(self, name)?, &hotkey, &Protection::None)?;
        files.keep();
        Ok(hotkey)
    }
}

fn public_path(wallet: &WalletDir, hotkey: &str) -> Result<PathBuf, KeyfileError> {
    wallet.hotkey_path(&format!("{hotkey}{PUBLIC_SUFFIX}"))
}

fn fresh_key(path: &Path) -> Result<NewKey, KeyfileError> {
    let phrase = Phrase::generate().map_err(|fault| KeyfileError::new(path, fault))?;
    let key = Key::from_phrase(phrase.words()).map_err(|fault| KeyfileError::new(path, fault))?;
    Ok(NewKey {
        account: key.account(),
        phrase,
    })
}

/// Files that were just made, removed again unless all of them could be.
#[derive(Default)]
struct FreshFiles {
    made: Vec<PathBuf>,
}

impl FreshFiles {
    fn add_key(
        &mut self,
        path: &Path,
        public_path: &Path,
        key: &NewKey,
        protection: &Protection,
    ) -> Result<(), KeyfileError> {
        // Before seconds are spent on encryption.
        for path in [path, public_path] {
            if path.symlink_metadata().is_ok() {
                return Err(KeyfileError::new(path, Fault::Exists));
            }
        }
        let secret =
            keyfile::secret_json(&key.phrase).map_err(|fault| KeyfileError::new(path, fault))?;
        let password = match protection {
            Protection::Password(password) => Some(password),
            Protection::None => None,
        };
        self.add(path, &secret, password)?;
        self.add(public_path, &keyfile::public_json(key.account), None)
    }

    fn add(
        &mut self,
        path: &Path,
        bytes: &[u8],
        password: Option<&Password>,
    ) -> Result<(), KeyfileError> {
        keyfile::write(path, bytes, password)?;
        self.made.push(path.to_owned());
        Ok(())
    }

    fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for FreshFiles {
    fn drop(&mut self) {
        for path in &self.made {
            if let Err(fault) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %fault, "an incomplete wallet is left behind");
            }
        }
    }
}

/// A plain file name that is not hidden: no way out of the wallet's directory.
fn is_name(name: &str) -> bool {
    const NAME_BYTES_MAX: usize = 128;
    let plain = |c: char| !c.is_control() && !matches!(c, '/' | '\\');
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with('.')
        && name.chars().all(plain)
}

fn require_name(parent: &Path, name: &str) -> Result<(), KeyfileError> {
    if is_name(name) {
        Ok(())
    } else {
        Err(KeyfileError::new(
            parent,
            Fault::Name {
                name: name.to_owned(),
            },
        ))
    }
}
