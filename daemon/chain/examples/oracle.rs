//! Keys, keyfiles and timelocks by command line, for scripts/chain_oracle.py to hold against the official core.
//!
//! Passwords come from the variable `ORACLE_PASSWORD`; everything printed is one line of JSON. For throw-away keys only:
//! `wallet` prints phrases.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use gradmesh_chain::account::AccountId;
use gradmesh_chain::key::Key;
use gradmesh_chain::keyfile::{self, Password};
use gradmesh_chain::wallet::{NewWallet, Protection, WalletDir};
use serde_json::{Value, json};

const USAGE: &str = "oracle key FILE | account FILE | wallet ROOT NAME HOTKEY | sign FILE MESSAGE | \
                     verify ADDRESS MESSAGE SIGNATURE | encrypt ROUND MESSAGE | decrypt CIPHERTEXT SIGNATURE  \
                     (messages, ciphertexts and signatures in hex)";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    println!("{}", answer(&arguments)?);
    Ok(())
}

fn answer(arguments: &[&str]) -> anyhow::Result<Value> {
    let password = std::env::var("ORACLE_PASSWORD").ok().map(Password::new);
    Ok(match arguments {
        ["key", file] => json!(keyfile::read_key(Path::new(file), password.as_ref())?.account()),
        ["account", file] => json!(keyfile::read_account(Path::new(file))?),
        ["wallet", root, name, hotkey] => {
            let made = WalletDir::create(NewWallet {
                root: PathBuf::from(root),
                name: (*name).to_owned(),
                hotkey: (*hotkey).to_owned(),
                coldkey: password.map_or(Protection::None, Protection::Password),
            })?;
            json!({
                "coldkey": { "account": made.coldkey.account, "phrase": made.coldkey.phrase.words() },
                "hotkey": { "account": made.hotkey.account, "phrase": made.hotkey.phrase.words() },
            })
        }
        ["sign", file, message] => {
            let key = keyfile::read_key(Path::new(file), password.as_ref())?;
            json!(hex::encode(key.sign(&hex::decode(message)?)))
        }
        ["verify", address, message, signature] => {
            let signature = hex::decode(signature)?
                .try_into()
                .ok()
                .context("a signature has 64 bytes")?;
            json!(Key::verify(
                &address.parse::<AccountId>()?,
                &hex::decode(message)?,
                &signature
            ))
        }
        ["encrypt", round, message] => {
            let mut entropy = [0; gradmesh_timelock::ENTROPY_BYTES];
            getrandom::fill(&mut entropy)?;
            let key = gradmesh_timelock::QUICKNET_PUBLIC_KEY;
            json!(hex::encode(gradmesh_timelock::encrypt(
                &key,
                round.parse()?,
                &hex::decode(message)?,
                entropy
            )?))
        }
        ["decrypt", ciphertext, signature] => {
            json!(hex::encode(gradmesh_timelock::decrypt(
                &hex::decode(ciphertext)?,
                &hex::decode(signature)?
            )?))
        }
        _ => bail!("usage: {USAGE}"),
    })
}
