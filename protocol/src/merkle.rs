//! Merkle trees over content hashes: the state root, and proofs for single leaves.
//!
//! A leaf is the plain BLAKE3 hash of its content, so that a leaf hash is also the address under which any peer
//! serves the content. An inner node is `derive_key("gradmesh merkle node v1", left || right)`; the mode keeps nodes
//! and leaves apart. A level with an odd number of nodes carries its last node up unchanged. The root binds the
//! number of leaves: `derive_key("gradmesh merkle root v1", count as u64 le || top)`.

use crate::hash::Hash;

const NODE_DOMAIN: &str = "gradmesh merkle node v1";
const ROOT_DOMAIN: &str = "gradmesh merkle root v1";

/// A tree with all its levels in memory: about 64 bytes per leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// `levels[0]` are the leaves; the last level has one node (none for an empty tree).
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// Builds the tree over `leaves`, in their order. Cost: one hash of 64 bytes per inner node.
    pub fn from_leaves(leaves: Vec<Hash>) -> Tree {
        let mut levels = vec![leaves];
        loop {
            let below = levels.last().expect("a tree has at least its leaf level");
            if below.len() <= 1 {
                return Tree { levels };
            }
            let above = below
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => node(left, right),
                    [last] => *last,
                    _ => unreachable!("chunks of two hold one or two"),
                })
                .collect();
            levels.push(above);
        }
    }

    /// The root; that of an empty tree is a constant.
    pub fn root(&self) -> Hash {
        let top = self.levels.last().and_then(|level| level.first());
        bind_count(self.leaves().len(), top.copied().unwrap_or(Hash::ZERO))
    }

    /// The leaves, in order.
    pub fn leaves(&self) -> &[Hash] {
        &self.levels[0]
    }

    /// The siblings from leaf `index` up to the top; `None` if there is no such leaf.
    pub fn proof(&self, index: usize) -> Option<Vec<Hash>> {
        if index >= self.leaves().len() {
            return None;
        }
        let mut siblings = Vec::new();
        let mut position = index;
        for level in &self.levels[..self.levels.len() - 1] {
            if let Some(sibling) = level.get(position ^ 1) {
                siblings.push(*sibling);
            }
            position /= 2;
        }
        Some(siblings)
    }
}

/// Whether `leaf` stands at `index` among `count` leaves under `root`, by `proof` from [`Tree::proof`].
///
/// A proof of the wrong length is refused; the work is bounded by the depth that `count` implies.
pub fn verify(root: &Hash, count: usize, index: usize, leaf: &Hash, proof: &[Hash]) -> bool {
    if index >= count {
        return false;
    }
    let mut siblings = proof.iter();
    let (mut position, mut width, mut current) = (index, count, *leaf);
    while width > 1 {
        let has_sibling = position ^ 1 < width;
        if has_sibling {
            let Some(sibling) = siblings.next() else {
                return false;
            };
            current = if position % 2 == 0 {
                node(&current, sibling)
            } else {
                node(sibling, &current)
            };
        }
        position /= 2;
        width = width.div_ceil(2);
    }
    siblings.next().is_none() && bind_count(count, current) == *root
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut body = [0; 64];
    body[..32].copy_from_slice(&left.0);
    body[32..].copy_from_slice(&right.0);
    Hash::in_domain(NODE_DOMAIN, &body)
}

fn bind_count(count: usize, top: Hash) -> Hash {
    let mut body = [0; 40];
    body[..8].copy_from_slice(&(count as u64).to_le_bytes());
    body[8..].copy_from_slice(&top.0);
    Hash::in_domain(ROOT_DOMAIN, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count)
            .map(|i| Hash::of_content(&(i as u64).to_le_bytes()))
            .collect()
    }

    #[test]
    fn each_leaf_proves_itself_and_nothing_else() {
        for count in 1..=17 {
            let tree = Tree::from_leaves(leaves(count));
            let root = tree.root();
            for index in 0..count {
                let proof = tree.proof(index).unwrap();
                let leaf = tree.leaves()[index];
                assert!(verify(&root, count, index, &leaf, &proof));
                assert!(!verify(&root, count + 1, index, &leaf, &proof));
                assert!(!verify(&root, count, index, &Hash::ZERO, &proof));
                let other = (index + 1) % count;
                assert!(count == 1 || !verify(&root, count, other, &leaf, &proof));
                let mut longer = proof.clone();
                longer.push(Hash::ZERO);
                assert!(!verify(&root, count, index, &leaf, &longer));
            }
            assert_eq!(tree.proof(count), None);
        }
    }

    #[test]
    fn a_trailing_copy_of_the_last_leaf_changes_the_root() {
        let mut doubled = leaves(3);
        doubled.push(doubled[2]);
        assert_ne!(
            Tree::from_leaves(leaves(3)).root(),
            Tree::from_leaves(doubled).root()
        );
    }

    #[test]
    fn roots_are_pinned() {
        assert_eq!(
            Tree::from_leaves(leaves(5)).root().to_string(),
            "139e7d57782a213bf352947263ac6cc04c215bb862f77765f968b5029e5056cc"
        );
    }
}
