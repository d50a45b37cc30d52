//! What a peer must not forget: decisions, the journal of the open round, the manifest, what is still to be attested.
//!
//! Rule `durable-first`: when a call that writes returns `Ok`, what it wrote survives the loss of power; when it returns
//! an error, nothing of it is there and everything from before still is. Each call is one transaction with one fsync.
//!
//! Decisions are contiguous from round 0. The journal holds entries of undecided rounds only: storing the decision of a
//! round drops its entries in the same transaction.
//!
//! Holds no model state: that is the driver's, beside it in the state directory.

pub(crate) mod record;

use std::io;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use gradmesh_protocol::manifest::{RoundId, SignedManifest};
use gradmesh_protocol::wire::{DecisionRecord, JournalEntry};
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, TableDefinition, TableError,
};

use crate::state_dir::{Lock, StateDir, StateDirError};
pub use record::QueuedAttestation;
use record::{AuditEntry, Meta, SCHEMA};

const DECISIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("decisions");
/// Key: round, place in the round's journal.
const JOURNAL: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("journal");
/// Key: epoch.
const ATTESTATIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("attestations");
/// Key: the place of the entry.
const AUDITS: TableDefinition<u64, &[u8]> = TableDefinition::new("audits");
const VALUES: TableDefinition<&str, &[u8]> = TableDefinition::new("values");

const KEY_SCHEMA: &str = "schema";
const KEY_MANIFEST: &str = "manifest";
const KEY_META: &str = "meta";

/// Attestations kept while the chain is away. When full, the oldest goes: a later one attests the same history.
pub const ATTESTATIONS_QUEUED_MAX: usize = 4096;

/// Audit entries kept: 1,000 rounds of 64 peers. When full, the oldest goes: pay was settled by it long ago.
pub const AUDIT_ENTRIES_MAX: u64 = 64_000;

/// Memory that the database keeps for pages. The store is small and mostly written; redb's default is 1 GiB.
const CACHE_BYTES: usize = 16 << 20;

/// Why the store failed. Nothing that was stored before is lost by any of them.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The file, or a value in it, is not what was written.
    #[error(
        "store {} is damaged ({what}): it is left as it is; move it away and start again: decisions and state are \
         fetched from the run's peers, and node.key stays this peer's identity",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// No space left.
    #[error(
        "store {}: no space is left on the disk: free some and start again; everything stored before is still there",
        .path.display()
    )]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Written by another version of gradmesh.
    #[error(
        "store {} has schema {found}, this gradmesh reads {SCHEMA}: use the gradmesh that wrote it, or another --dir",
        .path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: u32,
    },
    /// The operating system refused.
    #[error("store {}: {source}: check permissions and the disk", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A decision that does not continue the stored ones.
    #[error(
        "the decision of round {found} does not come after the stored ones; round {expected} does"
    )]
    NotNext {
        /// The round that comes next.
        expected: RoundId,
        /// The round of the decision.
        found: RoundId,
    },
    /// The directory belongs to another run.
    #[error(
        "store {} belongs to run {stored}, not {wanted}: choose another --dir for the new run",
        .path.display()
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// The run whose manifest is stored.
        stored: String,
        /// The run of the manifest to be stored.
        wanted: String,
    },
}

/// See the module documentation. One per state directory: it holds the directory's lock.
pub struct Store {
    database: Database,
    path: PathBuf,
    _lock: Lock,
}

impl Store {
    /// Opens the store of `dir`, making both if they are not there. Checks the whole file, repairing what a crash in
    /// the middle of a write leaves behind.
    ///
    /// # Errors
    /// [`StateDirError::Locked`] when another daemon uses the directory; [`StoreError::Damaged`],
    /// [`StoreError::Schema`], [`StoreError::Full`], [`StoreError::Io`]. The file is not changed then.
    pub fn open(dir: &StateDir) -> Result<Store, StoreError> {
        let lock = dir.lock()?;
        let path = dir.store();
        let mut database = open_database(&path)?;
        check_integrity(&path, &mut database)?;
        let store = Store {
            database,
            path,
            _lock: lock,
        };
        store.check_schema()?;
        Ok(store)
    }

    /// Adds `entry` to the end of the journal of `round`.
    ///
    /// # Errors
    /// [`StoreError`]; the entry is not there then, and nothing that depends on it may leave the machine.
    pub fn append_journal(&self, round: RoundId, entry: &JournalEntry) -> Result<(), StoreError> {
        let bytes = record::seal(entry.encode(round));
        self.write(|transaction| {
            let mut journal = transaction.open_table(JOURNAL)?;
            let last = journal
                .range(entries_of(round))?
                .next_back()
                .transpose()?
                .map(|(key, _)| key.value().1);
            let place = last.map_or(0, |last| last.saturating_add(1));
            journal.insert((round.0, place), bytes.as_slice())?;
            Ok(())
        })
    }

    /// The journal of `round`, in the order of writing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn journal(&self, round: RoundId) -> Result<Vec<JournalEntry>, StoreError> {
        let transaction = self.read()?;
        let table = self.done(transaction.open_table(JOURNAL))?;
        let mut entries = Vec::new();
        for item in self.done(table.range(entries_of(round)))? {
            let (key, value) = self.done(item)?;
            let place = key.value().1;
            let what = |reason: String| format!("journal entry {place} of round {round}: {reason}");
            let bytes = record::unseal(value.value()).map_err(|r| self.damaged(what(r)))?;
            let (of, entry) =
                JournalEntry::decode(&bytes).map_err(|e| self.damaged(what(e.to_string())))?;
            if of != round {
                return Err(self.damaged(what(format!("it is of round {of}"))));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Stores the decision of the next round and drops the journal of the rounds up to it. Storing the newest decision
    /// again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NotNext`] when it does not follow the stored ones, and the others.
    pub fn store_decision(&self, record: &DecisionRecord) -> Result<(), StoreError> {
        let round = record.decision.round;
        let decided = self.decided()?;
        if decided == Some(round) {
            return Ok(());
        }
        let expected = decided.map_or(RoundId::FOUNDING, RoundId::next);
        if round != expected {
            return Err(StoreError::NotNext {
                expected,
                found: round,
            });
        }
        let bytes = record::seal(record.encode());
        self.write(|transaction| {
            let mut decisions = transaction.open_table(DECISIONS)?;
            decisions.insert(round.0, bytes.as_slice())?;
            let mut journal = transaction.open_table(JOURNAL)?;
            journal.retain_in(..=(round.0, u64::MAX), |_, _| false)?;
            Ok(())
        })
    }

    /// The last round whose decision is stored.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn decided(&self) -> Result<Option<RoundId>, StoreError> {
        let transaction = self.read()?;
        let table = self.done(transaction.open_table(DECISIONS))?;
        let last = self.done(table.last())?;
        Ok(last.map(|(key, _)| RoundId(key.value())))
    }

    /// Up to `count` decisions from round `from` on, in order; fewer or none when there are no more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn decisions(&self, from: RoundId, count: u32) -> Result<Vec<DecisionRecord>, StoreError> {
        let transaction = self.read()?;
        let table = self.done(transaction.open_table(DECISIONS))?;
        let mut records = Vec::new();
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        for item in self.done(table.range(from.0..))?.take(wanted) {
            let (key, value) = self.done(item)?;
            let round = key.value();
            let what = |reason: String| format!("decision of round {round}: {reason}");
            let bytes = record::unseal(value.value()).map_err(|r| self.damaged(what(r)))?;
            let record =
                DecisionRecord::decode(&bytes).map_err(|e| self.damaged(what(e.to_string())))?;
            if record.decision.round.0 != round {
                return Err(self.damaged(what(format!("it is of {}", record.decision.round))));
            }
            records.push(record);
        }
        Ok(records)
    }

    /// All decisions, from round 0.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn all_decisions(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        let records = self.decisions(RoundId::FOUNDING, u32::MAX)?;
        for (place, record) in records.iter().enumerate() {
            if usize::try_from(record.decision.round.0) != Ok(place) {
                return Err(self.damaged(format!("the decision of round {place} is missing")));
            }
        }
        Ok(records)
    }

    /// The manifest of the run that this directory belongs to.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn manifest(&self) -> Result<Option<SignedManifest>, StoreError> {
        let Some(bytes) = self.value(KEY_MANIFEST)? else {
            return Ok(None);
        };
        let what = |reason: String| self.damaged(format!("manifest: {reason}"));
        let bytes = record::unseal(&bytes).map_err(what)?;
        SignedManifest::decode(&bytes, None)
            .map(Some)
            .map_err(|error| what(error.to_string()))
    }

    /// Makes the directory belong to the run of `manifest`, for good.
    ///
    /// # Errors
    /// [`StoreError::OtherRun`] when it belongs to another, and the others.
    pub fn set_manifest(&self, manifest: &SignedManifest) -> Result<(), StoreError> {
        if let Some(stored) = self.manifest()? {
            let (stored, wanted) = (stored.manifest.run(), manifest.manifest.run());
            return if stored == wanted {
                Ok(())
            } else {
                Err(StoreError::OtherRun {
                    path: self.path.clone(),
                    stored: stored.to_string(),
                    wanted: wanted.to_string(),
                })
            };
        }
        self.set_value(KEY_MANIFEST, &record::seal(manifest.encode()))
    }

    /// The data directory that the operator named last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn data_dir(&self) -> Result<Option<PathBuf>, StoreError> {
        Ok(self.meta()?.data_dir.map(PathBuf::from))
    }

    /// Remembers the data directory. A path that is not UTF-8 is not remembered and must be named at each start.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_data_dir(&self, dir: &Path) -> Result<(), StoreError> {
        let meta = Meta {
            data_dir: dir.to_str().map(str::to_owned),
            ..self.meta()?
        };
        self.set_value(KEY_META, &record::seal_meta(&meta))
    }

    /// Where the launcher listens, as the last ticket said; empty if no ticket was ever used.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn launcher_addresses(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.meta()?.launcher_addresses)
    }

    /// Remembers where the launcher listens.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_launcher_addresses(&self, addresses: &[String]) -> Result<(), StoreError> {
        let meta = Meta {
            launcher_addresses: addresses.to_vec(),
            ..self.meta()?
        };
        self.set_value(KEY_META, &record::seal_meta(&meta))
    }

    /// Remembers that an epoch is to be attested. The same epoch again replaces what was queued for it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn queue_attestation(&self, attestation: &QueuedAttestation) -> Result<(), StoreError> {
        let bytes = record::seal_attestation(attestation);
        self.write(|transaction| {
            let mut queue = transaction.open_table(ATTESTATIONS)?;
            queue.insert(attestation.epoch, bytes.as_slice())?;
            while queue.len()? > ATTESTATIONS_QUEUED_MAX as u64 {
                queue.pop_first()?;
            }
            Ok(())
        })
    }

    /// What is still to be attested, by epoch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn queued_attestations(&self) -> Result<Vec<QueuedAttestation>, StoreError> {
        let transaction = self.read()?;
        let table = self.done(transaction.open_table(ATTESTATIONS))?;
        let mut queued = Vec::new();
        for item in self.done(table.iter())? {
            let (key, value) = self.done(item)?;
            let attestation = record::unseal_attestation(value.value())
                .map_err(|r| self.damaged(format!("attestation of epoch {}: {r}", key.value())))?;
            queued.push(attestation);
        }
        Ok(queued)
    }

    /// Forgets the attestation of `epoch`, which stands on chain.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn attestation_sent(&self, epoch: u64) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(ATTESTATIONS)?.remove(epoch)?;
            Ok(())
        })
    }

    /// Remembers what a validator learnt.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn append_audit(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        let bytes = record::seal_audit(entry);
        self.write(|transaction| {
            let mut table = transaction.open_table(AUDITS)?;
            let next = table.last()?.map_or(0, |(place, _)| place.value() + 1);
            table.insert(next, bytes.as_slice())?;
            while table.len()? > AUDIT_ENTRIES_MAX {
                table.pop_first()?;
            }
            Ok(())
        })
    }

    /// What a validator learnt, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn audits(&self) -> Result<Vec<AuditEntry>, StoreError> {
        let transaction = self.read()?;
        let table = self.done(transaction.open_table(AUDITS))?;
        let mut entries = Vec::new();
        for item in self.done(table.iter())? {
            let (key, value) = self.done(item)?;
            let entry = record::unseal_audit(value.value())
                .map_err(|reason| self.damaged(format!("audit entry {}: {reason}", key.value())))?;
            entries.push(entry);
        }
        Ok(entries)
    }

    fn meta(&self) -> Result<Meta, StoreError> {
        match self.value(KEY_META)? {
            None => Ok(Meta::default()),
            Some(bytes) => record::unseal_meta(&bytes)
                .map_err(|reason| self.damaged(format!("meta: {reason}"))),
        }
    }

    /// Refuses another schema; writes ours, and all tables, into a new file.
    fn check_schema(&self) -> Result<(), StoreError> {
        let transaction = self.read()?;
        match transaction.open_table(VALUES) {
            Ok(values) => {
                let stored = self.done(values.get(KEY_SCHEMA))?;
                let bytes = stored.map(|value| value.value().to_vec());
                let found = bytes.and_then(|bytes| bytes.try_into().ok());
                match found.map(u32::from_le_bytes) {
                    Some(SCHEMA) => Ok(()),
                    Some(found) => Err(StoreError::Schema {
                        path: self.path.clone(),
                        found,
                    }),
                    None => Err(self.damaged("no schema version".to_owned())),
                }
            }
            Err(TableError::TableDoesNotExist(_)) => self.write(|transaction| {
                transaction.open_table(DECISIONS)?;
                transaction.open_table(JOURNAL)?;
                transaction.open_table(ATTESTATIONS)?;
                transaction.open_table(AUDITS)?;
                let mut values = transaction.open_table(VALUES)?;
                values.insert(KEY_SCHEMA, SCHEMA.to_le_bytes().as_slice())?;
                Ok(())
            }),
            Err(error) => Err(self.failure(error.into())),
        }
    }

    fn value(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.read()?;
        let values = self.done(transaction.open_table(VALUES))?;
        let found = self.done(values.get(key))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    fn set_value(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(VALUES)?.insert(key, bytes)?;
            Ok(())
        })
    }

    fn read(&self) -> Result<ReadTransaction, StoreError> {
        self.done(self.database.begin_read())
    }

    /// One transaction: all of `change` or nothing.
    fn write(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let transaction = self.done(self.database.begin_write())?;
        change(&transaction).map_err(|error| self.failure(error))?;
        self.done(transaction.commit())
    }

    fn done<T, E: Into<redb::Error>>(&self, result: Result<T, E>) -> Result<T, StoreError> {
        result.map_err(|error| self.failure(error.into()))
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            what,
        }
    }

    fn failure(&self, error: redb::Error) -> StoreError {
        failure(&self.path, error)
    }
}

fn entries_of(round: RoundId) -> RangeInclusive<(u64, u64)> {
    (round.0, 0)..=(round.0, u64::MAX)
}

fn failure(path: &Path, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    match error {
        redb::Error::Io(source) => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path },
            // redb reads beyond the end of a file that was cut off.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => StoreError::Damaged {
                path,
                what: source.to_string(),
            },
            _ => StoreError::Io { path, source },
        },
        other => StoreError::Damaged {
            path,
            what: other.to_string(),
        },
    }
}

/// Runs `f`, taking a panic for damage: redb asserts on some of the bytes that a cut-off file lacks, and what is on
/// disk must not stop the process without a word.
fn guarded<T>(path: &Path, f: impl FnOnce() -> Result<T, DatabaseError>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|error| failure(path, error.into())),
        Err(_) => Err(StoreError::Damaged {
            path: path.to_owned(),
            what: "its structure is broken".to_owned(),
        }),
    }
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    // redb makes a new database of an empty file; a store that lost all its bytes must not look new.
    if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            what: "it is empty".to_owned(),
        });
    }
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    guarded(path, || builder.create(path))
}

fn check_integrity(path: &Path, database: &mut Database) -> Result<(), StoreError> {
    let sound = guarded(path, || database.check_integrity())?;
    if !sound {
        tracing::warn!(path = %path.display(), "the store was repaired");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
