//! How this machine takes part, apart from any run: flags over the settings file over defaults.
//!
//! The settings file is TOML with the flags' names, by default `config.toml` in the user's configuration directory.
//! Unknown keys are refused.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use gradmesh_protocol::key::PeerKey;
use gradmesh_protocol::manifest::{Link, SiteId};
use gradmesh_trainer::torch::device;
use libp2p::Multiaddr;
use serde::Deserialize;

use crate::cli::{PeerArgs, WalletArgs};
use crate::daemon::capacity::UNIT_MBIT;

/// Where the control plane listens: any address, so that others reach this peer. The port is ours, not registered.
pub const LISTEN: &str = "/ip4/0.0.0.0/udp/4700/quic-v1";
/// Where the bulk plane listens.
pub const BULK_LISTEN: &str = "0.0.0.0:4701";
/// Where the status server listens: this machine only.
pub const STATUS_LISTEN: &str = "127.0.0.1:4702";
/// What a peer is taken to carry until it was measured, in Mbit/s: a home connection of today. A guess.
pub const CAPACITY_MBIT: u32 = 100;
/// In place of a site's name: that of a near member.
pub const SITE_FOUND: &str = "auto";
/// What is logged: rounds and membership, and from libraries only what is wrong.
pub const LOG: &str =
    "warn,gradmesh=info,gradmesh_chain=warn,gradmesh_protocol=info,gradmesh_trainer=info";

/// The settings file; every key may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MachineFile {
    /// As `--listen`.
    pub listen: Vec<Multiaddr>,
    /// As `--bulk-listen`.
    pub bulk_listen: Option<SocketAddr>,
    /// As `--status-listen`.
    pub status_listen: Option<SocketAddr>,
    /// As `--threads`.
    pub threads: Option<usize>,
    /// As `--device`.
    pub device: Option<String>,
    /// As `--site`.
    pub site: Option<String>,
    /// As `--capacity`.
    pub capacity: Option<u32>,
    /// As `--log`.
    pub log: Option<String>,
    /// As `--chain`.
    pub chain: Option<String>,
    /// As `--wallet`.
    pub wallet: Option<String>,
    /// As `--hotkey`.
    pub hotkey: Option<String>,
    /// As `--wallet-path`.
    pub wallet_path: Option<PathBuf>,
    /// As `--axon`.
    pub axon: Option<SocketAddr>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The file cannot be read.
    #[error("settings {}: {source}: check the path of --config and its permissions", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("settings {}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        reason: String,
    },
}

/// What a daemon of this machine uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Addresses of the control plane.
    pub listen: Vec<Multiaddr>,
    /// Address of the bulk plane.
    pub bulk_listen: SocketAddr,
    /// Address of the status server.
    pub status_listen: SocketAddr,
    /// Threads of local training.
    pub threads: usize,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// The site that it is in, if any.
    pub site: Option<String>,
    /// What it can carry as an owner of shards, in Mbit/s, if the operator says.
    pub capacity_mbit: Option<u32>,
    /// The chain, if one was named.
    pub chain: Option<String>,
    /// As whom it stands there.
    pub wallet: WalletArgs,
    /// The address that is published there; where it listens if `None`.
    pub axon: Option<SocketAddr>,
}

impl MachineFile {
    /// Reads `path`, or the user's settings file if there is one.
    ///
    /// # Errors
    /// [`MachineError`]; a file that was named must be there.
    pub fn load(path: Option<&Path>) -> Result<MachineFile, MachineError> {
        let own = || {
            directories::ProjectDirs::from("", "", "gradmesh")
                .map(|dirs| dirs.config_dir().join("config.toml"))
        };
        let Some(file) = path.map(Path::to_owned).or_else(own) else {
            return Ok(MachineFile::default());
        };
        match fs::read_to_string(&file) {
            Ok(text) => MachineFile::parse(&text)
                .map_err(|reason| MachineError::Malformed { path: file, reason }),
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Ok(MachineFile::default())
            }
            Err(source) => Err(MachineError::Read { path: file, source }),
        }
    }

    /// The chain that is meant: `flag` over the file.
    pub fn chain(&self, flag: Option<&String>) -> Option<String> {
        flag.or(self.chain.as_ref()).cloned()
    }

    /// The wallet that is meant: `flags` over the file.
    pub fn wallet(&self, flags: &WalletArgs) -> WalletArgs {
        WalletArgs {
            wallet: flags.wallet.clone().or_else(|| self.wallet.clone()),
            hotkey: flags.hotkey.clone().or_else(|| self.hotkey.clone()),
            wallet_path: flags
                .wallet_path
                .clone()
                .or_else(|| self.wallet_path.clone()),
        }
    }

    fn parse(text: &str) -> Result<MachineFile, String> {
        let file: MachineFile = toml::from_str(text).map_err(|error| error.to_string())?;
        if let Some(device) = &file.device {
            check_device(device).map_err(|reason| format!("device: {reason}"))?;
        }
        if file.threads == Some(0) {
            return Err("threads: 0; at least 1".to_owned());
        }
        Ok(file)
    }
}

impl Machine {
    /// `flags` over `file` over defaults.
    pub fn resolve(flags: &PeerArgs, file: &MachineFile) -> Machine {
        let parse = |text: &str| text.parse().expect("a constant address");
        let listen = [&flags.listen, &file.listen]
            .into_iter()
            .find(|listen| !listen.is_empty());
        let device = flags.device.as_ref().or(file.device.as_ref());
        Machine {
            listen: listen
                .cloned()
                .unwrap_or_else(|| vec![LISTEN.parse().expect("a constant address")]),
            bulk_listen: flags
                .bulk_listen
                .or(file.bulk_listen)
                .unwrap_or_else(|| parse(BULK_LISTEN)),
            status_listen: flags
                .status_listen
                .or(file.status_listen)
                .unwrap_or_else(|| parse(STATUS_LISTEN)),
            threads: flags
                .threads
                .map(|threads| usize::from(threads.get()))
                .or(file.threads)
                .unwrap_or_else(cores),
            device: device.cloned().unwrap_or_else(|| "auto".to_owned()),
            site: flags.site.as_ref().or(file.site.as_ref()).cloned(),
            capacity_mbit: flags.capacity.or(file.capacity),
            chain: file.chain(flags.chain.chain.as_ref()),
            wallet: file.wallet(&flags.chain.wallet),
            axon: flags.chain.axon.or(file.axon),
        }
    }
}

impl Machine {
    /// Whether it is to join the site of a near member.
    pub fn finds_site(&self) -> bool {
        self.site.as_deref() == Some(SITE_FOUND)
    }

    /// What `peer`, on this machine, says of its link when it joins a run, unless it finds a site.
    pub fn link(&self, peer: &PeerKey) -> Link {
        let units = self.capacity_mbit.unwrap_or(CAPACITY_MBIT) / UNIT_MBIT;
        Link {
            site: match &self.site {
                Some(name) if !self.finds_site() => SiteId::named(name),
                Some(_) | None => SiteId::alone(peer),
            },
            capacity: u16::try_from(units).unwrap_or(u16::MAX),
        }
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Checks the name of a device; whether it is there shows when it is used.
///
/// # Errors
/// What is allowed.
pub fn check_device(text: &str) -> Result<String, String> {
    let _: device::Request = text
        .parse()
        .map_err(|e: device::DeviceError| e.to_string())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = MachineFile::parse(
            "bulk-listen = \"127.0.0.1:7\"\nthreads = 3\nlisten = [\"/ip4/127.0.0.1/udp/9/quic-v1\"]\n",
        )
        .unwrap();
        let flags = PeerArgs {
            threads: std::num::NonZeroU16::new(5),
            ..PeerArgs::default()
        };
        let settings = Machine::resolve(&flags, &file);
        assert_eq!(settings.threads, 5);
        assert_eq!(settings.bulk_listen, "127.0.0.1:7".parse().unwrap());
        assert_eq!(settings.status_listen, STATUS_LISTEN.parse().unwrap());
        assert_eq!(settings.listen, file.listen);
        assert_eq!(settings.device, "auto");
        assert_eq!(
            settings.link(&PeerKey([1; 32])),
            Link::alone(&PeerKey([1; 32]))
        );
        assert!(settings.status_listen.ip().is_loopback());
    }

    #[test]
    fn peers_that_name_the_same_site_are_in_it() {
        let link = |text: &str, peer: u8| {
            let file = MachineFile::parse(text).unwrap();
            Machine::resolve(&PeerArgs::default(), &file).link(&PeerKey([peer; 32]))
        };
        let here = link("site = \"lab\"\ncapacity = 1000", 1);
        assert_eq!(here.site, link("site = \"lab\"", 2).site);
        assert_ne!(here.site, link("site = \"home\"", 1).site);
        assert_eq!(
            link("site = \"auto\"", 1).site,
            SiteId::alone(&PeerKey([1; 32]))
        );
        assert_eq!(here.capacity, 100);
        assert_eq!(link("capacity = 9", 1).capacity, 0);
        assert_eq!(link("capacity = 4000000000", 1).capacity, u16::MAX);
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused() {
        for text in [
            "colour = 1",
            "threads = 0",
            "device = \"tpu\"",
            "listen = [\"x\"]",
        ] {
            assert!(MachineFile::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_settings_file_that_was_named_must_be_there() {
        let error = MachineFile::load(Some(Path::new("/nowhere/config.toml"))).unwrap_err();
        assert!(
            error.to_string().contains("/nowhere/config.toml"),
            "{error}"
        );
    }
}
