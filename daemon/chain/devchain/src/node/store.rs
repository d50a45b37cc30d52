//! The chain on disk: every block of the best chain, the newest state, and how to get from it to the states before.
//!
//! Rule `durable-first`: a block is on disk before anybody hears of it. Each write is one transaction with one fsync, a
//! reorg too: after a kill or a loss of power the chain stands at one block or at the next, never in between.
//!
//! | table | key | value |
//! |---|---|---|
//! | `values` | `format`, `genesis`, `finalized` | u32; JSON of [`GenesisOptions`]; u32 |
//! | `hashes` | number | hash |
//! | `blocks` | number | SCALE of [`Block`] |
//! | `state` | storage key | storage value after the newest block |
//! | `undo` | number | SCALE of [`Undo`]: from the state after this block to the one before it |
//!
//! Undo is kept for the blocks whose parents keep their states in memory (rule `kept-states` of the chain). Forks off the
//! best chain are not kept.

use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use codec::{Decode, DecodeAll, Encode};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::chain::{Block, Tip};
use super::executor::{Hash, state_root};
use super::options::GenesisOptions;
use super::state::{State, Undo};

/// Format of the tables above. Raise it with every change to them or to what a chain's state means.
const FORMAT: u32 = 1;

const VALUES: TableDefinition<&str, &[u8]> = TableDefinition::new("values");
const HASHES: TableDefinition<u32, [u8; 32]> = TableDefinition::new("hashes");
const BLOCKS: TableDefinition<u32, &[u8]> = TableDefinition::new("blocks");
const STATE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("state");
const UNDO: TableDefinition<u32, &[u8]> = TableDefinition::new("undo");

const KEY_FORMAT: &str = "format";
const KEY_GENESIS: &str = "genesis";
const KEY_FINALIZED: &str = "finalized";

/// Memory that the database keeps for pages. States are small; redb's default is 1 GiB.
const CACHE_BYTES: usize = 16 << 20;

/// Why the chain cannot be kept in a directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made, read or written.
    #[error("directory {}: {source}; choose another with --dir", .dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process keeps its chain there.
    #[error("directory {} is in use by another dev chain: stop that one or choose another with --dir", .dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Written by another release.
    #[error(
        "directory {} holds a chain in format {found}, this program reads format {FORMAT}: remove the directory or \
         choose another with --dir",
        .dir.display()
    )]
    Format {
        /// The directory.
        dir: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The chain was made with other options.
    #[error(
        "directory {} holds a chain made with {option} {stored}, not {wanted}: start it with {option} {stored}, remove \
         the directory, or choose another with --dir",
        .dir.display()
    )]
    OtherGenesis {
        /// The directory.
        dir: PathBuf,
        /// The first option that differs, as on the command line.
        option: &'static str,
        /// Its value in the directory.
        stored: String,
        /// Its value now.
        wanted: String,
    },
    /// What is there is not what was written.
    #[error("directory {} is damaged ({what}): remove it or choose another with --dir", .dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Writing failed. Everything written before is still there.
    #[error("directory {} cannot be written: {what}", .dir.display())]
    Write {
        /// The directory.
        dir: PathBuf,
        /// What the database says.
        what: String,
    },
}

/// A chain as it was read.
pub(crate) struct Stored {
    pub(crate) hashes: Vec<Hash>,
    /// The newest blocks with their states, oldest first, as many as there is undo for.
    pub(crate) tips: Vec<Tip>,
    pub(crate) finalized: u32,
}

/// A step of the chain: blocks above `parent` go, others come.
pub(crate) struct Step<'s> {
    /// Number of the block that the new ones build on.
    pub(crate) parent: u32,
    /// In order.
    pub(crate) blocks: &'s [(Tip, Undo)],
    /// The newest final block after the step.
    pub(crate) finalized: u32,
    /// The lowest block whose state is kept after the step.
    pub(crate) states_from: u32,
}

/// The directory of a chain, open and locked.
pub(crate) struct Store {
    dir: PathBuf,
    database: Database,
}

impl Store {
    /// Opens or makes the directory, with the options of the chain that it holds, if it holds one.
    pub(crate) fn open(dir: &Path) -> Result<(Store, Option<GenesisOptions>), StoreError> {
        let failed = |source| StoreError::Io {
            dir: dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let path = dir.join("chain.redb");
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        // A damaged file can make the database panic.
        let opened = catch_unwind(AssertUnwindSafe(|| builder.create(&path)));
        let damaged = |what: String| StoreError::Damaged {
            dir: dir.to_owned(),
            what,
        };
        let database = match opened {
            Ok(Ok(database)) => database,
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => {
                return Err(StoreError::InUse {
                    dir: dir.to_owned(),
                });
            }
            Ok(Err(DatabaseError::Storage(redb::StorageError::Io(source)))) => {
                return Err(match source.kind() {
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                        damaged(source.to_string())
                    }
                    _ => failed(source),
                });
            }
            Ok(Err(error)) => return Err(damaged(error.to_string())),
            Err(_) => return Err(damaged("chain.redb is not readable".to_owned())),
        };
        let store = Store {
            dir: dir.to_owned(),
            database,
        };
        let genesis = store.genesis()?;
        Ok((store, genesis))
    }

    fn genesis(&self) -> Result<Option<GenesisOptions>, StoreError> {
        let read = self.read(self.database.begin_read())?;
        let values = match read.open_table(VALUES) {
            Ok(values) => values,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(self.damaged(error)),
        };
        let format = self
            .read(values.get(KEY_FORMAT))?
            .ok_or_else(|| self.damaged("no format"))?;
        let found = u32::decode_all(&mut format.value()).map_err(|error| self.damaged(error))?;
        if found != FORMAT {
            return Err(StoreError::Format {
                dir: self.dir.clone(),
                found,
            });
        }
        let genesis = self
            .read(values.get(KEY_GENESIS))?
            .ok_or_else(|| self.damaged("no genesis"))?;
        serde_json::from_slice(genesis.value())
            .map(Some)
            .map_err(|error| self.damaged(error))
    }

    /// Writes block 0.
    pub(crate) fn begin(&self, options: &GenesisOptions, tip: &Tip) -> Result<(), StoreError> {
        let json = serde_json::to_vec(options).expect("numbers and strings have a JSON form");
        self.write(|write| {
            let mut values = write.open_table(VALUES)?;
            values.insert(KEY_FORMAT, FORMAT.encode().as_slice())?;
            values.insert(KEY_GENESIS, json.as_slice())?;
            values.insert(KEY_FINALIZED, 0u32.encode().as_slice())?;
            insert_block(write, &tip.block)?;
            let mut state = write.open_table(STATE)?;
            for (key, value) in tip.state.iter() {
                state.insert(key, value)?;
            }
            write.open_table(UNDO)?;
            Ok(())
        })
    }

    /// Writes a step. Rule `durable-first`.
    pub(crate) fn apply(&self, step: &Step<'_>) -> Result<(), StoreError> {
        self.write(|write| {
            let mut undo_table = write.open_table(UNDO)?;
            let mut changed: BTreeSet<Vec<u8>> = BTreeSet::new();
            let above = step.parent.saturating_add(1)..;
            for retracted in undo_table.range(above.clone())? {
                let undo = Undo::decode(&mut retracted?.1.value())
                    .map_err(|error| damaged_value(&error))?;
                changed.extend(undo.into_iter().map(|(key, _)| key));
            }
            undo_table.retain_in(above.clone(), |_, _| false)?;
            write
                .open_table(HASHES)?
                .retain_in(above.clone(), |_, _| false)?;
            write.open_table(BLOCKS)?.retain_in(above, |_, _| false)?;
            for (tip, undo) in step.blocks {
                insert_block(write, &tip.block)?;
                undo_table.insert(tip.block.number(), undo.encode().as_slice())?;
                changed.extend(undo.iter().map(|(key, _)| key.clone()));
            }
            undo_table.retain_in(..=step.states_from, |_, _| false)?;
            if let Some((newest, _)) = step.blocks.last() {
                let mut state = write.open_table(STATE)?;
                for key in &changed {
                    match newest.state.get(key) {
                        Some(value) => state.insert(key.as_slice(), value).map(drop)?,
                        None => state.remove(key.as_slice()).map(drop)?,
                    }
                }
            }
            write
                .open_table(VALUES)?
                .insert(KEY_FINALIZED, step.finalized.encode().as_slice())?;
            Ok(())
        })
    }

    /// Reads the chain.
    pub(crate) fn load(&self) -> Result<Stored, StoreError> {
        let read = self.read(self.database.begin_read())?;
        let table = self.read(read.open_table(HASHES))?;
        let mut hashes = Vec::new();
        for (item, number) in self.read(table.iter())?.zip(0u32..) {
            let (key, hash) = self.read(item)?;
            if key.value() != number {
                return Err(self.damaged(format!("the hash of block {number} is missing")));
            }
            hashes.push(Hash::from(hash.value()));
        }
        let mut number = u32::try_from(hashes.len())
            .ok()
            .and_then(|length| length.checked_sub(1))
            .ok_or_else(|| self.damaged("no blocks"))?;

        let mut state = State::empty();
        let table = self.read(read.open_table(STATE))?;
        for item in self.read(table.iter())? {
            let (key, value) = self.read(item)?;
            state.put(key.value().to_vec(), Some(value.value().to_vec()));
        }
        let undo = self.read(read.open_table(UNDO))?;
        let mut tips = Vec::new();
        loop {
            let block = self
                .block(number)?
                .ok_or_else(|| self.damaged(format!("block {number} is missing")))?;
            if tips.is_empty() && state_root(&state) != block.header.state_root {
                return Err(self.damaged(format!("the state is not the one after block {number}")));
            }
            tips.push(Tip {
                block: Arc::new(block),
                state: state.clone(),
            });
            let Some(value) = self.read(undo.get(number))? else {
                break;
            };
            let undo = Undo::decode_all(&mut value.value()).map_err(|error| self.damaged(error))?;
            state.take_back(&undo);
            number = number
                .checked_sub(1)
                .ok_or_else(|| self.damaged("block 0 has undo"))?;
        }
        tips.reverse();

        let values = self.read(read.open_table(VALUES))?;
        let finalized = self
            .read(values.get(KEY_FINALIZED))?
            .ok_or_else(|| self.damaged("no final block"))?;
        let finalized =
            u32::decode_all(&mut finalized.value()).map_err(|error| self.damaged(error))?;
        if finalized < number
            || usize::try_from(finalized).is_ok_and(|finalized| finalized >= hashes.len())
        {
            return Err(self.damaged(format!("the state of final block {finalized} is missing")));
        }
        Ok(Stored {
            hashes,
            tips,
            finalized,
        })
    }

    /// A block of the best chain.
    pub(crate) fn block(&self, number: u32) -> Result<Option<Block>, StoreError> {
        let read = self.read(self.database.begin_read())?;
        let table = self.read(read.open_table(BLOCKS))?;
        let Some(value) = self.read(table.get(number))? else {
            return Ok(None);
        };
        Block::decode_all(&mut value.value())
            .map(Some)
            .map_err(|error| self.damaged(error))
    }

    fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let written = (|| {
            let write = self.database.begin_write()?;
            work(&write)?;
            write.commit()?;
            Ok(())
        })();
        written.map_err(|error: redb::Error| StoreError::Write {
            dir: self.dir.clone(),
            what: error.to_string(),
        })
    }

    fn read<T, E: Into<redb::Error>>(&self, result: Result<T, E>) -> Result<T, StoreError> {
        result.map_err(|error| self.damaged(error.into()))
    }

    fn damaged(&self, what: impl ToString) -> StoreError {
        StoreError::Damaged {
            dir: self.dir.clone(),
            what: what.to_string(),
        }
    }
}

fn insert_block(write: &WriteTransaction, block: &Block) -> Result<(), redb::Error> {
    write
        .open_table(HASHES)?
        .insert(block.number(), block.hash.0)?;
    write
        .open_table(BLOCKS)?
        .insert(block.number(), block.encode().as_slice())?;
    Ok(())
}

fn damaged_value(error: &codec::Error) -> redb::Error {
    redb::Error::Corrupted(error.to_string())
}
