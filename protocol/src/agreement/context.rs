//! The types that the BFT engine works on.
//!
//! Two meanings of "round" meet here. A gradmesh round is the engine's *height*: one decision each. The engine's own
//! *round* is one attempt at that decision, with its own proposer.

use std::fmt;

use arc_malachitebft_core_types as bft;
use bft::{NilOrVal, Round, SignedExtension, VoteType};

use crate::decision::Decision;
use crate::hash::Hash;
use crate::key::{PeerKey, Signature};
use crate::manifest::{RoundId, RunId};
use crate::roster::{Member, Roster};

const VOTE_DOMAIN: &str = "gradmesh vote v1";
const PROPOSAL_DOMAIN: &str = "gradmesh proposal v1";

/// Ties the engine to gradmesh's types. Holds the run, which goes into what is signed.
#[derive(Clone, Debug)]
pub struct Context {
    /// The run whose rounds are decided.
    pub run: RunId,
}

impl bft::Address for PeerKey {}

impl bft::Height for RoundId {
    const ZERO: Self = RoundId(0);
    const INITIAL: Self = RoundId(0);

    fn increment_by(&self, n: u64) -> Self {
        RoundId(self.0.saturating_add(n))
    }

    fn decrement_by(&self, n: u64) -> Option<Self> {
        self.0.checked_sub(n).map(RoundId)
    }

    fn as_u64(&self) -> u64 {
        self.0
    }
}

impl bft::Value for Decision {
    type Id = Hash;

    fn id(&self) -> Hash {
        Decision::id(self)
    }
}

/// gradmesh sends a proposal whole; parts are not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPart {}

impl bft::ProposalPart<Context> for NoPart {
    fn is_first(&self) -> bool {
        match *self {}
    }

    fn is_last(&self) -> bool {
        match *self {}
    }
}

/// Timeouts are counted by the node (see [`crate::agreement`]); the engine only names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeTimeouts;

impl bft::Timeouts<Context> for NodeTimeouts {
    fn duration_for(&self, _: bft::Timeout) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// One voter: a roster member with its votes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    key: PeerKey,
    power: u32,
}

impl Voter {
    /// Who it is.
    pub fn key(&self) -> PeerKey {
        self.key
    }
}

impl From<&Member> for Voter {
    fn from(member: &Member) -> Voter {
        Voter {
            key: member.peer,
            power: member.power,
        }
    }
}

impl bft::Validator<Context> for Voter {
    fn address(&self) -> &PeerKey {
        &self.key
    }

    fn public_key(&self) -> &PeerKey {
        &self.key
    }

    fn voting_power(&self) -> u64 {
        self.power.into()
    }
}

/// The voters of one round, in the roster's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voters(Vec<Voter>);

impl From<&Roster> for Voters {
    fn from(roster: &Roster) -> Voters {
        Voters(roster.members().iter().map(Voter::from).collect())
    }
}

/// 2^64 divided by the golden ratio: its multiples, modulo 2^64, spread evenly over the line from the first on (Knuth, The
/// Art of Computer Programming, volume 3, section 6.4).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Voters {
    /// Whose turn the `turn`-th is, by rule `turns-follow-power`.
    ///
    /// With unequal powers the voters lie side by side on a line, each as long as its power, and the turns fall on it at
    /// multiples of the golden ratio. A voter with a share p of the power has about every 1 / p-th turn, and two turns in a
    /// row are 0.38 of the line apart: one that is gone, with less than a third, never has both. If each had its turn
    /// whatever its power, many small members that are gone could make most attempts fail.
    fn of_turn(&self, turn: u64) -> &Voter {
        let (first, last) = match self.0.as_slice() {
            [] => panic!("a roster without members decides nothing"),
            [first, ..] => (first, &self.0[self.0.len() - 1]),
        };
        if self.0.iter().all(|voter| voter.power == first.power) {
            return &self.0[(turn % self.0.len() as u64) as usize];
        }
        let line = u128::from(bft::ValidatorSet::total_voting_power(self));
        let point = (u128::from(turn.wrapping_mul(GOLDEN)) * line) >> 64;
        let mut end = 0;
        let hit = self.0.iter().find(|voter| {
            end += u128::from(voter.power);
            point < end
        });
        hit.unwrap_or(last)
    }
}

impl bft::ValidatorSet<Context> for Voters {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn total_voting_power(&self) -> u64 {
        self.0.iter().map(|voter| u64::from(voter.power)).sum()
    }

    fn get_by_address(&self, address: &PeerKey) -> Option<&Voter> {
        let place = self.0.binary_search_by_key(address, |v| v.key).ok()?;
        self.0.get(place)
    }

    fn get_by_index(&self, index: usize) -> Option<&Voter> {
        self.0.get(index)
    }
}

/// A vote for a value or for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Prevote or precommit.
    pub kind: VoteType,
    /// The gradmesh round.
    pub height: RoundId,
    /// The attempt.
    pub round: Round,
    /// Id of the decision voted for.
    pub value: NilOrVal<Hash>,
    /// Who votes.
    pub voter: PeerKey,
}

impl Vote {
    /// What the voter signs.
    pub fn hash(&self, run: &RunId) -> Hash {
        let mut body = Vec::with_capacity(128);
        body.extend_from_slice(&run.0.0);
        body.extend_from_slice(&self.height.0.to_le_bytes());
        body.extend_from_slice(&self.round.as_i64().to_le_bytes());
        body.push(match self.kind {
            VoteType::Prevote => 1,
            VoteType::Precommit => 2,
        });
        body.extend_from_slice(&self.voter.0);
        match &self.value {
            NilOrVal::Nil => body.push(0),
            NilOrVal::Val(id) => {
                body.push(1);
                body.extend_from_slice(&id.0);
            }
        }
        Hash::in_domain(VOTE_DOMAIN, &body)
    }
}

impl bft::Vote<Context> for Vote {
    fn height(&self) -> RoundId {
        self.height
    }

    fn round(&self) -> Round {
        self.round
    }

    fn value(&self) -> &NilOrVal<Hash> {
        &self.value
    }

    fn take_value(self) -> NilOrVal<Hash> {
        self.value
    }

    fn vote_type(&self) -> VoteType {
        self.kind
    }

    fn validator_address(&self) -> &PeerKey {
        &self.voter
    }

    fn extension(&self) -> Option<&SignedExtension<Context>> {
        None
    }

    fn take_extension(&mut self) -> Option<SignedExtension<Context>> {
        None
    }

    fn extend(self, _: SignedExtension<Context>) -> Self {
        self
    }
}

/// A decision proposed for a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The gradmesh round.
    pub height: RoundId,
    /// The attempt.
    pub round: Round,
    /// The proposed decision.
    pub value: Decision,
    /// The earlier attempt in which a quorum prevoted for the value, if any.
    pub pol_round: Round,
    /// Who proposes.
    pub proposer: PeerKey,
}

impl Proposal {
    /// What the proposer signs.
    pub fn hash(&self, run: &RunId) -> Hash {
        let mut body = Vec::with_capacity(128);
        body.extend_from_slice(&run.0.0);
        body.extend_from_slice(&self.height.0.to_le_bytes());
        body.extend_from_slice(&self.round.as_i64().to_le_bytes());
        body.extend_from_slice(&self.pol_round.as_i64().to_le_bytes());
        body.extend_from_slice(&self.proposer.0);
        body.extend_from_slice(&self.value.id().0);
        Hash::in_domain(PROPOSAL_DOMAIN, &body)
    }
}

impl bft::Proposal<Context> for Proposal {
    fn height(&self) -> RoundId {
        self.height
    }

    fn round(&self) -> Round {
        self.round
    }

    fn value(&self) -> &Decision {
        &self.value
    }

    fn take_value(self) -> Decision {
        self.value
    }

    fn pol_round(&self) -> Round {
        self.pol_round
    }

    fn validator_address(&self) -> &PeerKey {
        &self.proposer
    }
}

/// ed25519 over domain-separated hashes; the node signs and verifies, never the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ed25519;

/// A signature or key of the wrong length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongLength;

impl fmt::Display for WrongLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a signature is 64 bytes, a key 32")
    }
}

impl bft::SigningScheme for Ed25519 {
    type DecodingError = WrongLength;
    type Signature = Signature;
    type PublicKey = PeerKey;
    type PrivateKey = ();

    fn decode_signature(bytes: &[u8]) -> Result<Signature, WrongLength> {
        Signature::from_slice(bytes).ok_or(WrongLength)
    }

    fn encode_signature(signature: &Signature) -> Vec<u8> {
        signature.0.to_vec()
    }

    fn decode_public_key(bytes: &[u8]) -> Result<PeerKey, WrongLength> {
        PeerKey::from_slice(bytes).ok_or(WrongLength)
    }

    fn encode_public_key(key: &PeerKey) -> Vec<u8> {
        key.0.to_vec()
    }
}

impl bft::Context for Context {
    type Address = PeerKey;
    type Height = RoundId;
    type ProposalPart = NoPart;
    type Proposal = Proposal;
    type Validator = Voter;
    type ValidatorSet = Voters;
    type Timeouts = NodeTimeouts;
    type Value = Decision;
    type Vote = Vote;
    type Extension = Vec<u8>;
    type SigningScheme = Ed25519;

    /// The proposer changes with rounds and attempts. Rule `turns-follow-power`: members of equal power take turns;
    /// otherwise each proposes in proportion to its power, spread evenly.
    fn select_proposer<'a>(&self, voters: &'a Voters, height: RoundId, round: Round) -> &'a Voter {
        let attempt = u64::from(round.as_u32().unwrap_or(0));
        voters.of_turn(height.0.wrapping_add(attempt))
    }

    fn new_proposal(
        &self,
        height: RoundId,
        round: Round,
        value: Decision,
        pol_round: Round,
        proposer: PeerKey,
    ) -> Proposal {
        Proposal {
            height,
            round,
            value,
            pol_round,
            proposer,
        }
    }

    fn new_prevote(
        &self,
        height: RoundId,
        round: Round,
        value: NilOrVal<Hash>,
        voter: PeerKey,
    ) -> Vote {
        Vote {
            kind: VoteType::Prevote,
            height,
            round,
            value,
            voter,
        }
    }

    fn new_precommit(
        &self,
        height: RoundId,
        round: Round,
        value: NilOrVal<Hash>,
        voter: PeerKey,
    ) -> Vote {
        Vote {
            kind: VoteType::Precommit,
            height,
            round,
            value,
            voter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(powers: &[u32]) -> Voters {
        let voter = |(place, power): (usize, &u32)| Voter {
            key: PeerKey([place as u8; 32]),
            power: *power,
        };
        Voters(powers.iter().enumerate().map(voter).collect())
    }

    fn turns(powers: &[u32], count: u64) -> Vec<u8> {
        let voters = voters(powers);
        (0..count)
            .map(|turn| voters.of_turn(turn).key.0[0])
            .collect()
    }

    #[test]
    fn members_of_equal_power_take_turns() {
        assert_eq!(turns(&[7, 7, 7], 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(turns(&[1], 2), [0, 0]);
    }

    #[test]
    fn unequal_members_propose_in_proportion_to_their_power() {
        let powers = [6000, 2500, 1000, 499, 1];
        let turns = turns(&powers, 10_000);
        for (place, power) in powers.into_iter().enumerate() {
            let found = turns.iter().filter(|t| usize::from(**t) == place).count();
            // The discrepancy of the golden ratio is below a handful of points over ten thousand.
            assert!(found.abs_diff(power as usize) <= 6, "{place}: {found}");
        }
    }

    #[test]
    fn one_that_is_gone_with_less_than_a_third_never_has_two_turns_in_a_row() {
        for place in 0..4 {
            let mut powers = [2300, 2233, 2134, 0];
            powers.rotate_right(place);
            powers[(place + 3) % 4] = 3333;
            let heavy = ((place + 3) % 4) as u8;
            let turns = turns(&powers, 10_000);
            assert!(turns.windows(2).all(|pair| pair != [heavy; 2]));
        }
    }

    #[test]
    fn the_largest_powers_do_not_overflow() {
        let most = voters(&[u32::MAX; 64]);
        let power = bft::ValidatorSet::total_voting_power(&most);
        assert_eq!(power, 64 * u64::from(u32::MAX));
        let quorum = super::super::quorum(crate::manifest::TrustMode::Byzantine, power);
        assert_eq!(quorum, power / 3 * 2 + 1);
        let mut powers = [u32::MAX; 64];
        powers[63] = 1;
        assert!(turns(&powers, 1000).iter().all(|place| *place < 64));
    }
}
