//! The ticket: one line of text with which a peer joins a run.
//!
//! `gm1` followed by base58 of the ticket's bytes and four bytes of checksum. It carries the run's hash, addresses and
//! the launcher's key and signature; everything else is fetched and checked against the hash.

use std::fmt;
use std::str::FromStr;

use crate::hash::Hash;
use crate::key::{Keypair, PeerKey, Signature};
use crate::manifest::RunId;
use crate::wire;

/// The most addresses in a ticket.
pub const ADDRESSES_MAX: usize = 16;
/// The longest ticket that is looked at.
pub const TICKET_CHARS_MAX: usize = 8192;

const PREFIX: &str = "gm1";
const SIGNATURE_DOMAIN: &str = "gradmesh ticket v1";
const CHECKSUM_DOMAIN: &str = "gradmesh ticket checksum v1";
const CHECKSUM_BYTES: usize = 4;

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The run.
    pub run: RunId,
    /// Its launcher.
    pub launcher: PeerKey,
    /// Where the launcher listens: multiaddresses that end in its peer id.
    pub addresses: Vec<String>,
    /// The launcher's signature over all of it.
    pub signature: Signature,
}

/// Why a text is no ticket. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// No ticket at all.
    #[error(
        "this is no ticket: a ticket begins with \"gm1\"; copy the whole line that `gradmesh launch` printed"
    )]
    NotATicket,
    /// A character is wrong, missing or too many.
    #[error(
        "the ticket was changed or cut off on its way ({0}); copy the whole line that `gradmesh launch` printed again"
    )]
    Damaged(&'static str),
    /// The checksum holds but the signature does not: somebody made it up.
    #[error(
        "the ticket is not signed by the launcher that it names; ask the launcher for a new one"
    )]
    BadSignature,
}

impl Ticket {
    /// A ticket of `launcher` for `run`.
    ///
    /// # Panics
    /// If there are more than [`ADDRESSES_MAX`] addresses.
    pub fn sign(run: RunId, addresses: Vec<String>, launcher: &Keypair) -> Ticket {
        assert!(addresses.len() <= ADDRESSES_MAX, "too many addresses");
        let mut ticket = Ticket {
            run,
            launcher: launcher.public(),
            addresses,
            signature: Signature([0; 64]),
        };
        ticket.signature = launcher.sign(&ticket.signed_hash());
        ticket
    }

    fn signed_hash(&self) -> Hash {
        let unsigned = Ticket {
            signature: Signature([0; 64]),
            ..self.clone()
        };
        Hash::in_domain(SIGNATURE_DOMAIN, &wire::encode_ticket(&unsigned))
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Hash::in_domain(CHECKSUM_DOMAIN, body);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hash.0[..CHECKSUM_BYTES]);
    sum
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = wire::encode_ticket(self);
        bytes.extend_from_slice(&checksum(&bytes));
        write!(f, "{PREFIX}{}", bs58::encode(bytes).into_string())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Ticket, TicketError> {
        let encoded = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(TicketError::NotATicket)?;
        if encoded.len() > TICKET_CHARS_MAX {
            return Err(TicketError::Damaged("too long"));
        }
        let bytes = bs58::decode(encoded)
            .into_vec()
            .map_err(|_| TicketError::Damaged("not base58"))?;
        let (body, sum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(TicketError::Damaged("too short"))?;
        if checksum(body) != *sum {
            return Err(TicketError::Damaged("the checksum differs"));
        }
        let ticket = wire::decode_ticket(body)
            .map_err(|_| TicketError::Damaged("its fields are not sound"))?;
        if !ticket
            .launcher
            .verify(&ticket.signed_hash(), &ticket.signature)
        {
            return Err(TicketError::BadSignature);
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let launcher = Keypair::from_seed(&[3; 32]);
        let run = RunId(Hash::of_content(b"run"));
        let addresses = vec!["/ip4/127.0.0.1/udp/7171/quic-v1".to_string()];
        Ticket::sign(run, addresses, &launcher)
    }

    #[test]
    fn a_ticket_survives_its_text_form() {
        let text = ticket().to_string();
        assert!(text.starts_with("gm1"));
        assert_eq!(format!(" {text}\n").parse(), Ok(ticket()));
    }

    #[test]
    fn any_changed_character_is_noticed() {
        let text = ticket().to_string();
        for place in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[place] = if bytes[place] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(changed.parse::<Ticket>().is_err(), "place {place}");
        }
        for end in 0..text.len() {
            assert!(text[..end].parse::<Ticket>().is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_made_up_ticket_is_refused() {
        let mut forged = ticket();
        forged.launcher = Keypair::from_seed(&[4; 32]).public();
        assert_eq!(
            forged.to_string().parse::<Ticket>(),
            Err(TicketError::BadSignature)
        );
    }
}
