//! QUIC settings of the bulk plane and the identities of its connections.
//!
//! Certificates are those of libp2p-tls: self-signed, TLS 1.3, with the ed25519 node key in an extension that signs
//! the certificate's key. Both sides present one, so both know the other's [`PeerId`] when the handshake ends; a
//! client names the peer that it expects and the handshake fails with any other. The ALPN is [`ALPN`] rather than
//! libp2p's, so that a connection that ends up at the wrong one of a peer's two ports fails in the handshake.

use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::rustls::NoKeyLog;
use quinn::rustls::pki_types::CertificateDer;
use quinn::{
    ClientConfig, Connection, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};

use super::BulkLimits;

pub(super) const ALPN: &[u8] = b"gradmesh-bulk/1";

/// What one request may have in flight: 1 Gbit/s over 64 ms, or 100 Mbit/s over 640 ms. On loopback the delay is
/// below a millisecond and any window above a few hundred kilobytes is as good.
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// What all requests of a connection may have in flight: bounds the memory that one peer can pin on either side.
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Largest UDP payload that MTU discovery tries. Loopback and jumbo-frame links carry it; where the path carries less,
/// a dozen lost probes find that out, and they do not count as congestion. The minimum stays at QUIC's 1200: a path
/// below a raised minimum hangs.
///
/// quinn hands the kernel up to ten packets at once (GSO), and that must fit in the 65507 bytes of a datagram: larger
/// packets are sent one by one. Measured on loopback, two busy cores, user CPU of both ends for 768 MiB in three runs:
/// 3.0-3.9 s at 1452 bytes, 2.1-2.4 s at 4096, 1.9-2.1 s at 6500, 3.2-3.9 s at 8952.
const UDP_PAYLOAD_BYTES_MAX: u16 = 6500;
/// The name in TLS's SNI means nothing here but must be a valid one.
pub(super) const SERVER_NAME: &str = "gradmesh";
/// Domain of the key for stateless resets.
const RESET_DOMAIN: &[u8] = b"gradmesh bulk stateless reset 1";

/// The key pair or the certificates made from it were not accepted by the TLS library.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct TlsError(String);

impl TlsError {
    fn new(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

/// Settings for connections to `peer` and no other.
pub(super) fn client_config(
    keypair: &Keypair,
    peer: PeerId,
    transport: Arc<TransportConfig>,
) -> Result<ClientConfig, TlsError> {
    let mut tls = libp2p_tls::make_client_config(keypair, Some(peer)).map_err(TlsError::new)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.key_log = Arc::new(NoKeyLog);
    let crypto = QuicClientConfig::try_from(tls).map_err(TlsError::new)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport);
    Ok(config)
}

pub(super) fn server_config(
    keypair: &Keypair,
    transport: Arc<TransportConfig>,
) -> Result<ServerConfig, TlsError> {
    let mut tls = libp2p_tls::make_server_config(keypair).map_err(TlsError::new)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.key_log = Arc::new(NoKeyLog);
    let crypto = QuicServerConfig::try_from(tls).map_err(TlsError::new)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport);
    Ok(config)
}

pub(super) fn endpoint_config(keypair: &Keypair) -> Result<EndpointConfig, TlsError> {
    let secret = keypair
        .derive_secret(RESET_DOMAIN)
        .ok_or_else(|| TlsError::new("the node key has no secret part"))?;
    let mut config = EndpointConfig::new(Arc::new(ResetKey(secret)));
    config
        .max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX)
        .map_err(TlsError::new)?;
    Ok(config)
}

pub(super) fn transport_config(limits: &BulkLimits) -> Result<TransportConfig, TlsError> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(UDP_PAYLOAD_BYTES_MAX);
    let idle = IdleTimeout::try_from(limits.idle_timeout).map_err(TlsError::new)?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(limits.streams_per_connection_max))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .mtu_discovery_config(Some(mtu))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(None::<Duration>);
    Ok(transport)
}

/// Who is at the other end; `None` cannot happen after a handshake with the settings above, but is not assumed.
pub(super) fn remote_peer(connection: &Connection) -> Option<PeerId> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    let certificate = libp2p_tls::certificate::parse(chain.first()?).ok()?;
    Some(certificate.peer_id())
}

/// Signs stateless resets with a key that survives a restart, so that a peer that still talks to the connections of
/// an earlier start is told so at once instead of waiting for a timeout.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0)
            .update(data)
            .finalize_xof()
            .fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Comparing two `blake3::Hash`es takes constant time.
        let expected = blake3::keyed_hash(&self.0, data);
        match <[u8; blake3::OUT_LEN]>::try_from(signature) {
            Ok(signature) if expected == blake3::Hash::from_bytes(signature) => Ok(()),
            _ => Err(CryptoError),
        }
    }
}
