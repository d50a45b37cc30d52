//! The blocks: the best chain, what finality has fixed of it, and recent forks; each with its state while that is kept.
//!
//! Rule `kept-states`: the state after a block is kept while the block is not final, while it is the newest final one, and
//! while it is one of the newest `states_kept` of the best chain. Of older blocks only header and extrinsics remain, of
//! the newest [`BLOCKS_IN_MEMORY`] here and of all in the directory, if there is one.
//! Rule `forks-end-at-finality`: a block off the best chain is forgotten when the final block passes its height.

use std::collections::HashMap;
use std::sync::Arc;

use codec::{Decode, Encode};

use super::executor::{Hash, Header};
use super::state::State;

/// Blocks of the best chain whose header and extrinsics stay in memory: 4.5 hours of 250 ms blocks, about 50 MB.
const BLOCKS_IN_MEMORY: usize = 65_536;

/// A block, without its state.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Block {
    pub(crate) hash: Hash,
    pub(crate) header: Header,
    /// As they stand in the block, the inherent ones first.
    pub(crate) extrinsics: Vec<Vec<u8>>,
}

impl Block {
    pub(crate) fn number(&self) -> u32 {
        self.header.number
    }
}

/// A block and the state after it: what the next one builds on.
#[derive(Clone, Debug)]
pub(crate) struct Tip {
    pub(crate) block: Arc<Block>,
    pub(crate) state: State,
}

/// Why there is no state to read. Worded as Substrate's nodes do: clients look for these texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StateError {
    /// No such block, or one of a fork that finality has passed.
    #[error("UnknownBlock: Header was not found in the database: {0:?}")]
    Unknown(Hash),
    /// Rule `kept-states`.
    #[error("UnknownBlock: State already discarded for {0:?}")]
    Discarded(Hash),
}

struct Entry {
    block: Arc<Block>,
    state: Option<State>,
}

/// The blocks.
pub(crate) struct Chain {
    entries: HashMap<Hash, Entry>,
    /// Hash of each block of the best chain, by number. Never empty.
    best: Vec<Hash>,
    /// Number of each block of the best chain.
    numbers: HashMap<Hash, u32>,
    /// Blocks off the best chain.
    forks: Vec<Hash>,
    finalized: u32,
    states_kept: u32,
    /// The lowest number of the best chain that still has its state.
    states_from: u32,
}

impl Chain {
    /// A chain of which `best` are all hashes by number; `tips` the newest blocks with their states, in order, without a
    /// gap, the last being the newest of all.
    ///
    /// # Panics
    /// If there is no tip.
    pub(crate) fn new(best: Vec<Hash>, tips: Vec<Tip>, finalized: u32, states_kept: u32) -> Chain {
        let states_from = tips
            .first()
            .expect("a chain has a newest block")
            .block
            .number();
        let numbers = best
            .iter()
            .zip(0..)
            .map(|(hash, number)| (*hash, number))
            .collect();
        let entries = tips
            .into_iter()
            .map(|tip| {
                (
                    tip.block.hash,
                    Entry {
                        block: tip.block,
                        state: Some(tip.state),
                    },
                )
            })
            .collect();
        Chain {
            entries,
            best,
            numbers,
            forks: Vec::new(),
            finalized,
            states_kept,
            states_from,
        }
    }

    pub(crate) fn best_number(&self) -> u32 {
        u32::try_from(self.best.len() - 1).expect("block numbers are 32 bits wide")
    }

    pub(crate) fn finalized_number(&self) -> u32 {
        self.finalized
    }

    /// The newest block with its state.
    pub(crate) fn tip(&self) -> Tip {
        self.tip_at(self.best_number())
            .expect("the newest block keeps its state")
    }

    /// The block `number` of the best chain with its state, if that is kept.
    pub(crate) fn tip_at(&self, number: u32) -> Option<Tip> {
        let entry = self.entries.get(&self.hash_at(number)?)?;
        Some(Tip {
            block: entry.block.clone(),
            state: entry.state.clone()?,
        })
    }

    /// Hash of block `number` of the best chain.
    pub(crate) fn hash_at(&self, number: u32) -> Option<Hash> {
        self.best.get(usize::try_from(number).ok()?).copied()
    }

    /// The block if it is in memory.
    pub(crate) fn block(&self, hash: &Hash) -> Option<Arc<Block>> {
        self.entries.get(hash).map(|entry| entry.block.clone())
    }

    /// Number of a block of the best chain, also of one that is no longer in memory.
    pub(crate) fn number_of(&self, hash: &Hash) -> Option<u32> {
        self.numbers.get(hash).copied()
    }

    /// The state after a block.
    pub(crate) fn state(&self, hash: &Hash) -> Result<State, StateError> {
        match self.entries.get(hash) {
            Some(Entry {
                state: Some(state), ..
            }) => Ok(state.clone()),
            Some(Entry { state: None, .. }) => Err(StateError::Discarded(*hash)),
            None if self.numbers.contains_key(hash) => Err(StateError::Discarded(*hash)),
            None => Err(StateError::Unknown(*hash)),
        }
    }

    /// Adds the child of the newest block.
    ///
    /// # Panics
    /// If it is not its child.
    pub(crate) fn push(&mut self, tip: Tip) {
        let hash = tip.block.hash;
        assert_eq!(
            Some(&tip.block.header.parent_hash),
            self.best.last(),
            "a block follows the newest one"
        );
        self.best.push(hash);
        self.numbers.insert(hash, tip.block.number());
        self.entries.insert(
            hash,
            Entry {
                block: tip.block,
                state: Some(tip.state),
            },
        );
        self.prune();
    }

    /// Takes the blocks above `number` off the best chain and gives them, oldest first. They stay readable by hash.
    ///
    /// # Panics
    /// If one of them is final.
    pub(crate) fn retract_above(&mut self, number: u32) -> Vec<Arc<Block>> {
        assert!(number >= self.finalized, "block {} is final", number + 1);
        let length = usize::try_from(number).map_or(usize::MAX, |number| number.saturating_add(1));
        let retracted = self.best.split_off(length.min(self.best.len()));
        for hash in &retracted {
            self.numbers.remove(hash);
        }
        self.forks.extend(&retracted);
        retracted
            .iter()
            .filter_map(|hash| self.block(hash))
            .collect()
    }

    /// Makes block `number` of the best chain final, and gives the blocks that became so, oldest first. Does nothing for
    /// one that is already final or does not exist yet.
    pub(crate) fn finalize(&mut self, number: u32) -> Vec<Arc<Block>> {
        let number = number.min(self.best_number());
        if number <= self.finalized {
            return Vec::new();
        }
        let newly = (self.finalized + 1..=number)
            .filter_map(|n| self.block(&self.hash_at(n)?))
            .collect();
        self.finalized = number;
        let forks = std::mem::take(&mut self.forks);
        let (ended, alive): (Vec<_>, Vec<_>) = forks.into_iter().partition(|hash| {
            self.block(hash)
                .is_none_or(|block| block.number() <= number)
        });
        for hash in ended {
            self.entries.remove(&hash);
        }
        self.forks = alive;
        self.prune();
        newly
    }

    /// The lowest block whose state rule `kept-states` keeps when `best` is the newest and `finalized` the newest final one.
    pub(crate) fn states_from(&self, best: u32, finalized: u32) -> u32 {
        finalized.min((best + 1).saturating_sub(self.states_kept))
    }

    fn prune(&mut self) {
        let keep_from = self.states_from(self.best_number(), self.finalized);
        while self.states_from < keep_from {
            if let Some(entry) = self
                .hash_at(self.states_from)
                .and_then(|hash| self.entries.get_mut(&hash))
            {
                entry.state = None;
            }
            self.states_from += 1;
        }
        if let Some(old) = self.best.len().checked_sub(BLOCKS_IN_MEMORY + 1)
            && old < usize::try_from(keep_from).unwrap_or(usize::MAX)
        {
            self.entries.remove(&self.best[old]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(parent: &Block, salt: u8) -> Tip {
        let mut header = parent.header.clone();
        header.parent_hash = parent.hash;
        header.number += 1;
        header.extrinsics_root = Hash::repeat_byte(salt);
        let hash = header.hash();
        Tip {
            block: Arc::new(Block {
                hash,
                header,
                extrinsics: Vec::new(),
            }),
            state: State::empty(),
        }
    }

    fn genesis(states_kept: u32) -> Chain {
        let header = Header {
            parent_hash: Hash::zero(),
            number: 0,
            state_root: Hash::zero(),
            extrinsics_root: Hash::zero(),
            digest: Default::default(),
        };
        let hash = header.hash();
        let block = Arc::new(Block {
            hash,
            header,
            extrinsics: Vec::new(),
        });
        Chain::new(
            vec![hash],
            vec![Tip {
                block,
                state: State::empty(),
            }],
            0,
            states_kept,
        )
    }

    fn grow(chain: &mut Chain, blocks: u32, salt: u8) {
        for _ in 0..blocks {
            chain.push(child(&chain.tip().block, salt));
        }
    }

    #[test]
    fn state_of_an_old_block_is_discarded_but_the_final_block_keeps_its_own() {
        let mut chain = genesis(3);
        grow(&mut chain, 10, 0);
        let state = |chain: &Chain, number| chain.state(&chain.hash_at(number).unwrap()).map(drop);
        for number in 0..=10 {
            assert_eq!(state(&chain, number), Ok(()), "block {number} is not final");
        }
        chain.finalize(5);
        for number in 0..5 {
            assert_eq!(
                state(&chain, number),
                Err(StateError::Discarded(chain.hash_at(number).unwrap()))
            );
        }
        assert_eq!(state(&chain, 5), Ok(()));
        chain.finalize(10);
        assert_eq!(
            state(&chain, 7),
            Err(StateError::Discarded(chain.hash_at(7).unwrap()))
        );
        assert_eq!(state(&chain, 8), Ok(()));
        let unknown = Hash::repeat_byte(9);
        assert_eq!(
            chain.state(&unknown).map(drop),
            Err(StateError::Unknown(unknown))
        );
    }

    #[test]
    fn retracted_block_is_readable_until_finality_passes_its_height() {
        let mut chain = genesis(256);
        grow(&mut chain, 3, 0);
        let old = chain.hash_at(3).unwrap();
        assert_eq!(
            chain
                .retract_above(2)
                .iter()
                .map(|block| block.hash)
                .collect::<Vec<_>>(),
            [old]
        );
        grow(&mut chain, 2, 1);
        assert_ne!(chain.hash_at(3), Some(old));
        assert_eq!(chain.number_of(&old), None);
        assert!(chain.state(&old).is_ok());
        chain.finalize(2);
        assert!(chain.block(&old).is_some());
        assert_eq!(chain.finalize(4).len(), 2);
        assert_eq!(chain.state(&old).map(drop), Err(StateError::Unknown(old)));
    }

    #[test]
    #[should_panic(expected = "block 2 is final")]
    fn final_block_is_never_retracted() {
        let mut chain = genesis(256);
        grow(&mut chain, 3, 0);
        chain.finalize(2);
        chain.retract_above(1);
    }
}
