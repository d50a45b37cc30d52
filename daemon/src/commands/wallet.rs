//! `gradmesh wallet new | show`, and the keys that other commands sign with.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use console::Term;
use gradmesh_chain::Key;
use gradmesh_chain::keyfile::{self, Fault, KeyfileError, Password};
use gradmesh_chain::wallet::{NewKey, NewWallet, Protection, WalletDir};
use serde::Serialize;
use zeroize::Zeroizing;

use super::print_json;
use crate::cli::{WalletArgs, WalletCommand};
use crate::machine::MachineFile;
use crate::terminal::say;

/// The wallet and the hotkey that are meant when none is named, as Bittensor's own tools have it.
const DEFAULT: &str = "default";

pub(super) async fn run(settings: &MachineFile, command: WalletCommand) -> anyhow::Result<()> {
    // Encrypted keyfiles take seconds and half a gigabyte to open; nothing else goes on in these commands.
    tokio::task::block_in_place(|| match command {
        WalletCommand::New {
            wallet,
            hotkey_only,
            no_password,
            json,
        } => new(
            &settings.wallet(&wallet),
            hotkey_only,
            no_password,
            json.json,
        ),
        WalletCommand::Show { wallet, json } => show(&settings.wallet(&wallet), json.json),
    })
}

/// The hotkey of `args`, which signs what a daemon does.
pub(super) fn hotkey(args: &WalletArgs) -> anyhow::Result<Key> {
    let wallet = wallet(args)?;
    let name = hotkey_name(args);
    let path = told(wallet.hotkey_path(name))?;
    tokio::task::block_in_place(|| open(|password| wallet.hotkey(name, password), &path))
}

/// The coldkey of `args`, which pays. Its password comes from the environment or the terminal.
pub(super) fn coldkey(args: &WalletArgs) -> anyhow::Result<Key> {
    let wallet = wallet(args)?;
    let path = wallet.coldkey_path();
    tokio::task::block_in_place(|| open(|password| wallet.coldkey(password), &path))
}

/// Opens a key, asking for its password at the terminal if that is all that is missing.
fn open(
    key: impl Fn(Option<&Password>) -> Result<Key, KeyfileError>,
    path: &std::path::Path,
) -> anyhow::Result<Key> {
    match key(None) {
        Err(KeyfileError {
            fault: Fault::PasswordNeeded { .. },
            ..
        }) if std::io::stdin().is_terminal() => {
            let typed = ask(&format!("password of {}: ", path.display()))?;
            told(key(Some(&Password::new(typed.to_string()))))
        }
        opened => told(opened),
    }
}

fn ask(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    let terminal = Term::stderr();
    terminal
        .write_str(prompt)
        .context("cannot write to the terminal")?;
    let typed = terminal.read_secure_line();
    typed.map(Zeroizing::new).context("no password was read")
}

/// An error with what to do about it.
fn told<T>(result: Result<T, KeyfileError>) -> anyhow::Result<T> {
    result.map_err(|error| anyhow!("{error}: {}", error.what_to_do()))
}

fn wallet(args: &WalletArgs) -> anyhow::Result<WalletDir> {
    let name = args.wallet.as_deref().unwrap_or(DEFAULT);
    told(WalletDir::new(&root(args)?, name))
}

fn root(args: &WalletArgs) -> anyhow::Result<PathBuf> {
    match &args.wallet_path {
        Some(path) => Ok(path.clone()),
        None => WalletDir::default_root()
            .context("this user has no home directory: say where wallets lie with --wallet-path"),
    }
}

fn hotkey_name(args: &WalletArgs) -> &str {
    args.hotkey.as_deref().unwrap_or(DEFAULT)
}

/// A wallet without its secrets.
#[derive(Serialize)]
struct Shown {
    path: PathBuf,
    coldkey: Option<String>,
    coldkey_encrypted: Option<bool>,
    hotkeys: Vec<ShownHotkey>,
}

#[derive(Serialize)]
struct ShownHotkey {
    name: String,
    account: Option<String>,
    /// What is wrong with its file, and what to do.
    problem: Option<String>,
}

fn show(args: &WalletArgs, json: bool) -> anyhow::Result<()> {
    let wallet = wallet(args)?;
    if !wallet.path().is_dir() {
        bail!(
            "there is no wallet in {}: make one with `gradmesh wallet new`, or say which with --wallet and --wallet-path",
            wallet.path().display()
        );
    }
    let hotkeys = told(wallet.hotkeys())?.into_iter().map(|name| {
        let read = wallet.hotkey_account(&name);
        ShownHotkey {
            account: read.as_ref().ok().map(ToString::to_string),
            problem: read
                .err()
                .map(|error| format!("{error}: {}", error.what_to_do())),
            name,
        }
    });
    let coldkey = wallet.coldkey_path();
    let shown = Shown {
        coldkey: wallet
            .coldkey_account()
            .ok()
            .map(|account| account.to_string()),
        coldkey_encrypted: coldkey
            .is_file()
            .then(|| told(keyfile::is_encrypted(&coldkey)))
            .transpose()?,
        hotkeys: hotkeys.collect(),
        path: wallet.path().to_owned(),
    };
    if json {
        return print_json(&shown);
    }
    let protected = match shown.coldkey_encrypted {
        Some(true) => ", encrypted",
        Some(false) => ", NOT encrypted",
        None => ", not on this machine",
    };
    let coldkey = shown.coldkey.as_deref().unwrap_or("unknown");
    let mut text = format!(
        "wallet      {}\ncoldkey     {coldkey}{protected}\n",
        shown.path.display()
    );
    for hotkey in &shown.hotkeys {
        let what = hotkey.account.as_ref().or(hotkey.problem.as_ref());
        let what = what.map_or("", String::as_str);
        text.push_str(&format!("hotkey      {} {what}\n", hotkey.name));
    }
    say(&text);
    Ok(())
}

/// A new key, with the only copy of the words that it can be made from again.
#[derive(Serialize)]
struct Made {
    account: String,
    phrase: String,
}

impl From<&NewKey> for Made {
    fn from(key: &NewKey) -> Made {
        Made {
            account: key.account.to_string(),
            phrase: key.phrase.words().to_owned(),
        }
    }
}

fn new(args: &WalletArgs, hotkey_only: bool, no_password: bool, json: bool) -> anyhow::Result<()> {
    let (coldkey, hotkey) = if hotkey_only {
        let made = told(wallet(args)?.create_hotkey(hotkey_name(args)))?;
        (None, made)
    } else {
        let made = told(WalletDir::create(NewWallet {
            root: root(args)?,
            name: args.wallet.clone().unwrap_or(DEFAULT.to_owned()),
            hotkey: hotkey_name(args).to_owned(),
            coldkey: protection(no_password)?,
        }))?;
        (Some(made.coldkey), made.hotkey)
    };
    if json {
        return print_json(&serde_json::json!({
            "path": wallet(args)?.path(),
            "coldkey": coldkey.as_ref().map(Made::from),
            "hotkey": Made::from(&hotkey),
        }));
    }
    let mut text = format!("wallet      {}\n", wallet(args)?.path().display());
    for (name, key) in [("coldkey", coldkey.as_ref()), ("hotkey", Some(&hotkey))] {
        if let Some(key) = key {
            text.push_str(&format!(
                "{name:<11} {}\n            {}\n",
                key.account,
                key.phrase.words()
            ));
        }
    }
    text.push_str("\nWrite the words down and keep them safe: they are shown this once, and whoever has them has the key.\n");
    say(&text);
    Ok(())
}

/// How the new coldkey lies on disk, from the flag or what is typed twice.
fn protection(no_password: bool) -> anyhow::Result<Protection> {
    if no_password {
        return Ok(Protection::None);
    }
    if !std::io::stdin().is_terminal() {
        bail!(
            "a coldkey is encrypted, and there is no terminal to ask for a password: run this at one, or leave the \
             coldkey unencrypted with --no-password (for development only)"
        );
    }
    let password = ask("password of the new coldkey: ")?;
    if password != ask("once more: ")? {
        bail!("the two differ: nothing was made");
    }
    if password.is_empty() {
        bail!("an empty password protects nothing: give one, or say --no-password");
    }
    Ok(Protection::Password(Password::new(password.to_string())))
}
