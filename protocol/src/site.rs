//! The site that a newcomer names: that of a member so near that the network between them is a fast one.
//!
//! Round-trip times differ from peer to peer and from moment to moment, so they decide nothing that peers have to agree on:
//! what a newcomer concludes from its own stands in its signed `Join`, and the roster carries it from then on.

use crate::key::PeerKey;
use crate::manifest::SiteId;

/// Round trips below this stay within a building or a data centre: light goes 200 km in fibre and back in 2 ms, and a
/// home's access line alone takes longer. In microseconds; a guess.
pub const NEAR_US: u64 = 2_000;

/// The site of the nearest peer with a site whose round trip is below [`NEAR_US`]; that of the smaller key among equals;
/// `own` if there is none.
///
/// `round_trips`: microseconds to peers, members or not. `site_of`: the site of a member, as the roster has it.
pub fn site_of_newcomer(
    own: SiteId,
    round_trips: impl IntoIterator<Item = (PeerKey, u64)>,
    site_of: impl Fn(&PeerKey) -> Option<SiteId>,
) -> SiteId {
    round_trips
        .into_iter()
        .filter(|(_, micros)| *micros < NEAR_US)
        .filter_map(|(peer, micros)| Some((micros, peer, site_of(&peer)?)))
        .min()
        .map_or(own, |(_, _, site)| site)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> PeerKey {
        PeerKey([number; 32])
    }

    #[test]
    fn a_newcomer_is_in_the_site_of_the_nearest_member_that_is_near() {
        let own = SiteId::alone(&key(9));
        let (a, b) = (SiteId::named("a"), SiteId::named("b"));
        let members = [(key(1), a), (key(2), b)];
        let site_of = |peer: &PeerKey| {
            let member = members.iter().find(|(member, _)| member == peer);
            member.map(|(_, site)| *site)
        };
        let site = |round_trips: &[(u8, u64)]| {
            let round_trips = round_trips.iter().map(|(peer, us)| (key(*peer), *us));
            site_of_newcomer(own, round_trips, site_of)
        };
        assert_eq!(site(&[]), own);
        assert_eq!(site(&[(1, NEAR_US), (2, 40_000)]), own);
        assert_eq!(site(&[(1, 1999), (2, 300)]), b);
        assert_eq!(site(&[(2, 300), (1, 300)]), a);
        // Somebody who is no member has no site to be in.
        assert_eq!(site(&[(7, 1), (1, 500)]), a);
    }
}
