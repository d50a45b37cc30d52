//! Topologies as TOML. `bench/examples/three-sites.toml` has every key; units are in their names, unknown keys are refused.

use std::time::Duration;

use serde::Deserialize;

use super::{Link, NatKind, Rate, Site, Topology, TopologyError};

impl Topology {
    /// Reads and validates a topology.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn from_toml(text: &str) -> Result<Self, TopologyError> {
        let file: TopologyFile = toml::from_str(text)?;
        let topology = Self::from(file);
        topology.validate()?;
        Ok(topology)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopologyFile {
    #[serde(default = "mtu_default")]
    mtu: u32,
    #[serde(default)]
    seed: u64,
    site: Vec<SiteFile>,
    #[serde(default)]
    between: LinkFile,
    #[serde(default)]
    link: Vec<PairFile>,
}

fn mtu_default() -> u32 {
    Topology::default().mtu
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteFile {
    name: String,
    #[serde(default = "one")]
    hosts: usize,
    #[serde(default)]
    lan: LinkFile,
    uplink_mbit: Option<f64>,
    downlink_mbit: Option<f64>,
    nat: Option<NatKind>,
}

fn one() -> usize {
    1
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LinkFile {
    delay_ms: f64,
    jitter_ms: f64,
    loss: f64,
    rate_mbit: Option<f64>,
    queue_kib: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PairFile {
    from: String,
    to: String,
    #[serde(default)]
    both: bool,
    #[serde(default)]
    delay_ms: f64,
    #[serde(default)]
    jitter_ms: f64,
    #[serde(default)]
    loss: f64,
    rate_mbit: Option<f64>,
    queue_kib: Option<u64>,
}

impl From<TopologyFile> for Topology {
    fn from(file: TopologyFile) -> Self {
        let mut links = Vec::new();
        for pair in file.link {
            let link = Link::from(LinkFile {
                delay_ms: pair.delay_ms,
                jitter_ms: pair.jitter_ms,
                loss: pair.loss,
                rate_mbit: pair.rate_mbit,
                queue_kib: pair.queue_kib,
            });
            if pair.both {
                links.push((pair.to.clone(), pair.from.clone(), link));
            }
            links.push((pair.from, pair.to, link));
        }
        Self {
            sites: file.site.into_iter().map(Site::from).collect(),
            links,
            between: Link::from(file.between),
            mtu: file.mtu,
            seed: file.seed,
        }
    }
}

impl From<SiteFile> for Site {
    fn from(file: SiteFile) -> Self {
        Self {
            name: file.name,
            hosts: file.hosts,
            lan: Link::from(file.lan),
            uplink: file.uplink_mbit.map(|mbit| rate(mbit, None)),
            downlink: file.downlink_mbit.map(|mbit| rate(mbit, None)),
            nat: file.nat,
        }
    }
}

impl From<LinkFile> for Link {
    fn from(file: LinkFile) -> Self {
        Self {
            delay: millis(file.delay_ms),
            jitter: millis(file.jitter_ms),
            loss: file.loss,
            rate: file.rate_mbit.map(|mbit| rate(mbit, file.queue_kib)),
        }
    }
}

/// A negative or endless number becomes a duration that validation refuses.
fn millis(millis: f64) -> Duration {
    Duration::try_from_secs_f64(millis / 1e3).unwrap_or(Duration::MAX)
}

/// A negative or endless number becomes a rate that validation refuses: `as` saturates.
fn rate(mbit: f64, queue_kib: Option<u64>) -> Rate {
    Rate {
        bits_per_s: (mbit * 1e6).round() as u64,
        queue_bytes: queue_kib.map(|kib| kib.saturating_mul(1024)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_example_holds_every_key_and_is_valid() {
        let topology = Topology::from_toml(include_str!("../../../examples/three-sites.toml"))
            .expect("the example is valid");
        assert_eq!(topology.host_sites(), [0, 0, 0, 1, 1, 1, 2]);
        let (ams, nyc, home) = (0, 1, 2);
        assert_eq!(topology.link(ams, nyc), topology.link(nyc, ams));
        assert_eq!(topology.link(ams, nyc).delay, Duration::from_millis(40));
        assert_eq!(
            topology.link(ams, nyc).rate.unwrap().bits_per_s,
            200_000_000
        );
        assert_eq!(topology.link(home, ams), topology.between);
        assert_eq!(topology.sites[home].uplink, Some(Rate::mbit(40)));
        let hosts: Vec<_> = topology.hosts().collect();
        assert_eq!(topology.sites[home].nat, Some(NatKind::PortRestricted));
        assert_eq!(hosts[4].0, "nyc-1");
        assert_eq!(hosts[4].2, Ipv4Addr::new(10, 2, 0, 2));
    }

    #[test]
    fn the_other_examples_are_valid() {
        let two = Topology::from_toml(include_str!("../../../examples/two-sites.toml"));
        assert_eq!(two.expect("valid").host_sites(), [0, 0, 0, 1, 1, 1]);
        let thin = Topology::from_toml(include_str!("../../../examples/thin.toml"));
        let farm = thin.expect("valid").sites[2].uplink;
        assert_eq!(farm, Some(Rate::mbit(20)));
        let nat = Topology::from_toml(include_str!("../../../examples/nat.toml")).expect("valid");
        let boxes = nat.sites.iter().filter_map(|site| site.nat);
        let boxes: Vec<_> = boxes.collect();
        assert_eq!(boxes, [NatKind::PortRestricted, NatKind::Symmetric]);
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let text = r#"
            mtu = 100
            site = [{ name = "a" }, { name = "a", hosts = 0 }, { name = "B!" }]
            [between]
            loss = 1.5
            delay_ms = -1
            [[link]]
            from = "a"
            to = "c"
            rate_mbit = 0
            jitter_ms = 3
            queue_kib = 0
        "#;
        let error = Topology::from_toml(text).unwrap_err().to_string();
        for fault in [
            "mtu 100",
            "\"a\" is there twice",
            "\"a\" has no host",
            "\"B!\": a name is",
            "between: loss 1.5",
            "between: delay",
            "no site \"c\"",
            "rate 0 bit/s",
            "jitter 3ms is more than the delay 0ns",
            "a queue of no bytes",
        ] {
            assert!(error.contains(fault), "{fault:?} is missing in {error}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = Topology::from_toml("site = [{ name = \"a\", delay = 3 }]").unwrap_err();
        assert!(error.to_string().contains("delay"), "{error}");
    }
}
