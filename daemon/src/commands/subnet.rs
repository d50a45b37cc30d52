//! What `launch` and `join` do on the chain before the daemon starts: find or register the subnet, register the hotkey,
//! find the run.

use anyhow::{Context, anyhow, bail};
use gradmesh_chain::types::Subnet;
use gradmesh_chain::{Advice, ChainError, Client, Key, Settings};
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::PeerKey;

use super::wallet;
use crate::cli::Rao;
use crate::daemon::Entry;
use crate::machine::{Machine, MachineFile};
use crate::run_file;
use crate::subnet::{Access, discovery};
use crate::terminal::tao;

/// As whom, and through which endpoints, this machine stands on a chain.
///
/// `network`: the run's own, used when neither flag nor settings file names one.
pub(super) fn access(machine: &Machine, network: Option<&str>) -> anyhow::Result<Access> {
    let Some(network) = machine.chain.as_deref().or(network) else {
        bail!("name the chain with --chain: finney, test, local or a ws:// or wss:// URL");
    };
    Ok(Access {
        settings: Settings::network(network)?,
        hotkey: wallet::hotkey(&machine.wallet)?,
        axon: machine.axon,
    })
}

/// A client for what has to happen before the daemon starts.
pub(super) async fn connect(access: &Access) -> anyhow::Result<Client> {
    told(Client::connect(access.settings.clone()).await)
}

/// A client for a command that only reads.
///
/// `flag`: the value of `--chain`.
pub(super) async fn client(file: &MachineFile, flag: Option<&String>) -> anyhow::Result<Client> {
    let network = file.chain(flag);
    let network = network
        .context("name the chain with --chain: finney, test, local or a ws:// or wss:// URL")?;
    told(Client::connect(Settings::network(&network)?).await)
}

/// An error of the chain with what to do about it.
pub(crate) fn told<T>(answer: Result<T, ChainError>) -> anyhow::Result<T> {
    answer.map_err(|error| anyhow!("{error}: {}", error.what_to_do()))
}

/// The subnet that a run is launched on, in which this hotkey is registered: the one that the run file names, the one
/// that this hotkey registered before, or a new one.
///
/// `limit`: the most that the coldkey pays for a subnet or a registration.
pub(super) async fn subnet_of_launch(
    client: &Client,
    access: &Access,
    machine: &Machine,
    section: &run_file::Subnet,
    limit: Option<Rao>,
) -> anyhow::Result<u16> {
    let hotkey = access.hotkey.account();
    if let Some(netuid) = section.netuid {
        register(client, access, machine, netuid, limit).await?;
        return Ok(netuid);
    }
    for netuid in told(client.subnets().await)? {
        let subnet = told(client.subnet(netuid, None).await)?;
        if subnet.is_some_and(|subnet| subnet.owner_hotkey == hotkey) {
            tracing::info!(
                netuid,
                "this hotkey owns a subnet already; the run is launched there"
            );
            return Ok(netuid);
        }
    }
    let price = told(client.network_price().await)?;
    let Some(limit) = limit.filter(|limit| limit.0 >= price) else {
        bail!(
            "a new subnet costs {} TAO, which is locked: allow it with --register-up-to, or name an existing subnet as \
             chain.netuid in the run file",
            tao(price)
        );
    };
    let coldkey = wallet::coldkey(&machine.wallet)?;
    let (netuid, receipt) = told(client.register_network(&coldkey, &hotkey).await)?;
    tracing::info!(netuid, block = receipt.block.number, limit = %tao(limit.0), "subnet registered");
    start(client, &coldkey, netuid).await?;
    Ok(netuid)
}

/// Activates a new subnet, for staking and emission. Chains make owners wait for that; then it is done later.
async fn start(client: &Client, coldkey: &Key, netuid: u16) -> anyhow::Result<()> {
    match client.start_call(coldkey, netuid).await {
        Ok(_) => Ok(()),
        Err(error) if error.advice() == Advice::Retry => {
            tracing::warn!(%error, netuid, "the subnet is registered and not started yet; start it later");
            Ok(())
        }
        Err(error) => told(Err(error)),
    }
}

/// Makes sure that this hotkey is registered on subnet `netuid`, for at most `limit`; its uid.
pub(super) async fn register(
    client: &Client,
    access: &Access,
    machine: &Machine,
    netuid: u16,
    limit: Option<Rao>,
) -> anyhow::Result<u16> {
    let hotkey = access.hotkey.account();
    subnet(client, netuid).await?;
    if let Some(uid) = told(client.uid(netuid, &hotkey, None).await)? {
        return Ok(uid);
    }
    let price = told(client.registration_price(netuid).await)?;
    let Some(limit) = limit else {
        bail!(
            "hotkey {hotkey} is not registered on subnet {netuid}: a registration costs {} TAO now; allow it with \
             --register-up-to TAO",
            tao(price)
        );
    };
    let coldkey = wallet::coldkey(&machine.wallet)?;
    let registered = client.register(&coldkey, netuid, &hotkey, limit.0).await;
    let registered = told(registered)?;
    tracing::info!(netuid, uid = registered.uid, hotkey = %hotkey, "registered");
    Ok(registered.uid)
}

/// The subnet, which must be there.
pub(super) async fn subnet(client: &Client, netuid: u16) -> anyhow::Result<Subnet> {
    let subnet = told(client.subnet(netuid, None).await)?;
    subnet.with_context(|| {
        format!(
            "there is no subnet {netuid} on this chain; `gradmesh chain info` lists those that are"
        )
    })
}

/// The way into the run of a subnet, as the newest finalized block shows it.
pub(crate) async fn entry(client: &Client, netuid: u16, me: PeerKey) -> anyhow::Result<Entry> {
    let block = told(client.finalized().await)?;
    let at = Some(block.hash);
    let subnet = told(client.subnet(netuid, at).await)?;
    let owner = subnet
        .with_context(|| format!("there is no subnet {netuid} on this chain"))?
        .owner_hotkey;
    let neurons = told(client.neurons(netuid, at).await)?;
    let commitments = told(client.commitments(netuid, at).await)?;
    let attestations = discovery::attestations(&neurons, &commitments);
    let Some(found) = discovery::find_run(owner, &neurons, &attestations) else {
        bail!(
            "nobody attests a run on subnet {netuid}: whoever launches one does so with `gradmesh launch`, and names the \
             subnet as chain.netuid in the run file"
        );
    };
    let peers: Vec<_> = found
        .peers
        .into_iter()
        .filter(|peer| peer.key != me)
        .collect();
    if peers.is_empty() {
        bail!(
            "subnet {netuid} has run {}, but nobody there publishes where it listens",
            found.run
        );
    }
    if let Some(attested) = &found.attested {
        tracing::info!(
            epoch = attested.epoch,
            round = attested.round,
            root = %attested.state_root.short(),
            attesters = attested.attesters,
            dissenters = attested.dissenters,
            block = block.number,
            "attested checkpoint"
        );
    }
    Ok(Entry {
        run: found.run,
        peers,
        attested: found
            .attested
            .map(|state| (state.round(), state.state_root)),
    })
}

/// The genesis of the chain that `client` talks to.
pub(super) fn genesis(client: &Client) -> Hash {
    Hash(client.genesis())
}
