//! The trace of a run: a running BLAKE3 over everything that happens, and the words of it when somebody wants them.

use std::collections::VecDeque;
use std::fmt;

use gradmesh_protocol::hash::Hash;

use crate::queue::Instant;

/// Lines kept for each peer, to be shown with a failure.
const LINES_PER_PEER: usize = 60;

/// How much of a run is put into words. The hash is the same whichever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Nothing.
    Hash,
    /// The last lines of each peer.
    Tail,
    /// Everything, to standard output.
    All,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Trace {
    hasher: blake3::Hasher,
    verbosity: Verbosity,
    tails: Vec<VecDeque<String>>,
}

struct Hashing<'a>(&'a mut blake3::Hasher);

impl fmt::Write for Hashing<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

impl Trace {
    /// An empty trace of a run of `peers`.
    pub fn new(peers: usize, verbosity: Verbosity) -> Trace {
        Trace {
            hasher: blake3::Hasher::new(),
            verbosity,
            tails: vec![VecDeque::new(); peers],
        }
    }

    /// Records that `what` happened to `peer`, with the bytes that belong to it.
    pub fn record(&mut self, at: Instant, peer: usize, what: fmt::Arguments<'_>, bytes: &[u8]) {
        self.hasher.update(&at.0.to_le_bytes());
        self.hasher.update(&(peer as u64).to_le_bytes());
        let written = fmt::write(&mut Hashing(&mut self.hasher), what);
        assert!(written.is_ok(), "hashing does not fail");
        self.hasher.update(bytes);
        self.note(at, peer, what);
    }

    /// Whether somebody reads the words.
    pub fn is_read(&self) -> bool {
        self.verbosity != Verbosity::Hash
    }

    /// Adds words that are not hashed.
    pub fn note(&mut self, at: Instant, peer: usize, what: fmt::Arguments<'_>) {
        match self.verbosity {
            Verbosity::Hash => {}
            Verbosity::Tail => {
                let tail = &mut self.tails[peer];
                if tail.len() == LINES_PER_PEER {
                    tail.pop_front();
                }
                tail.push_back(format!("{at} peer {peer}: {what}"));
            }
            Verbosity::All => println!("{at} peer {peer}: {what}"),
        }
    }

    /// The hash over everything so far.
    pub fn hash(&self) -> Hash {
        Hash(*self.hasher.finalize().as_bytes())
    }

    /// The last lines of `peer`.
    pub fn tail(&self, peer: usize) -> impl Iterator<Item = &str> {
        self.tails[peer].iter().map(String::as_str)
    }
}
