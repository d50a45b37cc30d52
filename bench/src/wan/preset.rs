//! Networks by name, each with where its figures come from.
//!
//! Round trips are measured ones. Rates are either documented limits or round figures that this file calls so: what a line
//! carries differs more between two customers of one provider than between any two tables.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Link, Rate, Site, Topology};

/// A named network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Machines of one cluster, 10 Gbit/s.
    DataCentre,
    /// Two clusters on two sides of the Atlantic, 1 Gbit/s each.
    TwoRegions,
    /// A cluster on each of four continents, 500 Mbit/s each.
    FourContinents,
    /// Homes in one country: 300 Mbit/s down, 30 Mbit/s up.
    Home,
}

/// Round trips in milliseconds between Northern Virginia, Ireland, Singapore and São Paulo.
const CONTINENTS: [(&str, &str, f64); 6] = [
    ("virginia", "ireland", 80.5),
    ("virginia", "singapore", 216.7),
    ("virginia", "sao-paulo", 119.5),
    ("ireland", "singapore", 239.0),
    ("ireland", "sao-paulo", 191.3),
    ("singapore", "sao-paulo", 328.1),
];

impl Preset {
    /// All of them.
    pub const ALL: [Preset; 4] = [
        Preset::DataCentre,
        Preset::TwoRegions,
        Preset::FourContinents,
        Preset::Home,
    ];

    /// As the command line has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Preset::DataCentre => "data-centre",
            Preset::TwoRegions => "two-regions",
            Preset::FourContinents => "four-continents",
            Preset::Home => "home",
        }
    }

    /// Where its figures come from.
    #[must_use]
    pub const fn source(self) -> &'static str {
        match self {
            Preset::DataCentre => {
                "10 Gbit/s: the most that one flow gets inside an EC2 cluster placement group (Amazon EC2 User Guide, \
                 \"Amazon EC2 instance network bandwidth\"). Round trip 0.25 ms: the least that was measured inside one \
                 EC2 zone (xkyle.com, \"Measuring AWS Region and AZ Latency\")"
            }
            Preset::TwoRegions => {
                "Round trip 80.5 ms, Northern Virginia to Ireland, measured 2017 (table of latencies between AWS regions, \
                 acomputerscientistlearnsaws.blogspot.com, \"AWS Regions\"). 1 Gbit/s in and out of a region: a round figure"
            }
            Preset::FourContinents => {
                "Round trips of 80.5 to 328.1 ms between Northern Virginia, Ireland, Singapore and Sao Paulo, measured 2017 \
                 (table of latencies between AWS regions, acomputerscientistlearnsaws.blogspot.com, \"AWS Regions\"). \
                 500 Mbit/s in and out of a continent: a round figure"
            }
            Preset::Home => {
                "300 Mbit/s down, 30 Mbit/s up, round trip 30 ms, 0.1 % loss: round figures of the order that the FCC \
                 measures for cable in the United States (Measuring Broadband America, Thirteenth Report; it counts loss \
                 below 0.4 % as the best of three classes)"
            }
        }
    }

    /// The network with hosts for `peers` peers that take a host at each site in turn.
    #[must_use]
    pub fn topology(self, peers: usize) -> Topology {
        match self {
            Preset::DataCentre => Topology::default().with_site(Site {
                lan: data_centre(),
                ..Site::new("cluster", peers.max(1))
            }),
            Preset::TwoRegions => shared(&["virginia", "ireland"], peers, 1000, round_trip(80.5)),
            Preset::FourContinents => {
                let names = ["virginia", "ireland", "singapore", "sao-paulo"];
                let topology = shared(&names, peers, 500, Link::default());
                let there = |name: &str| topology.site_index(name).is_some();
                let pairs = CONTINENTS
                    .into_iter()
                    .filter(|(a, b, _)| there(a) && there(b));
                pairs.fold(topology.clone(), |all, (a, b, ms)| {
                    all.with_links(a, b, round_trip(ms))
                })
            }
            Preset::Home => (0..peers.max(1)).fold(
                Topology {
                    between: round_trip(30.0).with_loss(0.001),
                    ..Topology::default()
                },
                |all, home| {
                    all.with_site(Site {
                        uplink: Some(Rate::mbit(30)),
                        downlink: Some(Rate::mbit(300)),
                        ..Site::new(&format!("home-{home}"), 1)
                    })
                },
            ),
        }
    }
}

/// `sites` sites that share `peers` hosts, each behind an access line of `mbit` times 10^6 bits per second both ways, with a round
/// trip of `round_trip_ms` between any two; inside, a data centre.
#[must_use]
pub fn uniform(peers: usize, sites: usize, mbit: u64, round_trip_ms: f64) -> Topology {
    let names: Vec<String> = (0..sites).map(|site| format!("site-{site}")).collect();
    shared(&names, peers, mbit, round_trip(round_trip_ms))
}

/// Sites behind access lines of `mbit`, with `peers` hosts dealt to them in turn; a site without a host is none.
fn shared(names: &[impl AsRef<str>], peers: usize, mbit: u64, between: Link) -> Topology {
    let sites = names.len();
    let all = Topology {
        between,
        ..Topology::default()
    };
    (0..sites.min(peers)).fold(all, |all, place| {
        all.with_site(Site {
            lan: data_centre(),
            ..Site::new(names[place].as_ref(), (peers + sites - 1 - place) / sites)
                .with_access_mbit(mbit)
        })
    })
}

fn data_centre() -> Link {
    round_trip(0.25).with_mbit(10_000)
}

fn round_trip(ms: f64) -> Link {
    Link::delayed(Duration::from_secs_f64(ms / 2000.0))
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Preset, String> {
        let known = Preset::ALL.into_iter().find(|preset| preset.name() == text);
        known.ok_or_else(|| {
            let names = Preset::ALL.map(Preset::name);
            format!("{text:?} is none of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_has_a_host_for_each_peer_and_is_valid() {
        for preset in Preset::ALL {
            for peers in [1, 2, 3, 4, 5, 8, 64] {
                let topology = preset.topology(peers);
                topology.validate().unwrap();
                assert_eq!(topology.host_sites().len(), peers, "{preset}");
                assert!(preset.name().parse() == Ok(preset) && !preset.source().is_empty());
            }
        }
        assert!(
            "moon"
                .parse::<Preset>()
                .unwrap_err()
                .contains("two-regions")
        );
    }

    #[test]
    fn sites_share_the_peers_evenly() {
        let topology = Preset::FourContinents.topology(6);
        let hosts: Vec<usize> = topology.sites.iter().map(|site| site.hosts).collect();
        assert_eq!(hosts, [2, 2, 1, 1]);
        let between = |a, b| topology.link(a, b).delay;
        assert_eq!(between(2, 3), Duration::from_secs_f64(0.328_1 / 2.0));
    }

    #[test]
    fn a_uniform_network_has_a_line_for_each_site() {
        let topology = uniform(8, 8, 100, 50.0);
        topology.validate().unwrap();
        assert_eq!(topology.sites.len(), 8);
        assert_eq!(topology.link(0, 7).delay, Duration::from_millis(25));
        assert_eq!(topology.sites[3].uplink, Some(Rate::mbit(100)));
        let topology = uniform(5, 2, 100, 50.0);
        let hosts: Vec<usize> = topology.sites.iter().map(|site| site.hosts).collect();
        assert_eq!(hosts, [3, 2]);
    }
}
