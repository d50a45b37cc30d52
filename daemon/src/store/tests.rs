use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};

use gradmesh_protocol::agreement::{CommitCertificate, Record, Step, TimeoutRecord};
use gradmesh_protocol::decision::Decision;
use gradmesh_protocol::hash::Hash;
use gradmesh_protocol::key::Keypair;
use gradmesh_protocol::manifest::{RunId, example};

use super::*;

fn decision(round: u64) -> DecisionRecord {
    DecisionRecord {
        decision: Decision {
            run: RunId(Hash::of_content(b"run")),
            round: RoundId(round),
            previous: Hash::of_content(&round.to_le_bytes()),
            state_root: Hash::of_content(b"root"),
            members: Vec::new(),
            shards: Vec::new(),
            joins: Vec::new(),
            leaves: Vec::new(),
            registry: None,
            powers: Vec::new(),
            capacities: Vec::new(),
        },
        certificate: CommitCertificate {
            height: RoundId(round),
            attempt: 0,
            value: Hash::ZERO,
            signatures: Vec::new(),
        },
        headers: Vec::new(),
    }
}

fn entry(attempt: u32) -> JournalEntry {
    JournalEntry::Agreement(Box::new(Record::Timeout(TimeoutRecord {
        step: Step::Propose,
        attempt,
    })))
}

fn state_dir() -> (tempfile::TempDir, StateDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::new(temp.path().join("run"));
    (temp, dir)
}

/// A store with decisions 0 and 1 and two journal entries of round 2.
fn filled(dir: &StateDir) {
    let store = Store::open(dir).unwrap();
    store.store_decision(&decision(0)).unwrap();
    store.store_decision(&decision(1)).unwrap();
    store.append_journal(RoundId(2), &entry(0)).unwrap();
    store.append_journal(RoundId(2), &entry(1)).unwrap();
}

#[test]
fn everything_written_is_there_after_reopening() {
    let (_temp, dir) = state_dir();
    let launcher = Keypair::from_seed(&[1; 32]);
    let manifest = example(launcher.public()).sign(&launcher);
    filled(&dir);
    {
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.manifest().unwrap(), None);
        assert_eq!(store.data_dir().unwrap(), None);
        store.set_manifest(&manifest).unwrap();
        store.set_data_dir(Path::new("/data/text")).unwrap();
    }
    let store = Store::open(&dir).unwrap();
    assert_eq!(store.decided().unwrap(), Some(RoundId(1)));
    assert_eq!(store.all_decisions().unwrap(), [decision(0), decision(1)]);
    assert_eq!(store.decisions(RoundId(1), 5).unwrap(), [decision(1)]);
    assert_eq!(store.decisions(RoundId(0), 1).unwrap(), [decision(0)]);
    assert_eq!(store.decisions(RoundId(7), 5).unwrap(), []);
    assert_eq!(store.journal(RoundId(2)).unwrap(), [entry(0), entry(1)]);
    assert_eq!(store.manifest().unwrap(), Some(manifest));
    assert_eq!(store.data_dir().unwrap(), Some("/data/text".into()));
}

#[test]
fn a_decision_drops_the_journal_of_its_round_and_no_other() {
    let (_temp, dir) = state_dir();
    filled(&dir);
    let store = Store::open(&dir).unwrap();
    store.append_journal(RoundId(3), &entry(9)).unwrap();
    store.store_decision(&decision(2)).unwrap();
    assert_eq!(store.journal(RoundId(2)).unwrap(), []);
    assert_eq!(store.journal(RoundId(3)).unwrap(), [entry(9)]);
}

#[test]
fn a_decision_out_of_order_is_refused_and_the_newest_may_come_twice() {
    let (_temp, dir) = state_dir();
    filled(&dir);
    let store = Store::open(&dir).unwrap();
    store.store_decision(&decision(1)).unwrap();
    for round in [0, 3] {
        assert!(matches!(
            store.store_decision(&decision(round)),
            Err(StoreError::NotNext { expected, found })
                if expected == RoundId(2) && found == RoundId(round)
        ));
    }
    assert_eq!(store.all_decisions().unwrap().len(), 2);
    assert_eq!(store.journal(RoundId(2)).unwrap().len(), 2);
}

#[test]
fn a_directory_belongs_to_one_run_for_good() {
    let (_temp, dir) = state_dir();
    let launcher = Keypair::from_seed(&[1; 32]);
    let first = example(launcher.public());
    let mut second = first.clone();
    second.name = "another".into();
    let store = Store::open(&dir).unwrap();
    let first = first.sign(&launcher);
    store.set_manifest(&first).unwrap();
    store.set_manifest(&first).unwrap();
    let refused = store.set_manifest(&second.sign(&launcher));
    assert!(matches!(refused, Err(StoreError::OtherRun { .. })));
    assert_eq!(store.manifest().unwrap(), Some(first));
}

#[test]
fn a_second_daemon_on_the_same_directory_gets_a_clear_error() {
    let (_temp, dir) = state_dir();
    let first = Store::open(&dir).unwrap();
    let error = Store::open(&dir).map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("in use by another daemon"),
        "{error}"
    );
    drop(first);
    Store::open(&dir).unwrap();
}

#[test]
fn a_file_that_was_cut_off_is_damaged_and_left_alone() {
    let (_temp, dir) = state_dir();
    filled(&dir);
    let whole = fs::read(dir.store()).unwrap();
    for length in [0, 1, 100, 4096, whole.len() / 2, whole.len() - 4096] {
        fs::write(dir.store(), &whole[..length]).unwrap();
        let error = Store::open(&dir)
            .map(|_| ())
            .expect_err("part of the file is missing");
        assert!(
            matches!(error, StoreError::Damaged { .. }),
            "{length}: {error}"
        );
        assert!(error.to_string().contains("node.key"), "{error}");
        assert_eq!(
            fs::read(dir.store()).unwrap(),
            whole[..length],
            "length {length}"
        );
    }
    fs::write(dir.store(), &whole).unwrap();
    assert_eq!(Store::open(&dir).unwrap().all_decisions().unwrap().len(), 2);
}

#[test]
fn a_file_that_is_no_store_is_damaged() {
    let (_temp, dir) = state_dir();
    dir.create().unwrap();
    fs::write(dir.store(), vec![7; 100_000]).unwrap();
    let opened = Store::open(&dir).map(|_| ());
    assert!(matches!(opened, Err(StoreError::Damaged { .. })));
}

#[test]
fn changed_bytes_of_a_value_never_pass_for_a_decision() {
    let (_temp, dir) = state_dir();
    filled(&dir);
    let whole = fs::read(dir.store()).unwrap();
    let needle = Hash::of_content(b"root").0;
    let places: Vec<_> = (0..whole.len() - 32)
        .filter(|at| whole[*at..*at + 32] == needle)
        .collect();
    assert!(
        !places.is_empty(),
        "the decisions' state root is in the file"
    );
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(dir.store())
        .unwrap();
    for place in places {
        let mut byte = [0];
        file.seek(SeekFrom::Start(place as u64)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(place as u64)).unwrap();
        file.write_all(&[byte[0] ^ 1]).unwrap();
    }
    drop(file);
    let read = Store::open(&dir).and_then(|store| store.all_decisions());
    assert!(matches!(read, Err(StoreError::Damaged { .. })));
}

#[test]
fn another_schema_is_refused_by_its_number() {
    let (_temp, dir) = state_dir();
    filled(&dir);
    {
        let store = Store::open(&dir).unwrap();
        store.set_value(KEY_SCHEMA, &7u32.to_le_bytes()).unwrap();
    }
    let error = Store::open(&dir).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, StoreError::Schema { found: 7, .. }),
        "{error}"
    );
}

#[test]
fn a_full_disk_is_told_as_such() {
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
        let error = failure(Path::new("store.redb"), redb::Error::Io(kind.into()));
        assert!(matches!(error, StoreError::Full { .. }), "{kind}");
    }
}

#[test]
fn attestations_wait_in_order_until_they_are_sent() {
    let (_temp, dir) = state_dir();
    let queued = |epoch: u64| QueuedAttestation {
        epoch,
        round: epoch * 10,
        state_root: [epoch as u8; 32],
        scores: [7; 32],
        evidence_root: [0; 32],
    };
    let store = Store::open(&dir).unwrap();
    for epoch in [2, 0, 1] {
        store.queue_attestation(&queued(epoch)).unwrap();
    }
    drop(store);
    let store = Store::open(&dir).unwrap();
    let waiting = store.queued_attestations().unwrap();
    assert_eq!(waiting, [queued(0), queued(1), queued(2)]);
    store.attestation_sent(0).unwrap();
    store.attestation_sent(0).unwrap();
    assert_eq!(store.queued_attestations().unwrap().len(), 2);
}
