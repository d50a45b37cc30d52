//! What lies between the peers, by the names that the command line and the JSON use.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What lies between the peers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Link {
    Loopback,
    /// A namespace for each peer, all on one bridge; each sends and receives at this rate.
    Veth {
        bits_per_s: u64,
    },
    /// As a file describes it, for the emulator of wide-area networks.
    Wan(PathBuf),
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
            Link::Wan(file) => write!(f, "wan:{}", file.display()),
        }
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Link, String> {
        let unknown =
            || format!("{text:?} is none of loopback, veth:RATE such as veth:100mbit, wan:FILE");
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
            Some(("wan", file)) if !file.is_empty() => Ok(Link::Wan(file.into())),
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
