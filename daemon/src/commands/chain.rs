//! `gradmesh chain dev | info`

use std::convert::Infallible;
use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use gradmesh_chain::Client;
use gradmesh_protocol::hash::Hash;
use serde::Serialize;

use super::subnet::told;
use super::{print_json, subnet};
use crate::cli::ChainCommand;
use crate::machine::MachineFile;
use crate::status::{ConcentrationStatus, NeuronStatus, SubnetConcentration};
use crate::subnet::concentration::{Rules, concentration};
use crate::subnet::discovery::{self, AttestedState};
use crate::terminal::{say, share_ppm, share_u16, table, tao};

/// The executable of the development chain, beside this one.
const DEVCHAIN: &str = "gradmesh-devchain";

pub(super) async fn run(settings: &MachineFile, command: ChainCommand) -> anyhow::Result<()> {
    match command {
        ChainCommand::Dev { flags } => match become_devchain(&flags)? {},
        ChainCommand::Info {
            netuid,
            chain,
            json,
        } => {
            let client = subnet::client(settings, chain.as_ref()).await?;
            match netuid {
                Some(netuid) => one(&client, netuid, json.json).await,
                None => all(&client, json.json).await,
            }
        }
    }
}

/// A subnet in one line.
#[derive(Serialize)]
struct Line {
    netuid: u16,
    owner_hotkey: String,
    neurons: u16,
    tempo: u16,
    registration_rao: u64,
}

async fn all(client: &Client, json: bool) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for netuid in told(client.subnets().await)? {
        if let Some(subnet) = told(client.subnet(netuid, None).await)? {
            lines.push(Line {
                netuid,
                owner_hotkey: subnet.owner_hotkey.to_string(),
                neurons: subnet.neurons,
                tempo: subnet.tempo,
                registration_rao: subnet.burn_rao,
            });
        }
    }
    if json {
        return print_json(&lines);
    }
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                line.netuid.to_string(),
                line.owner_hotkey.clone(),
                line.neurons.to_string(),
                line.tempo.to_string(),
                tao(line.registration_rao),
            ]
        })
        .collect();
    let heads = [
        "netuid",
        "owner hotkey",
        "neurons",
        "tempo",
        "to register, TAO",
    ];
    say(&table(&heads, &rows));
    Ok(())
}

/// Everything about a subnet that concerns a training run.
#[derive(Serialize)]
struct Info {
    endpoint: String,
    genesis: Hash,
    spec_version: u32,
    /// The finalized block that all of it is read at.
    block: u64,
    netuid: u16,
    owner_hotkey: String,
    tempo: u16,
    blocks_since_epoch: u64,
    commit_reveal: bool,
    registration_rao: u64,
    run: Option<Hash>,
    attested: Option<AttestedState>,
    concentration: SubnetConcentration,
    neurons: Vec<NeuronStatus>,
    /// The weights that each uid set, of 65535.
    weights: Vec<(u16, Vec<(u16, u16)>)>,
}

async fn one(client: &Client, netuid: u16, json: bool) -> anyhow::Result<()> {
    let block = told(client.finalized().await)?;
    let at = Some(block.hash);
    let subnet = subnet::subnet(client, netuid).await?;
    let neurons = told(client.neurons(netuid, at).await)?;
    let commitments = told(client.commitments(netuid, at).await)?;
    let attestations = discovery::attestations(&neurons, &commitments);
    let found = discovery::find_run(subnet.owner_hotkey, &neurons, &attestations);
    let weights = told(client.weights(netuid, at).await)?;
    let rules = Rules {
        block: block.number,
        activity_cutoff_blocks: subnet.activity_cutoff,
        owner_hotkey: subnet.owner_hotkey,
    };
    let info = Info {
        endpoint: client.endpoint(),
        genesis: subnet::genesis(client),
        spec_version: client.capabilities().spec_version,
        block: block.number,
        netuid,
        owner_hotkey: subnet.owner_hotkey.to_string(),
        tempo: subnet.tempo,
        blocks_since_epoch: subnet.blocks_since_last_step,
        commit_reveal: subnet.commit_reveal,
        registration_rao: subnet.burn_rao,
        run: found.as_ref().map(|found| found.run.0),
        attested: found.and_then(|found| found.attested),
        concentration: concentration(&neurons, &weights, &rules),
        neurons: neurons.iter().map(NeuronStatus::from).collect(),
        weights,
    };
    if json {
        return print_json(&info);
    }
    say(&render(&info));
    Ok(())
}

fn render(info: &Info) -> String {
    let mut text = String::new();
    // Writing into a String does not fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<11} {value}");
    };
    line(
        "chain",
        format!("{}, runtime {}", info.endpoint, info.spec_version),
    );
    line("block", format!("{} (finalized)", info.block));
    line(
        "subnet",
        format!("{}, owned by {}", info.netuid, info.owner_hotkey),
    );
    let weights = if info.commit_reveal {
        "committed, revealed later"
    } else {
        "set in the clear"
    };
    line(
        "epochs",
        format!(
            "every {} blocks, the last {} blocks ago; weights are {weights}",
            info.tempo, info.blocks_since_epoch
        ),
    );
    line(
        "register",
        format!("{} TAO now", tao(info.registration_rao)),
    );
    line(
        "run",
        info.run
            .map_or("none attested".to_owned(), |run| run.to_string()),
    );
    if let Some(attested) = &info.attested {
        line(
            "checkpoint",
            format!(
                "epoch {}, round {}, root {}: attested by {} hotkeys, contradicted by {}",
                attested.epoch,
                attested.round,
                attested.state_root,
                attested.attesters,
                attested.dissenters
            ),
        );
    }
    show_concentration(&info.concentration, &mut line);
    text.push('\n');
    text.push_str(&neurons_table(&info.neurons, None));
    text
}

/// In how few hands the subnet is: a line each for stake, weight and incentive.
pub(super) fn show_concentration(of: &SubnetConcentration, line: &mut impl FnMut(&str, String)) {
    let holders = if of.stake_of_all {
        "neurons (none may validate)"
    } else {
        "validators"
    };
    line("stake", spread(&of.stake, holders));
    line(
        "weight",
        spread(&of.weight, "validators whose weights count"),
    );
    line("incentive", spread(&of.incentive, "miners"));
}

/// How something is spread over its holders, in words.
fn spread(of: &ConcentrationStatus, holders: &str) -> String {
    if of.holders == 0 {
        return format!("0 {holders} have any");
    }
    format!(
        "of {} {holders} the first has {}, the first 5 {}, the first 10 {}; {} hold more than half",
        of.holders,
        share_ppm(of.top_1_ppm),
        share_ppm(of.top_5_ppm),
        share_ppm(of.top_10_ppm),
        of.nakamoto
    )
}

/// A table of neurons; `own`: the uid to be marked.
pub(super) fn neurons_table(neurons: &[NeuronStatus], own: Option<u16>) -> String {
    let rows: Vec<_> = neurons
        .iter()
        .map(|neuron| {
            let mark = if own == Some(neuron.uid) {
                " (this one)"
            } else {
                ""
            };
            vec![
                format!("{} {}{mark}", neuron.uid, neuron.hotkey),
                neuron.peer.clone().unwrap_or("-".to_owned()),
                tao(neuron.stake_rao),
                share_u16(neuron.incentive),
                share_u16(neuron.dividends),
                tao(neuron.emission_rao),
                if neuron.validator_permit { "yes" } else { "no" }.to_owned(),
            ]
        })
        .collect();
    let heads = [
        "uid, hotkey",
        "peer",
        "stake",
        "incentive",
        "dividends",
        "paid by the last epoch",
        "validator",
    ];
    table(&heads, &rows)
}

/// Where the development chain lies.
pub(crate) fn devchain() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().and_then(|path| path.canonicalize());
    Ok(own
        .context("where this executable lies")?
        .with_file_name(DEVCHAIN))
}

fn become_devchain(flags: &[String]) -> anyhow::Result<Infallible> {
    let devchain = devchain()?;
    let error = Command::new(&devchain).args(flags).exec();
    Err(anyhow::Error::new(error).context(missing(&devchain)))
}

/// What to say when it is not there.
pub(crate) fn missing(devchain: &std::path::Path) -> String {
    format!(
        "cannot run {}, which belongs beside gradmesh: build it with `cargo build -p gradmesh-devchain`",
        devchain.display()
    )
}
