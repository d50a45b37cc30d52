//! `gradmesh doctor`: what this machine lacks, and what to do about it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use gradmesh_chain::{Client, Settings};
use gradmesh_trainer::torch::{device, version_check};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use serde::Serialize;

use super::subnet::told;
use super::{calibrate, print_json, running, wallet};
use crate::cli::{DoctorArgs, GlobalArgs, WalletArgs};
use crate::machine::{Machine, MachineFile, cores};
use crate::state_dir::StateDir;
use crate::status::client;
use crate::terminal::{bytes, say};

/// Less free disk than this is a fault: a 1 B parameter checkpoint takes 4 GB as f32.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Less than this is worth a word.
const FREE_BYTES_WARN: u64 = 10 << 30;
/// No clock that is right shows an earlier time: 2026-01-01, when this was written, in seconds since 1970.
const CLOCK_SECONDS_MIN: u64 = 1_767_225_600;
/// A machine's clock that is later than this is wrong as well: 2100-01-01.
const CLOCK_SECONDS_MAX: u64 = 4_102_444_800;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    detail: String,
}

fn finding(check: &'static str, verdict: Verdict, detail: impl Into<String>) -> Finding {
    Finding {
        check,
        verdict,
        detail: detail.into(),
    }
}

pub(super) async fn run(
    global: &GlobalArgs,
    file: &MachineFile,
    args: &DoctorArgs,
) -> anyhow::Result<()> {
    let settings = Machine::resolve(&args.peer, file);
    if let Some(table) = &args.calibrate {
        return calibrate::run(table, &settings.device, args.json).await;
    }
    let dir = match &global.dir {
        Some(dir) => dir.clone(),
        None => StateDir::runs_root()?,
    };
    let mut findings = vec![
        libtorch(),
        training_device(&settings.device),
        finding("cores", Verdict::Ok, format!("{} may be used", cores())),
        clock(SystemTime::now()),
        disk(&dir),
    ];
    findings.extend(settings.listen.iter().map(control_port));
    findings.push(udp_port("bulk port", settings.bulk_listen, "--bulk-listen"));
    findings.push(status_port(settings.status_listen));
    findings.push(network(global).await);
    if let Some(network) = &settings.chain {
        findings.push(chain(network).await);
        findings.push(hotkey(&settings.wallet));
    }

    let failed = findings
        .iter()
        .filter(|f| f.verdict == Verdict::Fail)
        .count();
    if args.json {
        print_json(&findings)?;
    } else {
        for finding in &findings {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            say(&format!(
                "{verdict:<5} {:<13} {}",
                finding.check, finding.detail
            ));
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of {} checks failed; the lines above say what to do",
            findings.len()
        );
    }
    Ok(())
}

/// Where packets to others would leave from: an address for examples (RFC 5737), to which nothing is sent.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// Whether others can reach this machine: what a running daemon has found out, else what its address tells.
async fn network(global: &GlobalArgs) -> Finding {
    const CHECK: &str = "network";
    if let Ok((_, address)) = running(global).await
        && let Ok(status) = client::status(&address.url).await
    {
        let verdict = match status.behind_nat {
            true => Verdict::Warn,
            false => Verdict::Ok,
        };
        return finding(CHECK, verdict, status.network);
    }
    let own = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect(ELSEWHERE)?;
        socket.local_addr()
    });
    match own.map(|own| own.ip()) {
        Ok(IpAddr::V4(own)) if is_shared(own) => finding(
            CHECK,
            Verdict::Warn,
            format!(
                "{own} is a private address: unless its ports are forwarded, this machine is behind NAT. It can join runs, \
                 is reached through a relay among their peers, and owns no shards; a run that it launches is reached by \
                 its own network only"
            ),
        ),
        Ok(own) => finding(CHECK, Verdict::Ok, format!("{own} is a public address")),
        Err(error) => finding(
            CHECK,
            Verdict::Warn,
            format!("no way out of this machine: {error}"),
        ),
    }
}

/// Whether many machines may have the same address: private networks (RFC 1918), those behind carriers' NAT (RFC 6598),
/// and links without any (RFC 3927).
fn is_shared(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    let behind_carrier = first == 100 && (64..128).contains(&second);
    address.is_private() || address.is_link_local() || behind_carrier
}

/// Whether the chain that the operator named answers.
async fn chain(network: &str) -> Finding {
    let read = async {
        let client = told(Client::connect(told(Settings::network(network))?).await)?;
        let block = told(client.finalized().await)?;
        let spec = client.capabilities().spec_version;
        anyhow::Ok(format!(
            "{}, finalized block {}, runtime {spec}",
            client.endpoint(),
            block.number
        ))
    };
    match read.await {
        Ok(detail) => finding("chain", Verdict::Ok, detail),
        Err(error) => finding("chain", Verdict::Fail, format!("{error:#}")),
    }
}

/// Whether the hotkey that would sign can be opened.
fn hotkey(args: &WalletArgs) -> Finding {
    match wallet::hotkey(args) {
        Ok(key) => finding("hotkey", Verdict::Ok, key.account().to_string()),
        Err(error) => finding("hotkey", Verdict::Fail, format!("{error:#}")),
    }
}

fn libtorch() -> Finding {
    match version_check() {
        Ok(version) => finding("libtorch", Verdict::Ok, version),
        Err(error) => finding("libtorch", Verdict::Fail, error.to_string()),
    }
}

fn training_device(name: &str) -> Finding {
    let chosen = name.parse().and_then(device::select);
    match chosen {
        Ok(choice) => finding("device", Verdict::Ok, choice.why),
        Err(error) => finding("device", Verdict::Fail, error.to_string()),
    }
}

/// Rounds do not depend on the time of day, but certificates and logs do.
fn clock(now: SystemTime) -> Finding {
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    if (CLOCK_SECONDS_MIN..CLOCK_SECONDS_MAX).contains(&seconds) {
        finding("clock", Verdict::Ok, format!("{seconds} s since 1970"))
    } else {
        let detail = format!("{seconds} s since 1970 cannot be: set it, best with NTP");
        finding("clock", Verdict::Fail, detail)
    }
}

fn disk(dir: &Path) -> Finding {
    // The directory may not be there yet; its file system is that of the nearest one that is.
    let Some(existing) = dir.ancestors().find(|dir| dir.is_dir()) else {
        let detail = format!("{}: no such directory", dir.display());
        return finding("disk", Verdict::Fail, detail);
    };
    match rustix::fs::statvfs(existing) {
        Err(error) => {
            let detail = format!("{}: {error}", existing.display());
            finding("disk", Verdict::Warn, detail)
        }
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let detail = format!("{} free below {}", bytes(free), existing.display());
            if free < FREE_BYTES_MIN {
                let detail = format!("{detail}: free {} at least", bytes(FREE_BYTES_MIN));
                finding("disk", Verdict::Fail, detail)
            } else if free < FREE_BYTES_WARN {
                finding(
                    "disk",
                    Verdict::Warn,
                    format!("{detail}: large models need more"),
                )
            } else {
                finding("disk", Verdict::Ok, detail)
            }
        }
    }
}

fn control_port(address: &Multiaddr) -> Finding {
    let mut ip = None;
    let mut port = None;
    for protocol in address {
        match protocol {
            Protocol::Ip4(found) => ip = Some(IpAddr::from(found)),
            Protocol::Ip6(found) => ip = Some(IpAddr::from(found)),
            Protocol::Udp(found) => port = Some(found),
            _ => {}
        }
    }
    match (ip, port) {
        (Some(ip), Some(port)) => udp_port("control port", SocketAddr::new(ip, port), "--listen"),
        _ => {
            let detail = format!(
                "{address} is no /ip4/ADDRESS/udp/PORT/quic-v1: correct --listen, for example {}",
                SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 4700)
            );
            finding("control port", Verdict::Fail, detail)
        }
    }
}

fn udp_port(check: &'static str, address: SocketAddr, flag: &str) -> Finding {
    match UdpSocket::bind(address) {
        Ok(_) => finding(check, Verdict::Ok, format!("UDP {address} is free")),
        Err(error) => {
            let detail = format!("UDP {address}: {error}; choose another with {flag}");
            finding(check, Verdict::Fail, detail)
        }
    }
}

fn status_port(address: SocketAddr) -> Finding {
    let check = "status port";
    match TcpListener::bind(address) {
        Err(error) => {
            let detail = format!("TCP {address}: {error}; choose another with --status-listen");
            finding(check, Verdict::Fail, detail)
        }
        Ok(_) if address.ip().is_loopback() => {
            finding(check, Verdict::Ok, format!("TCP {address} is free"))
        }
        Ok(_) => {
            let detail = format!(
                "TCP {address} is free, but others can read the status there; 127.0.0.1 keeps it to this machine"
            );
            finding(check, Verdict::Warn, detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_a_failure_that_names_the_flag() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let found = udp_port("bulk port", address, "--bulk-listen");
        assert_eq!(found.verdict, Verdict::Fail);
        assert!(found.detail.contains("--bulk-listen"), "{}", found.detail);
        let multiaddr = format!("/ip4/127.0.0.1/udp/{}/quic-v1", address.port());
        assert_eq!(
            control_port(&multiaddr.parse().unwrap()).verdict,
            Verdict::Fail
        );
        drop(taken);
        assert_eq!(
            udp_port("bulk port", address, "--bulk-listen").verdict,
            Verdict::Ok
        );
    }

    #[test]
    fn addresses_that_many_machines_may_have_are_behind_nat() {
        for (address, shared) in [
            ("10.1.2.3", true),
            ("192.168.0.7", true),
            ("172.31.0.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("169.254.1.1", true),
            ("203.0.113.9", false),
        ] {
            assert_eq!(is_shared(address.parse().unwrap()), shared, "{address}");
        }
    }

    #[test]
    fn a_clock_at_1970_is_a_failure() {
        assert_eq!(clock(SystemTime::UNIX_EPOCH).verdict, Verdict::Fail);
        let sane = SystemTime::UNIX_EPOCH + Duration::from_secs(CLOCK_SECONDS_MIN);
        assert_eq!(clock(sane).verdict, Verdict::Ok);
    }

    #[test]
    fn the_disk_of_a_directory_that_is_not_there_yet_is_measured() {
        let temp = tempfile::tempdir().unwrap();
        let found = disk(&temp.path().join("not/there/yet"));
        assert!(found.detail.contains("free below"), "{}", found.detail);
    }
}
