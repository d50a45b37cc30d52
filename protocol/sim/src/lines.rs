//! The lines that the peers of a site share: all that they send to other sites goes out over one, all that they receive from
//! other sites comes in over another.
//!
//! Rule `in-turn`: a line serves its flows in turn, one message at a time. Bulk between two peers is a flow; everything else
//! goes before all bulk, in order. So flows share a line evenly, as they do in the network, where packets of a few bytes do
//! not wait for a frame. Nothing is lost, and queues have no end: senders that keep to their share fill none.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use crate::options::{Large, Options};
use crate::peer::Packet;

/// A message between two sites.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The sender.
    pub from: usize,
    /// The receiver.
    pub to: usize,
    /// Its bytes, overhead included.
    pub bytes: u64,
    /// The message.
    pub packet: Packet,
}

/// One of the two lines of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineId {
    /// From the site to all others.
    Up(usize),
    /// To the site from all others.
    Down(usize),
}

/// All lines of a run.
#[derive(Debug)]
pub struct Lines {
    /// The site of each peer.
    sites: Vec<usize>,
    up: Vec<Line>,
    down: Vec<Line>,
    bytes_per_s: u64,
    /// From the end of one line to the begin of the other.
    pub one_way_us: u64,
}

#[derive(Debug, Default)]
struct Line {
    control: VecDeque<Parcel>,
    bulk: BTreeMap<(usize, usize), VecDeque<Parcel>>,
    /// The bulk flow that was served last.
    last: (usize, usize),
    /// What is on the line now.
    serving: Option<Parcel>,
}

impl Lines {
    /// Idle lines for the sites of `options`.
    pub fn new(options: &Options, large: &Large) -> Lines {
        let mut places = BTreeMap::new();
        let mut sites = Vec::with_capacity(options.peers.len());
        for peer in &options.peers {
            let next = places.len();
            sites.push(*places.entry(peer.link.site).or_insert(next));
        }
        let idle = || places.iter().map(|_| Line::default()).collect();
        Lines {
            sites,
            up: idle(),
            down: idle(),
            bytes_per_s: large.site_bytes_per_s,
            one_way_us: large.one_way_us,
        }
    }

    /// Whether a message between the two goes over shared lines.
    pub fn lies_between(&self, a: usize, b: usize) -> bool {
        self.sites[a] != self.sites[b]
    }

    /// The line over which messages of `peer` leave its site.
    pub fn up_from(&self, peer: usize) -> LineId {
        LineId::Up(self.sites[peer])
    }

    /// The line over which messages for `peer` come into its site.
    pub fn down_to(&self, peer: usize) -> LineId {
        LineId::Down(self.sites[peer])
    }

    /// Puts `parcel` in line. If the line was idle: how long, in microseconds, until [`Lines::passed`] is to be called.
    pub fn enter(&mut self, id: LineId, parcel: Parcel) -> Option<u64> {
        let line = self.line(id);
        match &parcel.packet {
            Packet::Blob(_, Some(_)) => {
                let flow = line.bulk.entry((parcel.from, parcel.to)).or_default();
                flow.push_back(parcel);
            }
            Packet::Gossip(_)
            | Packet::Ask(..)
            | Packet::Answer(..)
            | Packet::AskBlob(..)
            | Packet::Blob(_, None) => line.control.push_back(parcel),
        }
        match line.serving {
            None => self.serve(id),
            Some(_) => None,
        }
    }

    /// The line has served a message: that message, and how long until it has served the next one, if there is one.
    pub fn passed(&mut self, id: LineId) -> (Option<Parcel>, Option<u64>) {
        let parcel = self.line(id).serving.take();
        (parcel, self.serve(id))
    }

    fn line(&mut self, id: LineId) -> &mut Line {
        match id {
            LineId::Up(site) => &mut self.up[site],
            LineId::Down(site) => &mut self.down[site],
        }
    }

    fn serve(&mut self, id: LineId) -> Option<u64> {
        let bytes_per_s = self.bytes_per_s;
        let line = self.line(id);
        let parcel = line.control.pop_front().or_else(|| line.next_bulk())?;
        let us = (parcel.bytes * 1_000_000).div_ceil(bytes_per_s);
        line.serving = Some(parcel);
        Some(us)
    }
}

impl Line {
    fn next_bulk(&mut self) -> Option<Parcel> {
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let flow = self.bulk.range(after).next().or(self.bulk.iter().next());
        let flow = *flow?.0;
        self.last = flow;
        let queue = self.bulk.get_mut(&flow)?;
        let parcel = queue.pop_front();
        if queue.is_empty() {
            self.bulk.remove(&flow);
        }
        parcel
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Wish;
    use gradmesh_protocol::hash::Hash;
    use gradmesh_protocol::manifest::SiteId;

    fn lines() -> Lines {
        let mut options = Options::new(1);
        for (place, peer) in options.peers.iter_mut().enumerate() {
            peer.link.site = SiteId::named(if place < 2 { "a" } else { "b" });
        }
        let large = Large {
            site_bytes_per_s: 1_000_000,
            ..Large::default()
        };
        Lines::new(&options, &large)
    }

    fn blob(to: usize) -> Parcel {
        let packet = Packet::Blob(0, Some(Vec::new().into()));
        let (from, bytes) = (0, 1000);
        Parcel {
            from,
            to,
            bytes,
            packet,
        }
    }

    #[test]
    fn flows_take_turns_and_small_messages_go_first() {
        let mut lines = lines();
        assert!(!lines.lies_between(0, 1) && lines.lies_between(1, 2));
        let up = lines.up_from(0);
        assert_eq!(lines.enter(up, blob(2)), Some(1000));
        for to in [2, 2, 3] {
            assert_eq!(lines.enter(up, blob(to)), None);
        }
        let ask = Parcel {
            packet: Packet::AskBlob(0, Hash::ZERO, Wish::Now),
            ..blob(9)
        };
        lines.enter(up, ask);
        let mut order = Vec::new();
        loop {
            let (parcel, next) = lines.passed(up);
            order.extend(parcel.map(|parcel| parcel.to));
            if next.is_none() {
                break;
            }
        }
        assert_eq!(order, [2, 9, 3, 2, 2]);
        // The other direction was never used.
        assert!(lines.passed(lines.down_to(0)).0.is_none());
    }
}
