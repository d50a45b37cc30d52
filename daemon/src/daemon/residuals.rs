//! The residuals of the shards that this peer owns: on disk, served by hash.
//!
//! One is kept while the run names it as this peer's ([`Residuals::own`]), or while it may come to: what a reduction left
//! stays until the round after the reduction's is at hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::manifest::RoundId;
use gradmesh_protocol::node::OwnedShard;

use crate::blob::BlobStore;
use crate::worker::Disk;

/// See the module documentation.
pub(super) struct Residuals {
    disk: Disk,
    blobs: Arc<BlobStore>,
    /// What the reductions of each round left.
    left: BTreeMap<RoundId, BTreeSet<Hash>>,
    /// What is being fetched, so that it is not asked for twice.
    fetching: BTreeSet<Hash>,
}

impl Residuals {
    /// Those that are on disk, served from now on.
    pub(super) fn open(disk: Disk, blobs: Arc<BlobStore>) -> anyhow::Result<Residuals> {
        let residuals = Residuals {
            disk,
            blobs,
            left: BTreeMap::new(),
            fetching: BTreeSet::new(),
        };
        for (hash, bytes) in residuals.disk.list_residuals()? {
            residuals.serve(&hash, bytes)?;
        }
        Ok(residuals)
    }

    fn serve(&self, hash: &Hash, bytes: u64) -> anyhow::Result<()> {
        self.blobs
            .register_file(hash.0, self.disk.residual_path(hash), 0, bytes)
            .context("a residual cannot be served")
    }

    fn write(&self, hash: &Hash, bytes: &Bytes) -> anyhow::Result<()> {
        tokio::task::block_in_place(|| self.disk.write_residual(hash, bytes))?;
        self.serve(hash, bytes.len() as u64)
    }

    /// Keeps what a reduction of `round` left.
    pub(super) fn keep_left(
        &mut self,
        round: RoundId,
        hash: Hash,
        bytes: &Bytes,
    ) -> anyhow::Result<()> {
        self.write(&hash, bytes)?;
        self.left.entry(round).or_default().insert(hash);
        Ok(())
    }

    /// Keeps one that was fetched.
    pub(super) fn keep_fetched(&mut self, hash: Hash, bytes: Option<&Bytes>) -> anyhow::Result<()> {
        self.fetching.remove(&hash);
        bytes.map_or(Ok(()), |bytes| self.write(&hash, bytes))
    }

    /// Keeps `owned` and what the reductions of `round` and later left, and deletes the rest. Returns what is to be fetched.
    pub(super) fn own(
        &mut self,
        round: RoundId,
        owned: Vec<OwnedShard>,
    ) -> anyhow::Result<Vec<OwnedShard>> {
        self.left = self.left.split_off(&round);
        let mut needed: BTreeSet<Hash> = owned.iter().map(|shard| shard.residual).collect();
        needed.extend(self.left.values().flatten());
        let mut held = BTreeSet::new();
        for (hash, _) in self.disk.list_residuals()? {
            if needed.contains(&hash) {
                held.insert(hash);
            } else {
                self.blobs.forget_range(&hash.0);
                self.disk.forget_residual(&hash)?;
            }
        }
        let missing = owned.into_iter().filter(|shard| {
            shard.residual != Hash::ZERO
                && !held.contains(&shard.residual)
                && self.fetching.insert(shard.residual)
        });
        Ok(missing.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::BlobSource;
    use gradmesh_protocol::plan::GroupId;

    fn owned(residual: Hash) -> OwnedShard {
        OwnedShard {
            group: GroupId::ALL,
            shard: 0,
            residual,
            sources: Vec::new(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_residual_is_served_while_it_is_owned_or_may_come_to_be() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::open(temp.path()).unwrap();
        let blobs = Arc::new(BlobStore::new(1 << 20));
        let mut residuals = Residuals::open(disk.clone(), Arc::clone(&blobs)).unwrap();
        let bytes = [Bytes::from_static(b"first"), Bytes::from_static(b"second")];
        let hashes = bytes.each_ref().map(|bytes| Hash::of_content(bytes));
        for (hash, bytes) in hashes.iter().zip(&bytes) {
            residuals.keep_left(RoundId(3), *hash, bytes).unwrap();
        }
        // The round at hand is still that of the reductions: nobody knows which of them is decided.
        residuals.own(RoundId(3), Vec::new()).unwrap();
        assert!(hashes.iter().all(|hash| blobs.open(&hash.0).is_some()));

        let missing = residuals.own(RoundId(4), vec![owned(hashes[0])]).unwrap();
        assert_eq!(missing, []);
        assert!(blobs.open(&hashes[0].0).is_some());
        assert!(blobs.open(&hashes[1].0).is_none());
        assert_eq!(disk.read_residual(&hashes[1]), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_missing_residual_is_asked_for_once_until_the_answer_is_there() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::open(temp.path()).unwrap();
        let mut residuals = Residuals::open(disk, Arc::new(BlobStore::new(0))).unwrap();
        let bytes = Bytes::from_static(b"of another owner");
        let hash = Hash::of_content(&bytes);
        let own = |residuals: &mut Residuals| {
            let owned = vec![owned(hash), owned(Hash::ZERO)];
            residuals.own(RoundId(1), owned).unwrap()
        };
        assert_eq!(own(&mut residuals), [owned(hash)]);
        assert_eq!(own(&mut residuals), []);
        residuals.keep_fetched(hash, None).unwrap();
        assert_eq!(own(&mut residuals), [owned(hash)]);
        residuals.keep_fetched(hash, Some(&bytes)).unwrap();
        assert_eq!(own(&mut residuals), []);
    }
}
