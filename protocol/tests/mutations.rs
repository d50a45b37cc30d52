//! Bytes from strangers, changed at random: no reader panics, and what it takes is what it would have written.
//!
//! The changes follow from a fixed seed. Each reader gets `GRADMESH_FUZZ_RUNS` inputs, 100,000 if that is not set.

use gradmesh_protocol::audit::evidence::{SignedEvidence, example};
use gradmesh_protocol::audit::segment::{SegmentList, StateRoots, Work, data_hash};
use gradmesh_protocol::audit::verdict::Check;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::header::FrameRef;
use gradmesh_protocol::merkle::{self, Tree};
use gradmesh_protocol::wire::Gossip;

fn runs() -> u64 {
    match std::env::var("GRADMESH_FUZZ_RUNS") {
        Ok(text) => text.parse().expect("GRADMESH_FUZZ_RUNS is a number"),
        Err(_) => 100_000,
    }
}

/// SplitMix64 (G. Steele, D. Lea and C. Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.word() % (bound.max(1) as u64)) as usize
    }

    /// One to four changes of `bytes`.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        // Heads of CBOR and protobuf, and edges of numbers.
        const TELLING: [u8; 12] = [
            0, 1, 0x17, 0x18, 0x1b, 0x5f, 0x7f, 0x80, 0x9b, 0xa1, 0xbf, 0xff,
        ];
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + self.below(40)).min(bytes.len());
            match self.below(8) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = TELLING[self.below(TELLING.len())],
                2 if at < bytes.len() => bytes[at] = self.word() as u8,
                3 => bytes.truncate(at),
                4 => drop(bytes.drain(at..end)),
                5 => {
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, copy);
                }
                6 => bytes.insert(at, TELLING[self.below(TELLING.len())]),
                _ => {
                    let more = self.below(9);
                    bytes.extend((0..more).map(|_| self.word() as u8));
                }
            }
        }
    }
}

/// Gives `read` each of `good` with changes, and now and then bytes that never were anything. `read` says whether it took
/// them; returns how often.
fn with_mutations(seed: u64, good: &[Vec<u8>], mut read: impl FnMut(&[u8]) -> bool) -> u64 {
    let mut random = Random(seed);
    let mut taken = 0;
    for run in 0..runs() {
        let mut bytes = if run % 16 == 15 {
            (0..random.below(200))
                .map(|_| random.word() as u8)
                .collect()
        } else {
            good[random.below(good.len())].clone()
        };
        random.mutate(&mut bytes);
        taken += u64::from(read(&bytes));
    }
    taken
}

fn list(segments: u8) -> SegmentList {
    let state = |place: u8| StateRoots {
        theta: Hash([place; 32]),
        inner: Hash([place + 100; 32]),
    };
    let work = |place: u8| Work {
        data: data_hash([place.into()]),
        tokens: 1 << place,
        loss_micronats: 5_000_000,
        gradient_norm_micro: 900_000,
    };
    let states = (0..=segments).map(state).collect();
    SegmentList::new(states, (0..segments).map(work).collect()).unwrap()
}

#[test]
fn evidence_that_is_read_is_written_the_same_and_does_not_panic_when_checked() {
    let checks = [
        Check::Segment,
        Check::Compression,
        Check::Start,
        Check::Availability,
    ];
    let signed = checks.map(|check| example::evidence(check).sign(&example::validator()));
    let good = signed.each_ref().map(SignedEvidence::encode);
    let manifest = example::manifest();
    let taken = with_mutations(1, &good, |bytes| {
        let Ok(read) = SignedEvidence::decode(bytes) else {
            return false;
        };
        assert_eq!(read.encode(), bytes, "there are no other bytes for it");
        let sound = read.check(&manifest).is_ok();
        assert!(!sound || signed.contains(&read), "the signature covers all");
        // As if its validator had signed it.
        let _ = read.evidence.check(&manifest);
        true
    });
    assert!(taken > 0, "some changes leave evidence that can be read");
}

#[test]
fn lists_of_segments_that_are_read_are_lists() {
    let good = [1, 5, 64].map(|segments| list(segments.min(63)).encode());
    let taken = with_mutations(2, &good, |bytes| match SegmentList::decode(bytes) {
        Ok(list) => {
            assert_eq!(list.states().len(), list.work().len() + 1);
            assert_eq!(SegmentList::decode(&list.encode()), Ok(list.clone()));
            let _ = list.commitment();
            true
        }
        Err(_) => false,
    });
    assert!(taken > 0, "some changes leave a list that can be read");
}

#[test]
fn headers_that_are_read_read_again_and_only_their_authors_are_authentic() {
    let run = example::manifest().run();
    let mut header = example::header();
    header.header.update.frames = (0..6)
        .map(|byte| FrameRef {
            hash: Hash([byte; 32]),
            bytes: 1000,
        })
        .collect();
    let author = gradmesh_protocol::key::Keypair::from_seed(&[2; 32]);
    let header = header.header.sign(&author);
    assert!(header.is_authentic());
    let good = [Gossip::Header(Box::new(header.clone())).encode(&run)];
    let mut authentic = 0u64;
    let taken = with_mutations(3, &good, |bytes| match Gossip::decode(&run, bytes) {
        Ok(message) => {
            let again = Gossip::decode(&run, &message.encode(&run));
            assert_eq!(again.as_ref(), Ok(&message));
            if let Gossip::Header(read) = message
                && *read != header
                && read.is_authentic()
            {
                authentic += 1;
            }
            true
        }
        Err(_) => false,
    });
    assert!(taken > 0, "some changes leave a message that can be read");
    assert_eq!(authentic, 0);
}

#[test]
fn a_changed_proof_proves_nothing() {
    let mut random = Random(4);
    let trees: Vec<_> = (1..=33)
        .map(|count| Tree::from_leaves((0..count).map(|i| Hash([i; 32])).collect()))
        .collect();
    for _ in 0..runs() {
        let tree = &trees[random.below(trees.len())];
        let count = tree.leaves().len();
        let index = random.below(count);
        let good = tree.proof(index).unwrap();
        let (root, leaf) = (tree.root(), tree.leaves()[index]);
        let (mut of, mut at, mut proven, mut proof) = (count, index, leaf, good.clone());
        match random.below(6) {
            0 => of = random.word() as usize,
            1 => at = random.word() as usize,
            2 => proven.0[random.below(32)] ^= 1 << random.below(8),
            3 => proof.truncate(random.below(proof.len())),
            4 => proof.insert(random.below(proof.len()), Hash([random.word() as u8; 32])),
            _ => {
                let place = random.below(proof.len());
                if let Some(sibling) = proof.get_mut(place) {
                    sibling.0[random.below(32)] ^= 1 << random.below(8);
                }
            }
        }
        let same = (of, at, proven, &proof) == (count, index, leaf, &good);
        assert_eq!(merkle::verify(&root, of, at, &proven, &proof), same);
    }
}
