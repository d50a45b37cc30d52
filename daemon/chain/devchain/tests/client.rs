//! Every operation of gradmesh's client, through the socket.

mod client_support;

use std::net::IpAddr;

use client_support::{ANY_PRICE, connect, drive, join, nonce, rpc, set, start, subnet};
use gradmesh_chain::attestation::Attestation;
use gradmesh_chain::types::{BlockRef, Field, Hyperparameter, Wait, WeightsReceipt};
use gradmesh_chain::weights::conform;
use gradmesh_chain::{Advice, ChainError, Client, Key};
use serde_json::json;

const TAO: u64 = 1_000_000_000;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The subnet's epoch at `block`, counted by the chain.
async fn epoch(client: &Client, netuid: u16, block: BlockRef) -> u64 {
    let subnet = client.subnet(netuid, Some(block.hash)).await.unwrap();
    subnet.unwrap().epoch_index.unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ChainError>) -> String {
    match result {
        Err(ChainError::Refused(refusal)) => refusal.name,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_is_named_and_described_at_connection() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    assert_eq!(client.genesis(), chain.genesis());
    assert_eq!(client.endpoint(), chain.url());
    assert_eq!(client.block_ms().await.unwrap(), 12_000);
    let capabilities = client.capabilities();
    assert_eq!(capabilities.spec_version, 365);
    assert!(
        capabilities.register_limit && capabilities.timelocked_commits && capabilities.certificates
    );
    assert!(capabilities.metagraph && capabilities.commitments && capabilities.beacon);
    assert!(capabilities.epoch_state);
}

#[tokio::test(flavor = "multi_thread")]
async fn finalized_blocks_come_one_by_one_with_their_time() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    chain.advance(5).unwrap();
    let newest = client.finalized().await.unwrap();
    assert_eq!((newest.number, newest.hash), (5, chain.finalized().hash));
    let mut blocks = client.finalized_blocks();
    assert_eq!(blocks.next().await.unwrap(), newest);
    chain.advance(4).unwrap();
    let mut last = newest;
    for number in 6..=9 {
        let block = blocks.next().await.unwrap();
        assert_eq!(block.number, number);
        assert_eq!(
            client.unix_ms(&block).await.unwrap(),
            client.unix_ms(&last).await.unwrap() + 12_000
        );
        last = block;
    }
    assert_eq!(
        client.block_hash(7).await.unwrap().unwrap(),
        blocks_from(&client, 7).await.hash
    );
    assert_eq!(client.block_hash(10).await.unwrap(), None);
}

async fn blocks_from(client: &gradmesh_chain::Client, number: u64) -> BlockRef {
    client.finalized_blocks_from(number).next().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subnet_is_created_started_and_joined() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let price = client.network_price().await.unwrap();
    assert!(price > 0);
    let netuid = subnet(&chain, &client).await;
    assert_eq!(client.subnets().await.unwrap(), [0, netuid]);
    let (owner, worker) = (Key::dev("Alice"), Key::dev("Dave"));

    let burn = client.registration_price(netuid).await.unwrap();
    let before = client.balance(&Key::dev("Bob").account()).await.unwrap();
    let joined = join(&chain, &client, netuid, &worker).await;
    let receipt = joined.receipt.unwrap();
    assert!(receipt.finalized && receipt.block.number <= client.finalized().await.unwrap().number);
    assert_eq!(
        client.uid(netuid, &worker.account(), None).await.unwrap(),
        Some(joined.uid)
    );
    assert_eq!(
        client
            .uid(netuid, &Key::dev("Eve").account(), None)
            .await
            .unwrap(),
        None
    );
    let paid = before - client.balance(&Key::dev("Bob").account()).await.unwrap();
    assert!(
        (1..=burn + TAO / 100).contains(&paid),
        "paid {paid} for {burn}"
    );

    let again = join(&chain, &client, netuid, &worker).await;
    assert_eq!(
        (again.uid, again.receipt),
        (joined.uid, None),
        "a second registration is found, not paid"
    );

    let described = client.subnet(netuid, None).await.unwrap().unwrap();
    assert_eq!(
        (described.owner_coldkey, described.owner_hotkey),
        (owner.account(), Key::dev("Charlie").account())
    );
    assert_eq!((described.tempo, described.neurons), (20, 2));
    assert!(
        described.commit_reveal && described.subtoken_enabled && described.registration_allowed
    );
    assert_eq!(described.reveal_period_epochs, 1);
    assert!(described.epoch_index.is_some() && described.last_epoch_block.is_some());
    assert_eq!(client.subnet(99, None).await.unwrap(), None);
    assert!(client.neurons(99, None).await.unwrap().is_empty());

    let neurons = client.neurons(netuid, None).await.unwrap();
    let uids: Vec<u16> = neurons.iter().map(|neuron| neuron.uid).collect();
    assert_eq!(uids, [0, 1]);
    let neuron = &neurons[usize::from(joined.uid)];
    assert_eq!(
        (neuron.hotkey, neuron.coldkey),
        (worker.account(), Key::dev("Bob").account())
    );
    assert_eq!(neuron.registered_at, receipt.block.number);
    assert_eq!((neuron.axon, neuron.peer_key), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_above_the_limit_is_refused_with_both_figures_and_costs_nothing() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let (bob, worker) = (Key::dev("Bob"), Key::dev("Dave").account());
    let price = client.registration_price(netuid).await.unwrap();
    let before = client.balance(&bob.account()).await.unwrap();
    match client.register(&bob, netuid, &worker, price / 2).await {
        Err(
            error @ ChainError::PriceAboveLimit {
                price_rao,
                price_max_rao,
                ..
            },
        ) => {
            assert_eq!((price_rao, price_max_rao), (price, price / 2));
            assert_eq!(error.advice(), Advice::Fix);
            assert!(error.to_string().contains(&price.to_string()));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        (
            client.balance(&bob.account()).await.unwrap(),
            nonce(&chain, &bob).await
        ),
        (before, 0)
    );
    assert!(matches!(
        client.register(&bob, 42, &worker, price).await,
        Err(ChainError::NoSubnet(42))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_axon_carries_the_peer_key_and_is_sent_only_when_it_changes() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let worker = Key::dev("Dave");
    let serve = |port, key| client.serve_axon(&worker, netuid, ip("203.0.113.7"), port, 4, key);
    assert_eq!(
        refusal(drive(&chain, serve(9000, None)).await),
        "HotKeyNotRegisteredInNetwork"
    );

    let uid = join(&chain, &client, netuid, &worker).await.uid;
    let receipt = drive(&chain, serve(9000, Some([7; 32])))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        drive(&chain, serve(9000, Some([7; 32]))).await.unwrap(),
        None
    );
    let neuron = client
        .neurons(netuid, None)
        .await
        .unwrap()
        .swap_remove(usize::from(uid));
    let axon = neuron.axon.unwrap();
    assert_eq!(
        (axon.ip, axon.port, axon.protocol),
        (ip("203.0.113.7"), 9000, 4)
    );
    assert_eq!(
        (axon.block, neuron.peer_key),
        (receipt.block.number, Some([7; 32]))
    );

    let too_soon = drive(&chain, serve(9001, Some([7; 32]))).await;
    assert_eq!(too_soon.as_ref().unwrap_err().advice(), Advice::Retry);
    assert_eq!(refusal(too_soon), "ServingRateLimitExceeded");
    chain.advance(60).unwrap();
    drive(
        &chain,
        client.serve_axon(&worker, netuid, ip("2001:db8::5"), 9002, 4, None),
    )
    .await
    .unwrap()
    .unwrap();
    let neuron = client
        .neurons(netuid, None)
        .await
        .unwrap()
        .swap_remove(usize::from(uid));
    assert_eq!(neuron.axon.unwrap().ip, ip("2001:db8::5"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attestation_is_committed_and_read_back_at_its_block() {
    let chain = start(200).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let hotkey = Key::dev("Charlie");
    let attestation = |epoch| Attestation {
        run: [1; 32],
        epoch,
        round: 10 * epoch,
        state_root: [2; 32],
        evidence_root: [0; 32],
        scores: [3; 32],
    };
    let first = drive(
        &chain,
        client.set_commitment(&hotkey, netuid, &attestation(1).fields()),
    )
    .await
    .unwrap();
    let second = drive(
        &chain,
        client.set_commitment(&hotkey, netuid, &attestation(2).fields()),
    )
    .await
    .unwrap();
    for (receipt, epoch) in [(first, 1), (second, 2)] {
        let commitment = client
            .commitment(netuid, &hotkey.account(), Some(receipt.block.hash))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(commitment.block, receipt.block.number);
        assert_eq!(
            Attestation::decode(&commitment.fields),
            Ok(attestation(epoch))
        );
    }
    let all = client.commitments(netuid, None).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(
        (all[0].0, all[0].1.block),
        (hotkey.account(), second.block.number)
    );

    let stranger = drive(
        &chain,
        client.set_commitment(&Key::dev("Eve"), netuid, &[Field::Raw(vec![1])]),
    )
    .await;
    assert_eq!(refusal(stranger), "AccountNotAllowedCommit");
    let long = client
        .set_commitment(&hotkey, netuid, &[Field::Raw(vec![0; 129])])
        .await;
    assert!(matches!(
        long,
        Err(ChainError::CommitmentSize {
            fields: 1,
            longest_bytes: 129
        })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_set_in_the_clear_where_the_subnet_wants_them_so() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let owner_hotkey = Key::dev("Charlie");
    join(&chain, &client, netuid, &Key::dev("Dave")).await;
    join(&chain, &client, netuid, &Key::dev("Eve")).await;
    chain.advance(100).unwrap();
    let refused = drive(&chain, client.set_weights(&owner_hotkey, netuid, &[(1, 1)])).await;
    assert_eq!(refused.as_ref().unwrap_err().advice(), Advice::Stop);
    assert_eq!(refusal(refused), "CommitRevealEnabled");

    set(
        &chain,
        &client,
        netuid,
        &[Hyperparameter::CommitReveal(false)],
    )
    .await;
    let sent = drive(
        &chain,
        client.publish_weights(&owner_hotkey, netuid, &[(2, 50), (1, 100)]),
    )
    .await
    .unwrap();
    let WeightsReceipt::Set(receipt) = sent else {
        panic!("{sent:?}")
    };
    let rows = client
        .weights(netuid, Some(receipt.block.hash))
        .await
        .unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].0, 0);
    let stored: Vec<(u16, u16)> = rows[0]
        .1
        .iter()
        .copied()
        .filter(|(_, weight)| *weight > 0)
        .collect();
    assert_eq!(stored, [(1, 65535), (2, 32767)]);

    let too_soon = drive(
        &chain,
        client.publish_weights(&owner_hotkey, netuid, &[(1, 1)]),
    )
    .await;
    assert_eq!(too_soon.as_ref().unwrap_err().advice(), Advice::Retry);
    assert_eq!(refusal(too_soon), "SettingWeightsTooFast");
    let stranger = client
        .publish_weights(&owner_hotkey, netuid, &[(7, 1)])
        .await;
    assert!(
        matches!(stranger, Err(ChainError::Weights { .. })),
        "{stranger:?}"
    );
    assert!(matches!(
        client.publish_weights(&owner_hotkey, 77, &[(0, 1)]).await,
        Err(ChainError::NoSubnet(77))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn neurons_tell_who_may_set_weights_who_did_and_whom_that_pays() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let (validator, worker) = (Key::dev("Dave"), Key::dev("Eve"));
    let judge = join(&chain, &client, netuid, &validator).await.uid;
    let judged = join(&chain, &client, netuid, &worker).await.uid;
    let (hotkey, bob) = (validator.account(), Key::dev("Bob"));
    let stake = client.add_stake(&bob, netuid, &hotkey, 1_000 * TAO, None);
    drive(&chain, stake).await.unwrap();
    let open = [Hyperparameter::CommitReveal(false)];
    set(&chain, &client, netuid, &open).await;
    chain.advance(100).unwrap();
    let before = client.neurons(netuid, None).await.unwrap();
    let before = &before[usize::from(judge)];
    assert!(before.validator_permit && before.active);
    assert_eq!(before.last_update, before.registered_at);

    let weights = [(judged, 1)];
    let sent = client.publish_weights(&validator, netuid, &weights);
    let sent = drive(&chain, sent).await.unwrap();
    chain.advance(20).unwrap();
    let neurons = client.neurons(netuid, None).await.unwrap();
    let [judge, judged] = [judge, judged].map(|uid| &neurons[usize::from(uid)]);
    assert_eq!(judge.last_update, sent.receipt().block.number);
    assert_eq!((judge.dividends, judge.validator_trust), (65_535, 65_535));
    assert_eq!((judge.incentive, judged.incentive), (0, 65_535));
    assert!(judge.stake_rao > 0 && !judged.validator_permit);
    let rows = client.weights(netuid, None).await.unwrap();
    let uids: Vec<u16> = rows.iter().map(|(uid, _)| *uid).collect();
    assert_eq!(uids, [judge.uid], "who set none has no row");
    let described = client.subnet(netuid, None).await.unwrap().unwrap();
    assert_eq!(described.activity_cutoff, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn timelocked_weights_are_opened_by_the_chain_in_the_epoch_of_their_reveal() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let owner_hotkey = Key::dev("Charlie");
    join(&chain, &client, netuid, &Key::dev("Dave")).await;
    for offset in [0_u32, 7, 13] {
        chain.advance(100 + offset).unwrap();
        let weights = [(0, u16::try_from(10 + offset).unwrap()), (1, 100)];
        let sent = drive(
            &chain,
            client.publish_weights(&owner_hotkey, netuid, &weights),
        )
        .await
        .unwrap();
        let WeightsReceipt::Timelocked {
            receipt,
            reveal_round,
        } = sent
        else {
            panic!("{sent:?}")
        };
        let committed_in = epoch(&client, netuid, receipt.block).await;
        // Weights that differ from those before show the reveal; the block of the last update stays that of the commit.
        let expected = conform(&weights, 2).unwrap();
        let mut blocks = client.finalized_blocks_from(receipt.block.number);
        let revealed = drive(&chain, async {
            loop {
                let block = blocks.next().await.unwrap();
                let rows = client.weights(netuid, Some(block.hash)).await.unwrap();
                if rows.iter().any(|row| row == &(0, expected.clone())) {
                    return block;
                }
                let now = epoch(&client, netuid, block).await;
                assert!(
                    now <= committed_in + 1,
                    "the epoch of the reveal has passed"
                );
            }
        })
        .await;
        assert_eq!(epoch(&client, netuid, revealed).await, committed_in + 1);

        let pulse = client.pulse(reveal_round).await.unwrap().unwrap();
        let beacon = client.beacon().await.unwrap();
        assert_eq!((pulse.round, pulse.randomness.len()), (reveal_round, 32));
        assert!(gradmesh_timelock::verify(
            &beacon.public_key,
            reveal_round,
            &pulse.signature
        ));
        assert!(client.last_pulse().await.unwrap() >= reveal_round);
        let published_ms = (beacon.genesis_unix_s + (reveal_round - 1) * beacon.period_s) * 1000;
        assert!(
            published_ms > client.unix_ms(&receipt.block).await.unwrap(),
            "the round was public at the commit"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_committed_by_hash_are_revealed_in_the_next_epoch() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let owner_hotkey = Key::dev("Charlie");
    join(&chain, &client, netuid, &Key::dev("Dave")).await;
    chain.advance(100).unwrap();
    let (commit, receipt) = drive(
        &chain,
        client.commit_weights(&owner_hotkey, netuid, &[(1, 9)]),
    )
    .await
    .unwrap();
    assert_eq!(commit.weights, [(0, 0), (1, 65535)]);
    let early = drive(
        &chain,
        client.reveal_weights(&owner_hotkey, netuid, &commit),
    )
    .await;
    assert_eq!(refusal(early), "CommitBlockNotInRevealRange");
    let committed_in = epoch(&client, netuid, receipt.block).await;
    while epoch(&client, netuid, client.finalized().await.unwrap()).await == committed_in {
        chain.advance(1).unwrap();
    }
    let mut other = commit.clone();
    other.salt[0] ^= 1;
    let other = drive(&chain, client.reveal_weights(&owner_hotkey, netuid, &other)).await;
    assert_eq!(refusal(other), "NoWeightsCommitFound");
    let revealed = drive(
        &chain,
        client.reveal_weights(&owner_hotkey, netuid, &commit),
    )
    .await
    .unwrap();
    let rows = client
        .weights(netuid, Some(revealed.block.hash))
        .await
        .unwrap();
    assert!(rows[0].1.contains(&(1, 65535)));
    let again = drive(
        &chain,
        client.reveal_weights(&owner_hotkey, netuid, &commit),
    )
    .await;
    assert_eq!(refusal(again), "NoWeightsCommitFound");
}

#[tokio::test(flavor = "multi_thread")]
async fn hyperparameters_are_set_by_the_owner_or_root_and_a_failed_root_call_is_seen() {
    use Hyperparameter as H;
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let (owner, stranger) = (Key::dev("Alice"), Key::dev("Bob"));
    let values = [
        H::Tempo(30),
        H::WeightsRateLimit(7),
        H::ServingRateLimit(9),
        H::CommitReveal(false),
        H::RevealPeriod(3),
        H::ActivityCutoff(400),
        H::ImmunityPeriod(50),
        H::MinAllowedWeights(2),
        H::MaxAllowedUids(64),
        H::MaxValidators(8),
        H::RegistrationAllowed(false),
        H::Kappa(30000),
        H::BondsMovingAverage(800_000),
        H::BondsPenalty(1000),
        H::LiquidAlpha(true),
        H::AlphaValues {
            low: 45_000,
            high: 60_000,
        },
        H::Yuma3(true),
    ];
    set(&chain, &client, netuid, &values).await;
    let subnet = client.subnet(netuid, None).await.unwrap().unwrap();
    assert_eq!(
        (
            subnet.tempo,
            subnet.weights_rate_limit,
            subnet.serving_rate_limit
        ),
        (30, 7, 9)
    );
    assert_eq!(
        (subnet.commit_reveal, subnet.reveal_period_epochs),
        (false, 3)
    );
    assert_eq!(
        (
            subnet.activity_cutoff,
            subnet.immunity_period,
            subnet.min_allowed_weights
        ),
        (400, 50, 2)
    );
    assert_eq!(
        (
            subnet.neurons_max,
            subnet.max_validators,
            subnet.registration_allowed
        ),
        (64, 8, false)
    );

    let by_stranger = drive(
        &chain,
        client.set_hyperparameter(&stranger, netuid, H::CommitReveal(true)),
    )
    .await;
    assert_eq!(refusal(by_stranger), "BadOrigin");
    let as_root = drive(
        &chain,
        client.sudo_set_hyperparameter(&stranger, netuid, H::Tempo(40)),
    )
    .await;
    assert_eq!(refusal(as_root), "BadSigner");
    let inside = drive(
        &chain,
        client.sudo_set_hyperparameter(&owner, netuid, H::RevealPeriod(0)),
    )
    .await;
    assert_eq!(refusal(inside), "RevealPeriodTooSmall");
    assert_eq!(
        client
            .subnet(netuid, None)
            .await
            .unwrap()
            .unwrap()
            .reveal_period_epochs,
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_sets_hyperparameters_outside_the_window_before_an_epoch() {
    let chain = start(360).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let owner = Key::dev("Alice");
    drive(
        &chain,
        client.set_hyperparameter(&owner, netuid, Hyperparameter::ServingRateLimit(11)),
    )
    .await
    .unwrap();
    assert_eq!(
        client
            .subnet(netuid, None)
            .await
            .unwrap()
            .unwrap()
            .serving_rate_limit,
        11
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn stake_and_transfers_move_what_was_asked() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let (bob, worker) = (Key::dev("Bob"), Key::dev("Dave"));
    join(&chain, &client, netuid, &worker).await;
    assert_eq!(client.stake(netuid, &worker.account()).await.unwrap(), 0);
    drive(
        &chain,
        client.add_stake(&bob, netuid, &worker.account(), 100 * TAO, None),
    )
    .await
    .unwrap();
    let staked = client.stake(netuid, &worker.account()).await.unwrap();
    assert!(staked > 0);
    drive(
        &chain,
        client.add_stake(&bob, netuid, &worker.account(), TAO, Some(1_000 * TAO)),
    )
    .await
    .unwrap();
    assert!(client.stake(netuid, &worker.account()).await.unwrap() > staked);
    let dear = drive(
        &chain,
        client.add_stake(&bob, netuid, &worker.account(), TAO, Some(1)),
    )
    .await;
    assert_eq!(refusal(dear), "SlippageTooHigh");
    let little = drive(
        &chain,
        client.add_stake(&bob, netuid, &worker.account(), 1, None),
    )
    .await;
    assert_eq!(refusal(little), "AmountTooLow");

    let stranger = Key::from_seed(&[9; 32]).account();
    drive(&chain, client.transfer(&bob, &stranger, 5 * TAO))
        .await
        .unwrap();
    assert_eq!(client.balance(&stranger).await.unwrap(), 5 * TAO);
    let all = client.balance(&bob.account()).await.unwrap();
    let too_much = drive(&chain, client.transfer(&bob, &stranger, all + 1)).await;
    assert_eq!(too_much.as_ref().unwrap_err().advice(), Advice::Fix);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_for_inclusion_only_returns_before_finality() {
    let chain = start(20).await;
    let client = connect(&chain).await.waiting(Wait::Included);
    chain.set_finality_lag(10).unwrap();
    chain.advance(3).unwrap();
    let stranger = Key::from_seed(&[9; 32]).account();
    let receipt = drive(&chain, client.transfer(&Key::dev("Bob"), &stranger, TAO))
        .await
        .unwrap();
    assert!(!receipt.finalized);
    assert!(receipt.block.number > u64::from(chain.finalized().number));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_key_wait_for_the_same_block_in_order() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let bob = Key::dev("Bob");
    let strangers: Vec<_> = (1..=5_u8)
        .map(|seed| Key::from_seed(&[seed; 32]).account())
        .collect();
    let calls = async {
        let sends = strangers.iter().map(|to| client.transfer(&bob, to, TAO));
        let (a, b, c, d, e) = {
            let mut sends = sends;
            let mut next = || sends.next().unwrap();
            tokio::join!(next(), next(), next(), next(), next())
        };
        [a, b, c, d, e]
    };
    for result in drive(&chain, calls).await {
        result.unwrap();
    }
    assert_eq!(nonce(&chain, &bob).await, 5);
}

/// Bytes of the calls on the wire, as finney's software writes them: the end of the extrinsic in its block.
#[tokio::test(flavor = "multi_thread")]
async fn calls_have_the_bytes_that_finney_expects() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let owner = Key::dev("Alice");
    let mut netuid = 0;
    for seed in 1..=3_u8 {
        let hotkey = Key::from_seed(&[seed; 32]).account();
        (netuid, _) = drive(&chain, client.register_network(&owner, &hotkey))
            .await
            .unwrap();
    }
    assert_eq!(netuid, 3);
    let hotkey = Key::from_seed(&[3; 32]);
    for name in ["Dave", "Eve"] {
        drive(
            &chain,
            client.register(&owner, netuid, &Key::dev(name).account(), ANY_PRICE),
        )
        .await
        .unwrap();
    }
    set(
        &chain,
        &client,
        netuid,
        &[Hyperparameter::CommitReveal(false)],
    )
    .await;
    chain.advance(100).unwrap();
    let weights = [(0, 65535), (1, 100), (2, 7)];
    let set_weights = drive(&chain, client.set_weights(&hotkey, netuid, &weights))
        .await
        .unwrap();
    let hello = [Field::Raw(b"hello".to_vec())];
    let commitment = drive(&chain, client.set_commitment(&hotkey, netuid, &hello))
        .await
        .unwrap();
    for (receipt, call) in [
        (
            set_weights,
            "070003000c0000010002000cffff640007000000000000000000",
        ),
        (commitment, "12000300040668656c6c6f"),
    ] {
        let block = rpc(
            &chain,
            "chain_getBlock",
            json!([format!("0x{}", hex::encode(receipt.block.hash))]),
        )
        .await;
        let index = usize::try_from(receipt.extrinsic_index).unwrap();
        let extrinsic = hex::decode(
            block["block"]["extrinsics"][index]
                .as_str()
                .unwrap()
                .trim_start_matches("0x"),
        )
        .unwrap();
        // Compact length, version 4 signed, address by key, the key, sr25519, signature, era, nonce, tip, mode; the call.
        let body =
            &extrinsic[extrinsic.len() - (hex::decode(call).unwrap().len() + 139 - 35 + 1)..];
        assert_eq!(hex::encode(&body[body.len() - call.len() / 2..]), call);
        let at = extrinsic.iter().position(|byte| *byte == 0x84).unwrap();
        assert_eq!(extrinsic[at + 1], 0);
        assert_eq!(extrinsic[at + 2..at + 34], hotkey.account().0);
        assert_eq!(extrinsic[at + 34], 1);
        let extra = &extrinsic[at + 35 + 64..extrinsic.len() - call.len() / 2];
        assert_eq!(
            extra.len(),
            5,
            "era of two bytes, nonce, tip, metadata hash off: {}",
            hex::encode(extra)
        );
        assert_eq!(extra[3..], [0, 0]);
    }
}
