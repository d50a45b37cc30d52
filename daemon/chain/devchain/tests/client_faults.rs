//! What gradmesh's client does when something goes wrong between it and the chain. Everything through the socket.
//!
//! "Once" is proven by the account's nonce: each inclusion of an extrinsic raises it by one.

mod client_support;

use std::time::Duration;

use client_support::{
    ANY_PRICE, Door, Refuser, connect, drive, join, nonce, rpc, set, settings, start, subnet, until,
};
use gradmesh_chain::types::{Field, Hyperparameter, Receipt};
use gradmesh_chain::{AccountId, Advice, ChainError, Client, Key};
use gradmesh_devchain::{DevChain, DropAt, Refusal};
use jsonrpsee::RpcModule;
use jsonrpsee::server::Server;
use jsonrpsee::types::ErrorObjectOwned;
use serde_json::json;

const TAO: u64 = 1_000_000_000;

fn stranger() -> AccountId {
    Key::from_seed(&[9; 32]).account()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ChainError>) -> String {
    match result {
        Err(ChainError::Refused(refusal)) => refusal.name,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// The receipt's block is on the finalized chain and holds the extrinsic where the receipt says.
async fn assert_final(chain: &DevChain, client: &Client, receipt: &Receipt) {
    assert!(receipt.finalized);
    assert_eq!(
        client.block_hash(receipt.block.number).await.unwrap(),
        Some(receipt.block.hash)
    );
    assert!(receipt.block.number <= u64::from(chain.finalized().number));
    let block = rpc(
        chain,
        "chain_getBlock",
        json!([format!("0x{}", hex::encode(receipt.block.hash))]),
    )
    .await;
    let index = usize::try_from(receipt.extrinsic_index).unwrap();
    let bytes = hex::decode(
        block["block"]["extrinsics"][index]
            .as_str()
            .unwrap()
            .trim_start_matches("0x"),
    )
    .unwrap();
    assert_eq!(sp_io::hashing::blake2_256(&bytes), receipt.extrinsic_hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_cut_off_after_it_reached_the_pool_is_found_not_repeated() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let bob = Key::dev("Bob");
    chain.drop_next_submission(Some(DropAt::AfterPool));
    let receipt = drive(&chain, client.transfer(&bob, &stranger(), TAO))
        .await
        .unwrap();
    assert_final(&chain, &client, &receipt).await;
    assert_eq!(nonce(&chain, &bob).await, 1);
    assert_eq!(client.balance(&stranger()).await.unwrap(), TAO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_cut_off_before_the_pool_is_signed_anew_only_when_its_era_is_over() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let bob = Key::dev("Bob");
    chain.drop_next_submission(Some(DropAt::BeforePool));
    let sent_at = u64::from(chain.best().number);
    let receipt = drive(&chain, client.transfer(&bob, &stranger(), TAO))
        .await
        .unwrap();
    assert_final(&chain, &client, &receipt).await;
    assert!(
        receipt.block.number >= sent_at + 32,
        "block {} is in the first era",
        receipt.block.number
    );
    assert_eq!(
        (
            nonce(&chain, &bob).await,
            client.balance(&stranger()).await.unwrap()
        ),
        (1, TAO)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_between_submission_and_inclusion_changes_nothing() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let bob = Key::dev("Bob");
    let (sender, key) = (client.clone(), bob.clone());
    let call = tokio::spawn(async move { sender.transfer(&key, &stranger(), TAO).await });
    until(&chain, |status| status["pool"] == 1).await;
    chain.drop_connections();
    let receipt = drive(&chain, call).await.unwrap().unwrap();
    assert_final(&chain, &client, &receipt).await;
    assert_eq!(
        (
            nonce(&chain, &bob).await,
            client.balance(&stranger()).await.unwrap()
        ),
        (1, TAO)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extrinsic_in_a_block_that_a_reorganisation_undid_is_followed_into_its_new_block() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let bob = Key::dev("Bob");
    chain.set_finality_lag(6).unwrap();
    chain.advance(8).unwrap();
    let (sender, key) = (client.clone(), bob.clone());
    let call = tokio::spawn(async move { sender.transfer(&key, &stranger(), TAO).await });
    until(&chain, |status| status["pool"] == 1).await;
    let undone = chain.advance(1).unwrap();
    until(&chain, |status| status["pool"] == 0).await;
    chain.advance(1).unwrap();
    assert!(chain.reorg(2, false).unwrap());
    let receipt = drive(&chain, call).await.unwrap().unwrap();
    assert_ne!(receipt.block.hash, undone.hash);
    assert_final(&chain, &client, &receipt).await;
    assert_eq!(
        (
            nonce(&chain, &bob).await,
            client.balance(&stranger()).await.unwrap()
        ),
        (1, TAO)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extrinsic_that_a_reorganisation_lost_is_signed_anew_after_its_era_and_included_once() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let bob = Key::dev("Bob");
    chain.set_finality_lag(4).unwrap();
    chain.advance(8).unwrap();
    let (sender, key) = (client.clone(), bob.clone());
    let call = tokio::spawn(async move { sender.transfer(&key, &stranger(), TAO).await });
    until(&chain, |status| status["pool"] == 1).await;
    let undone = chain.advance(1).unwrap();
    assert!(chain.reorg(1, true).unwrap());
    let receipt = drive(&chain, call).await.unwrap().unwrap();
    assert!(receipt.block.number > u64::from(undone.number) + 20);
    assert_final(&chain, &client, &receipt).await;
    assert_eq!(
        (
            nonce(&chain, &bob).await,
            client.balance(&stranger()).await.unwrap()
        ),
        (1, TAO)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_with_one_key_take_turns() {
    let chain = start(20).await;
    let (one, other) = (connect(&chain).await, connect(&chain).await);
    let bob = Key::dev("Bob");
    // Each counts on from its own last call: the other's call has taken that nonce (pool: outdated).
    for client in [&one, &other, &one, &one, &other] {
        drive(&chain, client.transfer(&bob, &stranger(), TAO))
            .await
            .unwrap();
    }
    assert_eq!(nonce(&chain, &bob).await, 5);
    // Now both in one block: the second to come finds the nonce taken in the pool (pool: priority too low).
    let (sender, key) = (one.clone(), bob.clone());
    let first = tokio::spawn(async move { sender.transfer(&key, &stranger(), TAO).await });
    until(&chain, |status| status["pool"] == 1).await;
    let (sender, key) = (other.clone(), bob.clone());
    let second = tokio::spawn(async move { sender.transfer(&key, &stranger(), TAO).await });
    until(&chain, |status| status["pool"] == 2).await;
    let (first, second) = drive(&chain, async { tokio::join!(first, second) }).await;
    let (first, second) = (first.unwrap().unwrap(), second.unwrap().unwrap());
    assert_eq!(first.block, second.block);
    assert_ne!(first.extrinsic_index, second.extrinsic_index);
    assert_eq!(
        (
            nonce(&chain, &bob).await,
            one.balance(&stranger()).await.unwrap()
        ),
        (7, 7 * TAO)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_lost_to_another_program_is_signed_anew_as_soon_as_its_nonce_is_gone() {
    let chain = start(20).await;
    let (one, other) = (connect(&chain).await, connect(&chain).await);
    let bob = Key::dev("Bob");
    chain.drop_next_submission(Some(DropAt::BeforePool));
    let (sender, key) = (one.clone(), bob.clone());
    let lost = tokio::spawn(async move { sender.transfer(&key, &stranger(), TAO).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let taken = drive(&chain, other.transfer(&bob, &stranger(), TAO))
        .await
        .unwrap();
    let found = drive(&chain, lost).await.unwrap().unwrap();
    assert!(
        found.block.number < taken.block.number + 16,
        "long before the era of the lost one ends"
    );
    assert_eq!(
        (
            nonce(&chain, &bob).await,
            one.balance(&stranger()).await.unwrap()
        ),
        (2, 2 * TAO)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_upgrade_in_mid_run_needs_no_restart() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let bob = Key::dev("Bob");
    drive(&chain, client.transfer(&bob, &stranger(), TAO))
        .await
        .unwrap();
    // The best block has the new version, the finalized one and some after it the old: what is signed must fit the best
    // one, and must not be taken for lost while finality has yet to reach the upgrade.
    chain.set_finality_lag(5).unwrap();
    chain.advance(8).unwrap();
    chain.upgrade(366);
    chain.advance(2).unwrap();
    let receipt = drive(&chain, client.transfer(&bob, &stranger(), TAO))
        .await
        .unwrap();
    assert_final(&chain, &client, &receipt).await;
    assert_eq!(client.capabilities().spec_version, 366);
    // Signed for the old version and lost: certain as soon as the version has changed, not at the end of the era.
    chain.drop_next_submission(Some(DropAt::BeforePool));
    let (sender, key) = (client.clone(), bob.clone());
    let call = tokio::spawn(async move { sender.transfer(&key, &stranger(), TAO).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    chain.upgrade(367);
    let lost_at = chain.advance(1).unwrap().number;
    let receipt = drive(&chain, call).await.unwrap().unwrap();
    assert!(receipt.block.number < u64::from(lost_at) + 16);
    assert_final(&chain, &client, &receipt).await;
    assert_eq!(
        (
            nonce(&chain, &bob).await,
            client.balance(&stranger()).await.unwrap()
        ),
        (3, 3 * TAO)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_neuron_loses_its_uid_and_every_read_names_hotkey_and_uid_of_one_block() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let values = [
        Hyperparameter::ImmunityPeriod(0),
        Hyperparameter::MaxAllowedUids(64),
    ];
    set(&chain, &client, netuid, &values).await;
    let neurons_max = client
        .subnet(netuid, None)
        .await
        .unwrap()
        .unwrap()
        .neurons_max;
    let keys: Vec<Key> = (0..neurons_max)
        .map(|n| Key::from_seed(&[u8::try_from(n).unwrap(); 32]))
        .collect();
    let mut fill = keys.iter();
    let first = fill.next().unwrap();
    for hotkey in std::iter::once(first).chain(fill.take(usize::from(neurons_max) - 2)) {
        join(&chain, &client, netuid, hotkey).await;
    }
    let before = client.finalized().await.unwrap();
    let full = client.neurons(netuid, Some(before.hash)).await.unwrap();
    assert_eq!(full.len(), usize::from(neurons_max));

    let newcomer = join(&chain, &client, netuid, &Key::dev("Eve")).await;
    let pruned = full[usize::from(newcomer.uid)].hotkey;
    assert_ne!(pruned, Key::dev("Eve").account());
    assert_eq!(client.uid(netuid, &pruned, None).await.unwrap(), None);
    assert_eq!(
        client
            .uid(netuid, &pruned, Some(before.hash))
            .await
            .unwrap(),
        Some(newcomer.uid)
    );
    assert_eq!(
        client
            .uid(netuid, &Key::dev("Eve").account(), None)
            .await
            .unwrap(),
        Some(newcomer.uid)
    );
    let now = client.neurons(netuid, None).await.unwrap();
    assert_eq!(
        now[usize::from(newcomer.uid)].hotkey,
        Key::dev("Eve").account()
    );
    assert!(now.iter().all(|neuron| neuron.hotkey != pruned));

    let pruned = keys.iter().find(|key| key.account() == pruned).unwrap();
    let axon = client.serve_axon(
        pruned,
        netuid,
        "203.0.113.7".parse().unwrap(),
        9000,
        4,
        None,
    );
    let error = drive(&chain, axon).await;
    assert_eq!(error.as_ref().unwrap_err().advice(), Advice::Fix);
    assert!(
        error
            .as_ref()
            .unwrap_err()
            .what_to_do()
            .contains("registers anew")
    );
    assert_eq!(refusal(error), "HotKeyNotRegisteredInNetwork");
}

#[tokio::test(flavor = "multi_thread")]
async fn commitments_end_when_the_epochs_space_is_used_up_and_go_on_in_the_next() {
    let tempo = 300;
    let chain = start(tempo).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let hotkey = Key::dev("Charlie");
    let fields = [Field::Raw(vec![1; 10])];
    let commit = async || drive(&chain, client.set_commitment(&hotkey, netuid, &fields)).await;
    let mut taken = 0;
    let error = loop {
        match commit().await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken <= 62, "never refused");
    };
    assert!(
        taken >= 31,
        "an epoch takes 31 commitments of at least 100 bytes, {taken} were taken"
    );
    assert_eq!(error.advice(), Advice::Retry);
    assert!(error.what_to_do().contains("next epoch"));
    assert_eq!(error.refusal_name(), Some("SpaceLimitExceeded"));
    chain.advance(u32::from(tempo) + 1).unwrap();
    commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_right_after_registration_are_too_early_and_pass_later() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let hotkey = Key::dev("Charlie");
    let limit = [Hyperparameter::WeightsRateLimit(1000)];
    set(&chain, &client, netuid, &limit).await;
    let early = drive(&chain, client.publish_weights(&hotkey, netuid, &[(0, 1)])).await;
    assert_eq!(early.as_ref().unwrap_err().advice(), Advice::Retry);
    assert_eq!(refusal(early), "CommittingWeightsTooFast");
    set(
        &chain,
        &client,
        netuid,
        &[Hyperparameter::CommitReveal(false)],
    )
    .await;
    let early = drive(&chain, client.publish_weights(&hotkey, netuid, &[(0, 1)])).await;
    assert_eq!(refusal(early), "SettingWeightsTooFast");
    chain.advance(1000).unwrap();
    drive(&chain, client.publish_weights(&hotkey, netuid, &[(0, 1)]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_that_rises_above_the_limit_is_never_paid() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    let netuid = subnet(&chain, &client).await;
    let bob = Key::dev("Bob");
    let price = client.registration_price(netuid).await.unwrap();
    let before = client.balance(&bob.account()).await.unwrap();
    // Both look while the price is low. Alice's registration comes first and raises it; Bob's limit holds in the block.
    let (rival, key) = (client.clone(), Key::dev("Alice"));
    let rivals = tokio::spawn(async move {
        rival
            .register(&key, netuid, &Key::dev("Dave").account(), ANY_PRICE)
            .await
    });
    until(&chain, |status| status["pool"] == 1).await;
    let (buyer, key) = (client.clone(), bob.clone());
    let ours = tokio::spawn(async move {
        buyer
            .register(&key, netuid, &Key::dev("Eve").account(), price)
            .await
    });
    until(&chain, |status| status["pool"] == 2).await;
    let (rivals, ours) = drive(&chain, async { tokio::join!(rivals, ours) }).await;
    rivals.unwrap().unwrap();
    match ours.unwrap() {
        Err(ChainError::PriceAboveLimit {
            price_rao,
            price_max_rao,
            ..
        }) => {
            assert_eq!(price_max_rao, price);
            assert!(price_rao > price, "{price_rao} against {price}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        client
            .uid(netuid, &Key::dev("Eve").account(), None)
            .await
            .unwrap(),
        None
    );
    let fee = before - client.balance(&bob.account()).await.unwrap();
    assert!(fee < price / 10, "only the fee was paid, not {fee}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_is_asked_once_and_the_next_one_serves() {
    let chain = start(20).await;
    for status in ["429 Too Many Requests", "403 Forbidden"] {
        let refuser = Refuser::start(status).await;
        let client = Client::connect(settings(&format!("{},{}", refuser.url(), chain.url())))
            .await
            .unwrap();
        assert_eq!((client.endpoint(), refuser.asked()), (chain.url(), 1));
        for _ in 0..3 {
            chain.drop_connections();
            chain.advance(1).unwrap();
            assert_eq!(
                client.finalized().await.unwrap().number,
                u64::from(chain.best().number)
            );
        }
        assert_eq!(refuser.asked(), 1, "{status}: left alone while it pauses");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_answers_with_a_limit_error_is_left_at_once() {
    let chain = start(20).await;
    for code in [-32004, -32005] {
        let server = Server::builder().build("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", server.local_addr().unwrap());
        let mut module = RpcModule::new(());
        module
            .register_method("chain_getBlockHash", move |_, (), _| {
                Err::<String, _>(ErrorObjectOwned::owned(code, "limit exceeded", None::<()>))
            })
            .unwrap();
        let handle = server.start(module);
        let client = Client::connect(settings(&format!("{url},{}", chain.url())))
            .await
            .unwrap();
        assert_eq!(client.endpoint(), chain.url());
        let alone = settings(&url);
        match Client::connect(alone).await.map(drop) {
            Err(error @ ChainError::Unreachable(_)) => {
                assert!(error.to_string().contains("limit exceeded"), "{error}")
            }
            other => panic!("{other:?}"),
        }
        handle.stop().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_blocks_go_on_over_the_next_endpoint_when_one_dies() {
    let chain = start(20).await;
    let door = Door::to(&chain).await;
    let client = Client::connect(settings(&format!("{},{}", door.url(), chain.url())))
        .await
        .unwrap();
    assert_eq!(client.endpoint(), door.url());
    let mut blocks = client.finalized_blocks();
    chain.advance(2).unwrap();
    let first = blocks.next().await.unwrap().number;
    let bob = Key::dev("Bob");
    let (sender, key) = (client.clone(), bob.clone());
    let call = tokio::spawn(async move { sender.transfer(&key, &stranger(), TAO).await });
    until(&chain, |status| status["pool"] == 1).await;
    door.shut();
    let receipt = drive(&chain, call).await.unwrap().unwrap();
    assert_final(&chain, &client, &receipt).await;
    assert_eq!(
        (client.endpoint(), nonce(&chain, &bob).await),
        (chain.url(), 1)
    );
    for number in first + 1..=u64::from(chain.finalized().number) {
        assert_eq!(blocks.next().await.unwrap().number, number);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_another_chain_is_never_read() {
    let (ours, other) = (start(20).await, start(21).await);
    let door = Door::to(&ours).await;
    let client = Client::connect(settings(&format!("{},{}", door.url(), other.url())))
        .await
        .unwrap();
    assert_eq!(client.genesis(), ours.genesis());
    door.shut();
    let mut patient = settings(&format!("{},{}", other.url(), ours.url()));
    patient.genesis = Some(ours.genesis());
    let patient = Client::connect(patient).await.unwrap();
    assert_eq!(patient.endpoint(), ours.url());
    let mut strict = settings(&other.url());
    strict.genesis = Some(ours.genesis());
    match Client::connect(strict).await.map(drop) {
        Err(ChainError::WrongChain {
            genesis, expected, ..
        }) => {
            assert_eq!((genesis, expected), (other.genesis(), ours.genesis()));
        }
        result => panic!("{result:?}"),
    }
    let error = client.finalized().await.unwrap_err();
    assert!(matches!(error, ChainError::Unreachable(_)), "{error}");
    assert_eq!(error.advice(), Advice::Retry);
}

#[tokio::test(flavor = "multi_thread")]
async fn finalized_blocks_never_go_back_at_an_endpoint_that_is_behind() {
    let chain = start(20).await;
    let client = connect(&chain).await;
    chain.advance(10).unwrap();
    let mut blocks = client.finalized_blocks();
    assert_eq!(blocks.next().await.unwrap().number, 10);
    chain.set_stale(6);
    chain.drop_connections();
    assert_eq!(client.finalized().await.unwrap().number, 10);
    let next = tokio::spawn(async move { (blocks.next().await.unwrap().number, blocks) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!next.is_finished(), "nothing new is final here");
    chain.set_stale(0);
    chain.advance(1).unwrap();
    let (number, mut blocks) = tokio::time::timeout(Duration::from_secs(10), next)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(number, 11);
    chain.advance(1).unwrap();
    assert_eq!(blocks.next().await.unwrap().number, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_fate_is_open_is_settled_when_the_chain_is_back() {
    let chain = start(20).await;
    let mut impatient = settings(&chain.url());
    impatient.away_timeout = Duration::from_millis(300);
    let client = Client::connect(impatient).await.unwrap();
    let bob = Key::dev("Bob");
    for (lost, expected) in [(DropAt::AfterPool, true), (DropAt::BeforePool, false)] {
        let before = nonce(&chain, &bob).await;
        chain.drop_next_submission(Some(lost));
        chain.refuse_connections(Refusal::Close, 60_000);
        let pending = match client.transfer(&bob, &stranger(), TAO).await {
            Err(error @ ChainError::Uncertain(_)) => {
                assert!(error.what_to_do().contains("do not send it again"));
                let ChainError::Uncertain(pending) = error else {
                    unreachable!()
                };
                pending
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(
            (pending.nonce, pending.block_last - pending.block_first),
            (before, 30)
        );
        chain.refuse_connections(Refusal::Close, 0);
        // The client still is impatient, and a busy machine slow: then the call's fate is open as before, and it is asked again.
        let ask = async {
            loop {
                match drive(&chain, client.settle(&pending)).await {
                    Err(ChainError::Uncertain(still)) => assert_eq!(still, pending),
                    settled => break settled.unwrap(),
                }
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(60), ask)
            .await
            .unwrap();
        assert_eq!(settled.is_some(), expected, "{lost:?}");
        if let Some(receipt) = settled {
            assert_final(&chain, &client, &receipt).await;
            assert_eq!(receipt.extrinsic_hash, pending.extrinsic_hash);
        }
        assert_eq!(nonce(&chain, &bob).await, before + u64::from(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_chain_gives_an_error_in_bounded_time() {
    let chain = start(20).await;
    let mut impatient = settings(&chain.url());
    impatient.request_timeout = Duration::from_millis(200);
    impatient.away_timeout = Duration::from_millis(500);
    let client = Client::connect(impatient).await.unwrap();
    chain.set_delay(60_000);
    let asked = tokio::time::timeout(Duration::from_secs(5), client.finalized())
        .await
        .unwrap();
    assert_eq!(asked.unwrap_err().advice(), Advice::Retry);
    chain.set_delay(0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.finalized().await.unwrap();
}
