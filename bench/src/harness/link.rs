//! What lies between the peers, by the names that the command line and the JSON use.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use gradmesh_bench::wan::{MTU, Preset, Topology, uniform};

/// What lies between the peers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Link {
    Loopback,
    /// A namespace for each peer, all on one bridge; each sends and receives at this rate.
    Veth {
        bits_per_s: u64,
    },
    /// A namespace for each peer in an emulated network.
    Wan(Wide),
}

/// A wide-area network for the emulator.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wide {
    /// As a file describes it.
    File(PathBuf),
    /// By its name.
    Preset(Preset),
    /// A line for each site, and one round trip between any two.
    Uniform {
        mbit: u64,
        round_trip_ms: u32,
        /// `None`: each peer is one.
        sites: Option<u32>,
        /// Of the peers' devices, in bytes. `None`: that of Ethernet, 1500.
        mtu: Option<u32>,
    },
}

impl Wide {
    /// The network with hosts for `peers` peers.
    ///
    /// # Errors
    /// A file that cannot be read, or is no topology.
    pub(crate) fn topology(&self, peers: usize) -> anyhow::Result<Topology> {
        match self {
            Wide::File(file) => {
                let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
                Topology::from_toml(&text).with_context(|| file.display().to_string())
            }
            Wide::Preset(preset) => Ok(preset.topology(peers)),
            Wide::Uniform {
                mbit,
                round_trip_ms,
                sites,
                mtu,
            } => {
                let sites = sites.map_or(peers, |sites| sites as usize);
                let mut topology = uniform(peers, sites, *mbit, (*round_trip_ms).into());
                topology.mtu = mtu.unwrap_or(topology.mtu);
                Ok(topology)
            }
        }
    }
}

impl fmt::Display for Wide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wide::File(file) => write!(f, "{}", file.display()),
            Wide::Preset(preset) => write!(f, "{preset}"),
            Wide::Uniform {
                mbit,
                round_trip_ms,
                sites,
                mtu,
            } => {
                write!(f, "{mbit}mbit,{round_trip_ms}ms")?;
                sites.map_or(Ok(()), |sites| write!(f, ",{sites}sites"))?;
                mtu.map_or(Ok(()), |mtu| write!(f, ",mtu{mtu}"))
            }
        }
    }
}

impl FromStr for Wide {
    type Err = String;

    fn from_str(text: &str) -> Result<Wide, String> {
        if let Ok(preset) = text.parse() {
            return Ok(Wide::Preset(preset));
        }
        if let Some(wide) = uniform_named(text) {
            return Ok(wide);
        }
        if text.ends_with(".toml") || text.contains('/') {
            return Ok(Wide::File(text.into()));
        }
        let presets = Preset::ALL.map(Preset::name);
        Err(format!(
            "there is no network {text:?}: it is one of {}, a line for each peer such as 100mbit,50ms, a line for each of some \
             sites such as 100mbit,50ms,2sites, or a file FILE.toml",
            presets.join(", ")
        ))
    }
}

impl Link {
    pub(crate) fn bytes_per_s(&self) -> Option<f64> {
        match self {
            Link::Loopback | Link::Wan(_) => None,
            Link::Veth { bits_per_s } => Some(*bits_per_s as f64 / 8.0),
        }
    }
}

/// A site of an emulated network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) peers: u32,
}

/// `100mbit,50ms`, then `,2sites` and `,mtu9000` as needed.
fn uniform_named(text: &str) -> Option<Wide> {
    let mut words = text.split(',').peekable();
    let mbit = words.next()?.strip_suffix("mbit")?.parse().ok()?;
    let round_trip_ms = words.next()?.strip_suffix("ms")?.parse().ok()?;
    let sites = match words.next_if(|word| word.ends_with("sites")) {
        None => None,
        Some(word) => Some(word.strip_suffix("sites")?.parse().ok()?),
    };
    let mtu = match words.next() {
        None => None,
        Some(word) => Some(word.strip_prefix("mtu")?.parse().ok()?),
    };
    let is_sound = (1..=100_000).contains(&mbit)
        && round_trip_ms <= 10_000
        && sites.is_none_or(|sites| (1..=128).contains(&sites))
        && mtu.is_none_or(|mtu| MTU.contains(&mtu))
        && words.next().is_none();
    is_sound.then_some(Wide::Uniform {
        mbit,
        round_trip_ms,
        sites,
        mtu,
    })
}

/// Rates as tc writes them.
const RATES: [(&str, u64); 3] = [
    ("gbit", 1_000_000_000),
    ("mbit", 1_000_000),
    ("kbit", 1_000),
];

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Link::Loopback => f.write_str("loopback"),
            Link::Veth { bits_per_s } => {
                let whole = RATES
                    .into_iter()
                    .find(|(_, unit)| bits_per_s.is_multiple_of(*unit));
                match whole {
                    Some((name, unit)) => write!(f, "veth:{}{name}", bits_per_s / unit),
                    None => write!(f, "veth:{bits_per_s}bit"),
                }
            }
            Link::Wan(wide) => write!(f, "wan:{wide}"),
        }
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Link, String> {
        let unknown =
            || format!("{text:?} is none of loopback, veth:RATE such as veth:100mbit, wan:NETWORK");
        if text == "loopback" {
            return Ok(Link::Loopback);
        }
        match text.split_once(':') {
            Some(("veth", rate)) => {
                let of_unit = |(name, unit): (&str, u64)| {
                    let count: u64 = rate.strip_suffix(name)?.parse().ok()?;
                    count.checked_mul(unit)
                };
                let bits_per_s = RATES.into_iter().find_map(of_unit).ok_or_else(unknown)?;
                if bits_per_s < 1_000_000 {
                    return Err(format!(
                        "{text:?}: 1mbit is the least with which a mesh comes together"
                    ));
                }
                Ok(Link::Veth { bits_per_s })
            }
            Some(("wan", wide)) => Ok(Link::Wan(wide.parse()?)),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_written_as_they_are_read() {
        for text in [
            "loopback",
            "veth:100mbit",
            "veth:1gbit",
            "veth:1500kbit",
            "wan:a/b.toml",
            "wan:four-continents",
            "wan:100mbit,50ms",
            "wan:100mbit,50ms,2sites",
            "wan:100mbit,50ms,mtu9000",
            "wan:100mbit,50ms,2sites,mtu9000",
        ] {
            assert_eq!(text.parse::<Link>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "veth",
            "veth:100",
            "veth:0mbit",
            "veth:99999999999gbit",
            "wan:",
            "wan:moon",
            "wan:0mbit,50ms",
            "wan:100mbit",
            "wan:100mbit,-1ms",
            "wan:100mbit,50ms,0sites",
            "wan:100mbit,50ms,2sites,",
            "wan:100mbit,50ms,mtu100",
            "wan:100mbit,50ms,mtu9000,2sites",
            "lo",
        ] {
            assert!(text.parse::<Link>().is_err(), "{text}");
        }
        assert_eq!(
            "veth:100mbit".parse::<Link>().unwrap().bytes_per_s(),
            Some(12.5e6)
        );
    }
}
