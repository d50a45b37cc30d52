//! Sources that lie or break the protocol.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_with_wrong_bytes_is_blamed_and_the_next_one_serves() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let (_a, liar) = peer(claims(hash, pattern(MIB, 2)));
    let (_b, short) = peer(claims(hash, pattern(MIB / 2, 1)));
    let (_c, good) = peer(claims(hash, bytes.clone()));
    let fetched = client()
        .fetch(
            hash,
            Length::AtMost(MIB as u64),
            &[liar, short, good],
            deadline(),
        )
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(
        fetched.report.blamed,
        [
            (liar.peer, Blame::WrongBytes),
            (short.peer, Blame::WrongBytes)
        ]
    );
    assert!(fetched.report.blamed.iter().all(|(_, b)| b.is_proven()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liar_that_dies_is_told_from_the_honest_source_that_continued() {
    let bytes = pattern(2 * MIB, 1);
    let hash = hash_of(&bytes);
    let (liar, _) = rogue(Rogue::Dies {
        total: bytes.len() as u64,
        sends: pattern(MIB, 2),
    });
    let (_server, good) = peer(claims(hash, bytes.clone()));
    let fetched = client()
        .fetch(
            hash,
            Length::AtMost(bytes.len() as u64),
            &[liar, good],
            deadline(),
        )
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(
        fetched.report.blamed.last(),
        Some(&(liar.peer, Blame::WrongBytes))
    );
    assert!(
        fetched
            .report
            .blamed
            .iter()
            .all(|(peer, _)| *peer == liar.peer)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liar_about_the_length_is_told_from_the_honest_source() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    // One claims more and dies within the true length, the other has sent more than the true length already.
    for sends in [pattern(MIB / 2, 1), pattern(2 * MIB, 1)] {
        let (liar, _) = rogue(Rogue::Dies {
            total: 3 * MIB as u64,
            sends,
        });
        let (_server, good) = peer(claims(hash, bytes.clone()));
        let fetched = client()
            .fetch(
                hash,
                Length::AtMost(4 * MIB as u64),
                &[liar, good],
                deadline(),
            )
            .await
            .unwrap();
        assert_eq!(fetched.bytes, bytes);
        assert_eq!(
            fetched.report.blamed.last(),
            Some(&(liar.peer, Blame::WrongBytes))
        );
        assert!(
            fetched
                .report
                .blamed
                .iter()
                .all(|(peer, _)| *peer == liar.peer)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claim_above_the_cap_is_refused_before_a_byte_of_it_is_taken() {
    let (flood, _) = rogue(Rogue::Floods { total: u64::MAX });
    let bytes = pattern(MIB, 1);
    // An honest server respects the cap itself and says how long the blob is.
    let (_server, honest) = peer(claims(hash_of(&bytes), bytes.clone()));
    let failed = client()
        .fetch(
            hash_of(&bytes),
            Length::AtMost(1000),
            &[flood, honest],
            deadline(),
        )
        .await
        .unwrap_err();
    assert_eq!(failed.error, FetchError::Exhausted);
    assert_eq!(
        failed.report,
        FetchReport {
            bytes_from: vec![],
            blamed: vec![
                (flood.peer, Blame::OverCap { claimed: u64::MAX }),
                (
                    honest.peer,
                    Blame::OverCap {
                        claimed: MIB as u64
                    }
                ),
            ],
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_within_the_cap_ends_at_the_claimed_length() {
    let (flood, _) = rogue(Rogue::Floods { total: MIB as u64 });
    let failed = client()
        .fetch([1; 32], Length::AtMost(MIB as u64), &[flood], deadline())
        .await
        .unwrap_err();
    assert_eq!(failed.report.bytes_from, [(flood.peer, MIB as u64)]);
    assert_eq!(failed.report.blamed, [(flood.peer, Blame::WrongBytes)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_that_ends_before_its_claimed_length_breaks_the_protocol() {
    let (short, _) = rogue(Rogue::EndsEarly {
        total: 100,
        sends: pattern(40, 1),
    });
    let failed = client()
        .fetch([1; 32], Length::AtMost(100), &[short], deadline())
        .await
        .unwrap_err();
    assert!(
        matches!(&failed.report.blamed[..], [(_, Blame::Protocol(_))]),
        "{:?}",
        failed.report
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_that_shrank_ends_the_stream_and_is_not_taken_for_the_blob() {
    let store = Arc::new(BlobStore::new(0));
    let (_server, source) = peer(store.clone());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, [7; 1000]).unwrap();
    store.register_file([1; 32], path, 0, 5000).unwrap();
    let failed = client()
        .fetch([1; 32], Length::AtMost(5000), &[source], deadline())
        .await
        .unwrap_err();
    assert!(
        matches!(&failed.report.blamed[..], [(_, Blame::Died(_))]),
        "{:?}",
        failed.report
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liar_among_several_holders_is_blamed_alone_and_the_blob_is_right() {
    let bytes = pattern(LONG, 1);
    let hash = hash_of(&bytes);
    let (_a, first) = peer(claims(hash, bytes.clone()));
    let (_b, liar) = peer(claims(hash, pattern(LONG, 2)));
    let (_c, last) = peer(claims(hash, bytes.clone()));
    let length = Length::Exactly(LONG as u64);
    let fetched = client()
        .fetch(hash, length, &[first, liar, last], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, bytes);
    assert_eq!(fetched.report.blamed, [(liar.peer, Blame::WrongBytes)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_with_another_length_is_left_before_a_byte_of_it_is_taken() {
    let bytes = pattern(MIB, 1);
    let hash = hash_of(&bytes);
    let (_a, short) = peer(claims(hash, bytes.slice(1..)));
    let (_b, good) = peer(claims(hash, bytes.clone()));
    let length = Length::Exactly(MIB as u64);
    let fetched = client()
        .fetch(hash, length, &[short, good], deadline())
        .await
        .unwrap();
    assert_eq!(fetched.report.bytes_from, [(good.peer, MIB as u64)]);
    let claimed = MIB as u64 - 1;
    assert_eq!(
        fetched.report.blamed,
        [(short.peer, Blame::OtherLength { claimed })]
    );
}
