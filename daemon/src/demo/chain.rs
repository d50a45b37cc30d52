//! The chain of the demo: a development chain of its own, wallets, TAO to spend, and what everybody was paid in the end.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use gradmesh_chain::wallet::{NewWallet, Protection, WalletDir};
use gradmesh_chain::{AccountId, Client, Key, Settings};
use rustix::process::getpid;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::peer::VALIDATOR;
use super::progress::Progress;
use crate::commands::chain::{devchain, missing};
use crate::commands::subnet::told;
use crate::status::Status;
use crate::terminal::tao;

/// Blocks come a dozen times as fast as on the real chain's fastest network: a demo shows in a minute what takes hours.
const BLOCK_MS: &str = "250";
/// Blocks between two epochs of the subnet: ten seconds.
const TEMPO: &str = "40";
/// Blocks behind which finality lags, as it does on a real chain.
const FINALITY_LAG: &str = "2";
/// Seconds between two rounds of the beacon that opens committed weights.
const BEACON_PERIOD_S: &str = "1";
/// The subnet that the launcher registers: the first one.
const NETUID: u16 = 1;
/// What each coldkey gets to spend: a subnet (1,000 TAO), a registration, stake and fees.
const FUNDS_RAO: u64 = 5_000 * RAO;
/// What a validator stakes.
const STAKE_RAO: u64 = 100 * RAO;
/// One TAO.
const RAO: u64 = 1_000_000_000;
/// What the demo's flags allow for the subnet, and for a registration.
const LIMIT_TAO: &str = "2000";
/// How long the chain may take to answer for the first time.
const START_MAX: Duration = Duration::from_secs(30);
/// How long payment may take after the last round: weights are revealed an epoch after they were committed, and paid an
/// epoch later; three epochs more for a machine that is busy.
const PAID_MAX: Duration = Duration::from_secs(90);
/// How often the chain is asked.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A running development chain, funded wallets and a client; the process ends with this.
pub(super) struct DemoChain {
    _child: Child,
    url: String,
    wallets: PathBuf,
    client: Client,
    coldkeys: Vec<Key>,
    hotkeys: Vec<AccountId>,
}

/// The line that the chain prints when it is ready.
#[derive(Deserialize)]
struct Ready {
    url: String,
}

impl DemoChain {
    /// Starts the chain in `out` and makes a funded wallet for each of `peers`.
    pub(super) async fn start(
        out: &Path,
        peers: u32,
        progress: &Progress,
    ) -> anyhow::Result<DemoChain> {
        let (child, url) = start_process(out).await?;
        let client = told(Client::connect(Settings::network(&url)?).await)?;
        let wallets = out.join("wallets");
        let alice = Key::dev("Alice");
        let mut coldkeys = Vec::new();
        let mut hotkeys = Vec::new();
        for name in (0..peers).map(wallet_name).chain([VALIDATOR.to_owned()]) {
            let made = WalletDir::create(NewWallet {
                root: wallets.clone(),
                name,
                hotkey: "default".to_owned(),
                coldkey: Protection::None,
            })?;
            let coldkey = made.wallet.coldkey(None)?;
            told(client.transfer(&alice, &coldkey.account(), FUNDS_RAO).await)?;
            coldkeys.push(coldkey);
            hotkeys.push(made.hotkey.account);
        }
        progress.say(&format!(
            "chain: {url}, a block every {BLOCK_MS} ms, an epoch every {TEMPO} blocks; {} TAO for each of {} wallets",
            tao(FUNDS_RAO),
            coldkeys.len()
        ));
        Ok(DemoChain {
            _child: child,
            url,
            wallets,
            client,
            coldkeys,
            hotkeys,
        })
    }

    /// The flags with which peer `number` stands on the chain; the number after the last is the validator's. The same below.
    pub(super) fn flags(&self, number: u32) -> Vec<String> {
        let wallets = self.wallets.display().to_string();
        let wallet = match number as usize + 1 < self.coldkeys.len() {
            true => wallet_name(number),
            false => VALIDATOR.to_owned(),
        };
        let flags = [
            "--chain",
            &self.url,
            "--wallet",
            &wallet,
            "--wallet-path",
            &wallets,
        ];
        flags.iter().map(|flag| (*flag).to_owned()).collect()
    }

    /// The flags with which it may pay for what it needs there.
    pub(super) fn paying_flags(&self, number: u32) -> Vec<String> {
        let mut flags = self.flags(number);
        flags.extend(["--register-up-to", LIMIT_TAO].map(str::to_owned));
        flags
    }

    /// The subnet.
    pub(super) fn netuid(&self) -> u16 {
        NETUID
    }

    /// Stakes for the validator, once it is registered.
    pub(super) async fn stake(&self, progress: &Progress) -> anyhow::Result<()> {
        let validator = self.coldkeys.last().zip(self.hotkeys.last());
        if let Some((coldkey, hotkey)) = validator {
            let started = Instant::now();
            while told(self.client.uid(NETUID, hotkey, None).await)?.is_none() {
                if started.elapsed() > PAID_MAX {
                    bail!(
                        "hotkey {hotkey} was not registered within {} s",
                        PAID_MAX.as_secs()
                    );
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            told(
                self.client
                    .add_stake(coldkey, NETUID, hotkey, STAKE_RAO, None)
                    .await,
            )?;
        }
        progress.say(&format!(
            "chain: the validator stakes {} TAO; it sets weights by commit and reveal",
            tao(STAKE_RAO)
        ));
        Ok(())
    }

    /// The hotkey of peer `number`, ss58.
    pub(super) fn hotkey(&self, number: u32) -> Option<String> {
        self.hotkeys.get(number as usize).map(AccountId::to_string)
    }

    /// What each hotkey was paid so far, in rao.
    async fn paid(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut paid = BTreeMap::new();
        for hotkey in &self.hotkeys {
            let stake = told(self.client.stake(NETUID, hotkey).await)?;
            let validates = Some(hotkey) == self.hotkeys.last();
            let staked = if validates { STAKE_RAO } else { 0 };
            paid.insert(hotkey.to_string(), stake.saturating_sub(staked));
        }
        Ok(paid)
    }

    /// Waits until everybody but `cheat` has been paid by the validator's weights, and tells what.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub(super) async fn emission(
        &self,
        cheat: Option<u32>,
        progress: &Progress,
    ) -> anyhow::Result<BTreeMap<String, u64>> {
        let started = Instant::now();
        let mut told_waiting = false;
        loop {
            let paid = self.paid().await?;
            let cheat = cheat.and_then(|number| self.hotkey(number));
            let due = |hotkey: &String| Some(hotkey) != cheat.as_ref();
            if paid.iter().all(|(hotkey, paid)| *paid > 0 || !due(hotkey)) {
                return Ok(paid);
            }
            if started.elapsed() > PAID_MAX {
                bail!(
                    "the chain paid nothing to some hotkeys within {} s of the last round: {paid:?}",
                    PAID_MAX.as_secs()
                );
            }
            if !std::mem::replace(&mut told_waiting, true) {
                progress.say("chain: waiting until the weights are revealed and everybody is paid");
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// Whether the chain has what a finished peer wants it to have.
pub(super) fn is_attested(status: &Status) -> bool {
    let (Some(chain), Some(checkpoint)) = (&status.chain, &status.checkpoint) else {
        return false;
    };
    let attested = chain.attested.as_ref();
    attested.is_some_and(|attested| attested.round >= checkpoint.round)
}

fn wallet_name(number: u32) -> String {
    format!("peer-{number}")
}

async fn start_process(out: &Path) -> anyhow::Result<(Child, String)> {
    let executable = devchain()?;
    let log = out.join("chain.log");
    let errors = OpenOptions::new().create(true).append(true).open(&log);
    let errors = errors.with_context(|| log.display().to_string())?;
    let mut child = Command::new(&executable)
        .args(["--listen", "127.0.0.1:0", "--json"])
        .args(["--block-ms", BLOCK_MS, "--tempo", TEMPO])
        .args([
            "--finality-lag",
            FINALITY_LAG,
            "--beacon-period-s",
            BEACON_PERIOD_S,
        ])
        .arg("--parent-pid")
        .arg(getpid().as_raw_nonzero().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| {
            format!(
                "{}; or train without a chain: --no-chain",
                missing(&executable)
            )
        })?;
    let output = child.stdout.take().context("the chain has no output")?;
    let mut lines = BufReader::new(output).lines();
    let first = tokio::time::timeout(START_MAX, lines.next_line()).await;
    let first = first.ok().and_then(Result::ok).flatten();
    let ready = first.and_then(|line| serde_json::from_str::<Ready>(&line).ok());
    let Some(ready) = ready else {
        bail!(
            "the development chain did not start within {} s; the end of {}:\n{}",
            START_MAX.as_secs(),
            log.display(),
            super::peer::last_lines(&log)
        );
    };
    // What it says later is of no interest, but a full pipe would stop it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((child, ready.url))
}
