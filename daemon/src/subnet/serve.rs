//! Publishes where this daemon listens, with the key of its libp2p identity.

use gradmesh_chain::Client;

use super::{Pause, Shared};

/// What Bittensor's own software writes as the protocol of an axon.
const PROTOCOL: u8 = 4;

/// Publishes every address that the driver names, until the daemon ends. An address that stands there already costs no
/// call.
pub(super) async fn run(shared: &Shared, client: &Client) {
    let mut listening = shared.listening.subscribe();
    let mut pause = Pause::new();
    loop {
        let address = *listening.borrow_and_update();
        if let Some(address) = address {
            let hotkey = &shared.access.hotkey;
            let (netuid, peer) = (shared.subnet.netuid, Some(shared.me.0));
            let served =
                client.serve_axon(hotkey, netuid, address.ip(), address.port(), PROTOCOL, peer);
            if let Err(error) = served.await {
                shared.failed("axon", &error);
                pause.wait_after(&error).await;
                continue;
            }
            pause.reset();
            shared.problem("axon", None);
            tracing::info!(%address, netuid, "axon published");
        }
        if listening.changed().await.is_err() {
            return;
        }
    }
}
