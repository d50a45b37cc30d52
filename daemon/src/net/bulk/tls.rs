//! TLS of the bulk plane: who is at the other end, and with which cipher.
//!
//! Certificates are those of libp2p-tls: self-signed, TLS 1.3, with the ed25519 node key in an extension that signs
//! the certificate's key. Both sides present one, so both know the other's [`PeerId`] when the handshake ends; a
//! client names the peer that it expects and the handshake fails with any other. The ALPN is [`ALPN`] rather than
//! libp2p's, so that a connection that ends up at the wrong one of a peer's two ports fails in the handshake.
//!
//! The near road (`near.rs`) is TLS over TCP with the same certificates, checks and ALPN. It resumes no session, so that
//! both sides show their certificates on every connection, as on the QUIC road.
//!
//! The order of ciphers is ours: libp2p-tls offers ChaCha20-Poly1305 first, which took more than a fifth of the CPU
//! time of a transfer on a machine with AES instructions (perf, loopback). The client's order decides; both are TLS 1.3
//! suites of 128 bits or more.

use std::sync::Arc;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use libp2p_tls::certificate;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use quinn::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use quinn::rustls::{
    self, CertificateError, CipherSuite, DigitallySignedStruct, NoKeyLog, PeerIncompatible,
    SignatureScheme,
};
use quinn::{ClientConfig, Connection, EndpointConfig, ServerConfig, TransportConfig};
use quinn_proto::HashedConnectionIdGenerator;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::transport::UDP_PAYLOAD_BYTES_MAX;

pub(super) const ALPN: &[u8] = b"gradmesh-bulk/1";

/// The name in TLS's SNI means nothing here but must be a valid one.
pub(super) const SERVER_NAME: &str = "gradmesh";
/// Domain of the key for stateless resets.
const RESET_DOMAIN: &[u8] = b"gradmesh bulk stateless reset 1";
/// Domain of the key that tells own connection IDs from others'.
const CONNECTION_ID_DOMAIN: &[u8] = b"gradmesh bulk connection ID 1";

/// The key pair or the certificates made from it were not accepted by the TLS library.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct TlsError(String);

impl TlsError {
    pub(super) fn new(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

/// Settings for connections to `peer` and no other.
pub(super) fn client_config(
    keypair: &Keypair,
    peer: PeerId,
    transport: Arc<TransportConfig>,
) -> Result<ClientConfig, TlsError> {
    let tls = client_tls(keypair, peer, has_aes())?;
    let crypto = QuicClientConfig::try_from(tls).map_err(TlsError::new)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport);
    Ok(config)
}

/// The client's half of the handshake: the certificate and the algorithms of libp2p-tls, its ciphers in our order.
fn client_tls(
    keypair: &Keypair,
    peer: PeerId,
    aes: bool,
) -> Result<rustls::ClientConfig, TlsError> {
    let theirs = libp2p_tls::make_client_config(keypair, Some(peer)).map_err(TlsError::new)?;
    let mut provider = rustls::crypto::CryptoProvider::clone(theirs.crypto_provider());
    provider
        .cipher_suites
        .sort_by_key(|suite| match (suite.suite(), aes) {
            (CipherSuite::TLS13_AES_128_GCM_SHA256, true) => 0,
            (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, _) => 1,
            (_, _) => 2,
        });
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::new)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Expected(peer)))
        .with_client_cert_resolver(Arc::clone(&theirs.client_auth_cert_resolver));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.key_log = Arc::new(NoKeyLog);
    Ok(tls)
}

/// Whether this CPU encrypts AES-GCM in hardware.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
            && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// Accepts a certificate of this peer and no other, by the rules of libp2p's TLS handshake: exactly one certificate,
/// signed by itself, whose key is signed by the peer's.
#[derive(Debug)]
struct Expected(PeerId);

impl ServerCertVerifier for Expected {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !intermediates.is_empty() {
            return Err(CertificateError::BadEncoding.into());
        }
        if certificate::parse(end_entity)?.peer_id() != self.0 {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        end_entity: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        certificate::parse(end_entity)?.verify_signature(
            signature.scheme,
            message,
            signature.signature(),
        )?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// libp2p-tls makes its certificates with the second; the others are those that the specification names beside it.
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ED25519,
        ]
    }
}

pub(super) fn server_config(
    keypair: &Keypair,
    transport: Arc<TransportConfig>,
) -> Result<ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(server_tls(keypair)?).map_err(TlsError::new)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport);
    Ok(config)
}

/// The server's half of the handshake: a client without a certificate, or with a wrong one, is refused.
fn server_tls(keypair: &Keypair) -> Result<rustls::ServerConfig, TlsError> {
    let mut tls = libp2p_tls::make_server_config(keypair).map_err(TlsError::new)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.key_log = Arc::new(NoKeyLog);
    Ok(tls)
}

pub(super) fn endpoint_config(keypair: &Keypair) -> Result<EndpointConfig, TlsError> {
    let derive = |domain| {
        let derived = keypair.derive_secret(domain);
        derived.ok_or_else(|| TlsError::new("the node key has no secret part"))
    };
    let secret = derive(RESET_DOMAIN)?;
    let ids = derive(CONNECTION_ID_DOMAIN)?;
    // No reset is sent for an ID that this does not take for one of its own, so it must know those of an earlier start.
    let ids = u64::from_le_bytes(std::array::from_fn(|byte| ids[byte]));
    let mut config = EndpointConfig::new(Arc::new(ResetKey(secret)));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
        .max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX)
        .map_err(TlsError::new)?;
    Ok(config)
}

/// Settings for near roads to `peer` and no other.
pub(super) fn near_client(keypair: &Keypair, peer: PeerId) -> Result<TlsConnector, TlsError> {
    let mut tls = client_tls(keypair, peer, has_aes())?;
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(tls).into())
}

pub(super) fn near_server(keypair: &Keypair) -> Result<TlsAcceptor, TlsError> {
    let mut tls = server_tls(keypair)?;
    tls.send_tls13_tickets = 0;
    Ok(Arc::new(tls).into())
}

/// Who is at the other end; `None` cannot happen after a handshake with the settings above, but is not assumed.
pub(super) fn remote_peer(connection: &Connection) -> Option<PeerId> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    peer_of(&chain)
}

/// The same for a near road. TLS over TCP, unlike QUIC, lets a client offer no ALPN at all: then it is none of ours.
pub(super) fn near_peer(connection: &rustls::CommonState) -> Option<PeerId> {
    let ours = connection.alpn_protocol() == Some(ALPN);
    ours.then(|| peer_of(connection.peer_certificates()?))?
}

fn peer_of(chain: &[CertificateDer<'_>]) -> Option<PeerId> {
    let certificate = certificate::parse(chain.first()?).ok()?;
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

#[cfg(test)]
mod tests {
    use quinn::rustls::{ClientConnection, ServerConnection};

    use super::*;

    /// Shakes hands in memory; the suite that both ends agreed on, or the first error.
    fn handshake(
        client: rustls::ClientConfig,
        server: rustls::ServerConfig,
    ) -> Result<CipherSuite, rustls::Error> {
        let name = ServerName::try_from(SERVER_NAME).expect("the name is a valid one");
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).expect("writing to memory");
            server
                .read_tls(&mut wire.as_slice())
                .expect("reading from memory");
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).expect("writing to memory");
            client
                .read_tls(&mut wire.as_slice())
                .expect("reading from memory");
            client.process_new_packets()?;
        }
        let suites = (
            client.negotiated_cipher_suite().map(|suite| suite.suite()),
            server.negotiated_cipher_suite().map(|suite| suite.suite()),
        );
        assert_eq!(suites.0, suites.1);
        Ok(suites.0.expect("the handshake is over"))
    }

    #[test]
    fn client_with_aes_gets_aes_128_and_one_without_gets_chacha20() {
        let (client, server) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let peer = server.public().to_peer_id();
        for (aes, suite) in [
            (true, CipherSuite::TLS13_AES_128_GCM_SHA256),
            (false, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
        ] {
            let client = client_tls(&client, peer, aes).unwrap();
            let server = server_tls(&server).unwrap();
            assert_eq!(handshake(client, server), Ok(suite));
        }
    }

    #[test]
    fn impostor_with_a_certificate_of_its_own_is_refused() {
        let (client, impostor) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let client = client_tls(&client, PeerId::random(), true).unwrap();
        let refused = CertificateError::ApplicationVerificationFailure.into();
        assert_eq!(
            handshake(client, server_tls(&impostor).unwrap()),
            Err(refused)
        );
    }

    #[test]
    fn server_that_shows_the_certificate_of_another_without_its_key_is_refused() {
        #[derive(Debug)]
        struct Stolen(Arc<rustls::sign::CertifiedKey>);
        impl rustls::server::ResolvesServerCert for Stolen {
            fn resolve(
                &self,
                _hello: rustls::server::ClientHello<'_>,
            ) -> Option<Arc<rustls::sign::CertifiedKey>> {
                Some(Arc::clone(&self.0))
            }
        }
        let (client, victim) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let mut server = server_tls(&Keypair::generate_ed25519()).unwrap();
        let (shown, _) = certificate::generate(&victim).unwrap();
        let (_, key) = certificate::generate(&victim).unwrap();
        let key = server
            .crypto_provider()
            .key_provider
            .load_private_key(key)
            .unwrap();
        server.cert_resolver = Arc::new(Stolen(Arc::new(rustls::sign::CertifiedKey::new(
            vec![shown],
            key,
        ))));
        let client = client_tls(&client, victim.public().to_peer_id(), true).unwrap();
        assert_eq!(
            handshake(client, server),
            Err(CertificateError::BadSignature.into())
        );
    }
}
