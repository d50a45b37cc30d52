//! The command line. Names are stable: scripts rely on them.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use gradmesh_trainer::adversary::Kind;
use libp2p::Multiaddr;

use crate::machine::check_device;

/// Train one model together, over the internet, without trusting each other.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gradmesh",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// For every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct GlobalArgs {
    /// State directory of the run [default: one folder per run in the user's data directory]
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Settings file [default: config.toml in the user's configuration directory]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to log to stderr, for example `debug` or `warn,gradmesh=trace`
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// The process to end with.
    #[arg(long, global = true, hide = true, value_name = "PID")]
    pub parent_pid: Option<i32>,
}

/// How a daemon takes part.
#[derive(Clone, Debug, Default, Args)]
pub struct PeerArgs {
    /// Where the control plane listens, as a multiaddress; may be repeated [default: /ip4/0.0.0.0/udp/4700/quic-v1]
    #[arg(long, value_name = "MULTIADDR")]
    pub listen: Vec<Multiaddr>,
    /// Where the bulk plane listens (UDP) [default: 0.0.0.0:4701]
    #[arg(long, value_name = "IP:PORT")]
    pub bulk_listen: Option<SocketAddr>,
    /// Where the status page listens (TCP); port 0 takes a free one [default: 127.0.0.1:4702]
    #[arg(long, value_name = "IP:PORT")]
    pub status_listen: Option<SocketAddr>,
    /// Threads of local training [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroU16>,
    /// Where to train: auto, cpu or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE", value_parser = check_device)]
    pub device: Option<String>,
    /// Peers that name the same site are joined by a fast network: a frame enters a site once, and the plan `hier` sums
    /// inside it first. `auto`: the site of the nearest member within 2 ms [default: a site of its own]
    #[arg(long, value_name = "NAME")]
    pub site: Option<String>,
    /// What this peer can carry as an owner of shards, in Mbit/s; 0 owns nothing [default: as measured, 100 until
    /// then, behind NAT 0]
    #[arg(long, value_name = "MBIT")]
    pub capacity: Option<u32>,
    /// End when the run is finished, instead of serving those who still need its last rounds
    #[arg(long)]
    pub exit_when_finished: bool,
    /// How it stands on the chain.
    #[command(flatten)]
    pub chain: ChainArgs,
}

/// Which chain, and as whom. Only runs on a subnet need it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Chain")]
pub struct ChainArgs {
    /// The chain: finney, test, local or a ws:// or wss:// URL; more URLs behind commas are used when it fails
    /// [default: as the run says]
    #[arg(long, value_name = "CHAIN")]
    pub chain: Option<String>,
    /// As whom.
    #[command(flatten)]
    pub wallet: WalletArgs,
    /// The address, with the port of the control plane, at which others reach this daemon; it is published on chain
    /// [default: where it listens]
    #[arg(long, value_name = "IP:PORT")]
    pub axon: Option<SocketAddr>,
    /// Register the hotkey if it is not on the subnet, paying at most this from the wallet's coldkey
    #[arg(long, value_name = "TAO", value_parser = parse_tao)]
    pub register_up_to: Option<Rao>,
}

/// An amount of TAO, in units of 10^-9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rao(pub u64);

/// Decimal digits of a TAO.
const TAO_DIGITS: usize = 9;

/// Reads an amount in TAO, such as `0.25`.
fn parse_tao(text: &str) -> Result<Rao, String> {
    let wrong = || {
        format!("{text:?} is no amount in TAO, such as 0.25, with at most {TAO_DIGITS} decimals")
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let sound = !text.is_empty() && text != "." && fraction.len() <= TAO_DIGITS;
    if !sound || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    format!("{whole}{fraction:0<TAO_DIGITS$}")
        .parse()
        .map(Rao)
        .map_err(|_| wrong())
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Train a small model with several peers on this machine, and say what it cost
    Demo(DemoArgs),
    /// Launch a run and print the ticket with which others join it
    Launch(LaunchArgs),
    /// Join a run
    Join(JoinArgs),
    /// Follow a run, audit the work of its peers, and set weights by it
    Validate(JoinArgs),
    /// Join a run and cheat, to see what validators make of it; for demos and tests
    #[command(hide = true)]
    Cheat {
        /// How
        kind: Kind,
        /// Which run
        #[command(flatten)]
        join: JoinArgs,
    },
    /// Follow a run as a validator, and fail whoever is audited, to see what other validators make of it; for tests
    #[command(hide = true)]
    Slander(JoinArgs),
    /// Evidence of audits
    #[command(subcommand)]
    Evidence(EvidenceCommand),
    /// What the daemon does now, and why it waits
    Status(JsonArg),
    /// Ask the daemon to leave its run
    Leave(JsonArg),
    /// Checkpoints of a run
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// A chain for development, and what stands on a chain
    #[command(subcommand)]
    Chain(ChainCommand),
    /// Bittensor wallets of this machine
    #[command(subcommand)]
    Wallet(WalletCommand),
    /// Check libtorch, device, clock, disk and ports of this machine
    Doctor(DoctorArgs),
}

/// `--json` alone.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct JsonArg {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `gradmesh demo`
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Peers, the launcher included
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub peers: u32,
    /// Rounds to train [default: as the demo's run file says]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub rounds: Option<u64>,
    /// How the last peer cheats: none, idle, half, copy, noise, stale, sign, scale, hijack or withhold
    #[arg(long, value_name = "KIND", default_value_t = Kind::Half)]
    pub cheat: Kind,
    /// Directory for everything that the demo writes; must be new or empty [default: a new one in the user's data
    /// directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Train without a chain: nobody is paid, nothing is attested
    #[arg(long)]
    pub no_chain: bool,
    /// Directory of text to train on [default: source text of the local cargo registry]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Write the summary as JSON to this file; `-` prints it instead of the text
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `gradmesh launch`
#[derive(Clone, Debug, Args)]
pub struct LaunchArgs {
    /// The run file; examples/run.toml shows every key
    #[arg(value_name = "RUN.toml")]
    pub run_file: PathBuf,
    /// How this machine takes part.
    #[command(flatten)]
    pub peer: PeerArgs,
    /// Print the ticket as JSON
    #[arg(long)]
    pub json: bool,
}

/// `gradmesh join`
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// The ticket that `gradmesh launch` printed; without it and --netuid, the run of --dir goes on
    pub ticket: Option<String>,
    /// The subnet whose run is joined: run, peers and the newest attested checkpoint are read from the chain
    #[arg(long, value_name = "N", conflicts_with = "ticket")]
    pub netuid: Option<u16>,
    /// Directory with the run's training text, byte for byte the launcher's [default: fetched from the other peers]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// How this machine takes part.
    #[command(flatten)]
    pub peer: PeerArgs,
    /// Print what was joined as JSON
    #[arg(long)]
    pub json: bool,
}

/// `gradmesh checkpoint`
#[derive(Clone, Debug, Subcommand)]
pub enum CheckpointCommand {
    /// List the checkpoints of a run
    List(JsonArg),
    /// Read a checkpoint whole and check it
    Verify {
        /// The checkpoint
        #[arg(value_name = "DIR")]
        checkpoint: PathBuf,
        /// Compare with what is attested on this chain: finney, test, local or a URL [default: as the settings file says,
        /// and none if it says nothing]
        #[arg(long, value_name = "CHAIN")]
        chain: Option<String>,
        /// The subnet on which it is attested [default: the one that attestation.json beside the weights names]
        #[arg(long, value_name = "N")]
        netuid: Option<u16>,
        /// Print JSON
        #[command(flatten)]
        json: JsonArg,
    },
    /// Copy a checkpoint to a new directory, ready for Hugging Face `transformers`
    Export {
        /// Where to; must be new or empty
        #[arg(value_name = "DIR")]
        target: PathBuf,
        /// The checkpoint after this round [default: the newest]
        #[arg(long, value_name = "R")]
        round: Option<u64>,
        /// Print JSON
        #[command(flatten)]
        json: JsonArg,
    },
}

/// `gradmesh evidence`
#[derive(Clone, Debug, Subcommand)]
pub enum EvidenceCommand {
    /// List the evidence that a validator keeps
    List(JsonArg),
    /// Do the audit of a piece of evidence again, and say whether its verdict stands
    Replay {
        /// The evidence: a file NAME.cbor, with what it needs in the folder `content` beside it
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Directory with the run's training text [default: that of the state directory in which the evidence lies]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Threads of one libtorch operation [default: 1]
        #[arg(long, value_name = "N")]
        threads: Option<NonZeroU16>,
        /// Where to compute: auto, cpu or cuda:N [default: auto]
        #[arg(long, value_name = "DEVICE", value_parser = check_device)]
        device: Option<String>,
        /// Print JSON
        #[command(flatten)]
        json: JsonArg,
    },
}

/// `gradmesh chain`
#[derive(Clone, Debug, Subcommand)]
pub enum ChainCommand {
    /// Start a chain of one's own, with funded development keys; further flags: `gradmesh chain dev --help`
    #[command(disable_help_flag = true)]
    Dev {
        /// Given to gradmesh-devchain as they are
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "FLAG"
        )]
        flags: Vec<String>,
    },
    /// Stake, weights, incentive, emission and attestations of a subnet
    Info {
        /// The subnet [default: all, in one line each]
        #[arg(long, value_name = "N")]
        netuid: Option<u16>,
        /// The chain: finney, test, local or a URL [default: as the settings file says]
        #[arg(long, value_name = "CHAIN")]
        chain: Option<String>,
        /// Print JSON
        #[command(flatten)]
        json: JsonArg,
    },
}

/// `gradmesh wallet`
#[derive(Clone, Debug, Subcommand)]
pub enum WalletCommand {
    /// Make a wallet with a coldkey and a hotkey; what is there is never overwritten
    New {
        /// Which wallet.
        #[command(flatten)]
        wallet: WalletArgs,
        /// Only a hotkey, in a wallet that is there
        #[arg(long)]
        hotkey_only: bool,
        /// Leave the coldkey unencrypted; for development keys only
        #[arg(long)]
        no_password: bool,
        /// Print JSON
        #[command(flatten)]
        json: JsonArg,
    },
    /// Addresses of a wallet, and whether its files are sound; secrets are never shown
    Show {
        /// Which wallet.
        #[command(flatten)]
        wallet: WalletArgs,
        /// Print JSON
        #[command(flatten)]
        json: JsonArg,
    },
}

/// Which wallet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct WalletArgs {
    /// The wallet [default: default]
    #[arg(long, value_name = "NAME")]
    pub wallet: Option<String>,
    /// Its hotkey [default: default]
    #[arg(long, value_name = "NAME")]
    pub hotkey: Option<String>,
    /// Where wallets lie [default: ~/.bittensor/wallets]
    #[arg(long, value_name = "DIR")]
    pub wallet_path: Option<PathBuf>,
}

/// `gradmesh doctor`
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// What to check.
    #[command(flatten)]
    pub peer: PeerArgs,
    /// Check nothing; measure how far honest ways to compute are apart on this machine, and write the table of tolerances that
    /// a run file names as audit.tolerances
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(words.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn stable_names_are_understood() {
        for words in [
            "gradmesh demo",
            "gradmesh demo --no-chain --peers 3 --rounds 5 --out o --data d --json f.json",
            "gradmesh launch run.toml --json --dir d --listen /ip4/127.0.0.1/udp/0/quic-v1 --bulk-listen 127.0.0.1:0",
            "gradmesh --dir d join gm1abc --data d --status-listen 127.0.0.1:0 --threads 2 --device cuda:1",
            "gradmesh join --dir d",
            "gradmesh join --netuid 3 --chain ws://127.0.0.1:9944 --wallet w --hotkey h --register-up-to 0.5 --axon 1.2.3.4:4700",
            "gradmesh chain dev --block-ms 250 --json",
            "gradmesh chain info --netuid 3 --chain finney --json",
            "gradmesh wallet new --wallet w --hotkey h --no-password --json",
            "gradmesh wallet show --json",
            "gradmesh validate gm1abc --dir d",
            "gradmesh validate --netuid 3 --chain local --wallet w",
            "gradmesh cheat half gm1abc --dir d",
            "gradmesh slander gm1abc --dir d",
            "gradmesh evidence list --json",
            "gradmesh evidence replay e.cbor --data d --threads 2 --device cpu --json",
            "gradmesh status --json",
            "gradmesh leave --dir d --json",
            "gradmesh checkpoint list --json",
            "gradmesh checkpoint verify c --chain local --netuid 3 --json",
            "gradmesh checkpoint export c --round 3",
            "gradmesh doctor --json --log debug",
            "gradmesh doctor --calibrate tolerances.json",
        ] {
            parse(words).unwrap_or_else(|error| panic!("{words}: {error}"));
        }
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for words in [
            "gradmesh",
            "gradmesh launch",
            "gradmesh demo --peers 0",
            "gradmesh demo --rounds many",
            "gradmesh join t --threads 0",
            "gradmesh join t --device tpu",
            "gradmesh launch r --listen 127.0.0.1:1",
            "gradmesh status --colour",
            "gradmesh join gm1abc --netuid 3",
            "gradmesh join --netuid 70000",
            "gradmesh join --netuid 3 --register-up-to -1",
        ] {
            let error = parse(words).map(|_| ()).expect_err(words);
            assert_eq!(error.exit_code(), 2, "{words}");
        }
    }

    #[test]
    fn amounts_are_exact() {
        for (text, rao) in [
            ("0", 0),
            ("1", 1_000_000_000),
            ("0.25", 250_000_000),
            (".5", 500_000_000),
            ("0.000000001", 1),
            ("18446744073.709551615", u64::MAX),
        ] {
            assert_eq!(parse_tao(text), Ok(Rao(rao)), "{text}");
        }
        for text in [
            "",
            ".",
            "-1",
            "1e3",
            "0.0000000001",
            "18446744073.709551616",
            "1.2.3",
            "1,5",
        ] {
            assert!(parse_tao(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_of_every_command_may_stand_before_or_behind_it() {
        for words in ["gradmesh --dir x status", "gradmesh status --dir x"] {
            assert_eq!(
                parse(words).unwrap().global.dir,
                Some("x".into()),
                "{words}"
            );
        }
    }
}
