//! Where the chain is and how patient the client is with it.

use std::net::IpAddr;
use std::time::Duration;

use crate::error::ChainError;

/// Endpoint of the main network.
pub const FINNEY: &str = "wss://entrypoint-finney.opentensor.ai:443";
/// Endpoint of the test network.
pub const TEST: &str = "wss://test.finney.opentensor.ai:443";
/// Where a node on this machine listens.
pub const LOCAL: &str = "ws://127.0.0.1:9944";

/// Genesis of the main network.
const FINNEY_GENESIS: [u8; 32] = [
    0x2f, 0x05, 0x55, 0xcc, 0x76, 0xfc, 0x28, 0x40, 0xa2, 0x5a, 0x6e, 0xa3, 0xb9, 0x63, 0x71, 0x46,
    0x80, 0x6f, 0x1f, 0x44, 0xb0, 0x90, 0xc1, 0x75, 0xff, 0xde, 0x2a, 0x7e, 0x5a, 0xb3, 0x6c, 0x03,
];

/// Longest list of endpoints.
const ENDPOINTS_MAX: usize = 16;

/// Endpoints and limits of a client.
#[derive(Clone, Debug)]
pub struct Settings {
    /// WebSocket URLs, best first: the first that works is used, the next when it fails. `wss`, or `ws` to this machine.
    pub endpoints: Vec<String>,
    /// Allow `ws` to other machines. Off: whoever sits in between could feed the daemon a chain of their own.
    pub insecure_remote: bool,
    /// The chain that every endpoint must serve. `None`: the one that the first answering endpoint serves.
    pub genesis: Option<[u8; 32]>,
    /// For one TCP, TLS and WebSocket handshake.
    pub connect_timeout: Duration,
    /// For the answer to one request. A subnet's metagraph of 256 uids is about 100 kB.
    pub request_timeout: Duration,
    /// For runtime calls and metadata, which take the node longer.
    pub state_call_timeout: Duration,
    /// For a new finalized head. Six times finney's usual distance of 12 s; after that the endpoint counts as stuck.
    pub head_timeout: Duration,
    /// How long an operation looks for a working endpoint before it gives up with [`ChainError::Unreachable`].
    pub away_timeout: Duration,
    /// Pause after an endpoint's first failure; doubles up to `backoff_max`.
    pub backoff_first: Duration,
    /// Longest pause after failures.
    pub backoff_max: Duration,
    /// Pause after an endpoint refused to serve (HTTP 403 or 429, close code 1008, -32004, -32005): such an endpoint
    /// is asked again only after that, and each further refusal doubles it, up to an hour.
    pub refusal_pause: Duration,
    /// Blocks in which a signed extrinsic can be included, a power of two of 32 to 64. Short enough that "not included"
    /// is certain soon, long enough for a full pool.
    pub era_blocks: u64,
    /// How many times a call is signed before it counts as [`ChainError::NotIncluded`].
    pub attempts_max: u32,
    /// Calls of one key that may wait for their blocks at the same time.
    pub calls_per_key_max: usize,
    /// Storage keys per page when a map is read. Nodes cap it at 1000.
    pub page_keys: u32,
    /// Entries of one map, at most. A subnet has up to 4096 uids; more than this is a broken or hostile node.
    pub entries_max: usize,
}

impl Settings {
    /// Settings of a network: `finney`, `test`, `local`, or WebSocket URLs separated by commas, best first.
    ///
    /// # Errors
    /// [`ChainError::Settings`], naming each bad endpoint.
    pub fn network(name: &str) -> Result<Settings, ChainError> {
        let (endpoints, genesis) = match name {
            "finney" => (vec![FINNEY.to_owned()], Some(FINNEY_GENESIS)),
            "test" => (vec![TEST.to_owned()], None),
            "local" => (vec![LOCAL.to_owned()], None),
            urls => (
                urls.split(',')
                    .map(|url| url.trim().to_owned())
                    .filter(|url| !url.is_empty())
                    .collect(),
                None,
            ),
        };
        let settings = Settings {
            endpoints,
            insecure_remote: false,
            genesis,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(20),
            state_call_timeout: Duration::from_secs(60),
            head_timeout: Duration::from_secs(72),
            away_timeout: Duration::from_secs(60),
            backoff_first: Duration::from_millis(250),
            backoff_max: Duration::from_secs(30),
            refusal_pause: Duration::from_secs(60),
            era_blocks: 64,
            attempts_max: 4,
            calls_per_key_max: 16,
            page_keys: 512,
            entries_max: 16_384,
        };
        settings.validate()?;
        Ok(settings)
    }

    /// Lists every fault at once.
    pub fn validate(&self) -> Result<(), ChainError> {
        let mut faults = Vec::new();
        if self.endpoints.is_empty() {
            faults.push("no endpoint".to_owned());
        }
        if self.endpoints.len() > ENDPOINTS_MAX {
            faults.push(format!(
                "{} endpoints, at most {ENDPOINTS_MAX}",
                self.endpoints.len()
            ));
        }
        faults.extend(
            self.endpoints
                .iter()
                .filter_map(|url| self.endpoint_fault(url)),
        );
        if !matches!(self.era_blocks, 32 | 64) {
            faults.push(format!(
                "era_blocks is {}, must be 32 or 64",
                self.era_blocks
            ));
        }
        for (name, zero) in [
            ("attempts_max", self.attempts_max == 0),
            ("calls_per_key_max", self.calls_per_key_max == 0),
            ("page_keys", self.page_keys == 0),
            ("entries_max", self.entries_max == 0),
            ("connect_timeout", self.connect_timeout.is_zero()),
            ("request_timeout", self.request_timeout.is_zero()),
            ("state_call_timeout", self.state_call_timeout.is_zero()),
            ("head_timeout", self.head_timeout.is_zero()),
            ("away_timeout", self.away_timeout.is_zero()),
        ] {
            if zero {
                faults.push(format!("{name} is zero"));
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ChainError::Settings(faults.join("; ")))
        }
    }

    fn endpoint_fault(&self, url: &str) -> Option<String> {
        if url.starts_with("wss://") {
            return None;
        }
        let Some(rest) = url.strip_prefix("ws://") else {
            return Some(format!(
                "{url:?} is neither finney, test, local nor a ws:// or wss:// URL"
            ));
        };
        if self.insecure_remote || is_loopback(rest) {
            None
        } else {
            Some(format!(
                "{url:?} leaves this machine without encryption; use wss://, or allow it by name"
            ))
        }
    }
}

/// Whether the authority at the start of `rest` names this machine.
fn is_loopback(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    // What stands before an `@` is a user name, and the host is what follows the last one.
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or(inner),
        None => host.rsplit_once(':').map_or(host, |(host, _port)| host),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(network: &str) -> String {
        Settings::network(network).unwrap_err().to_string()
    }

    #[test]
    fn networks_have_names() {
        assert_eq!(Settings::network("finney").unwrap().endpoints, [FINNEY]);
        assert_eq!(hex::encode(&FINNEY_GENESIS[..4]), "2f0555cc");
        assert_eq!(Settings::network("local").unwrap().endpoints, [LOCAL]);
        let two = Settings::network("wss://a.example:443, ws://localhost:9945").unwrap();
        assert_eq!(
            two.endpoints,
            ["wss://a.example:443", "ws://localhost:9945"]
        );
    }

    #[test]
    fn plain_ws_stays_on_this_machine_unless_allowed() {
        for url in [
            "ws://127.0.0.1:1",
            "ws://[::1]:9944/x",
            "ws://localhost",
            "ws://127.8.9.1:2",
        ] {
            assert!(Settings::network(url).is_ok(), "{url}");
        }
        for url in [
            "ws://10.0.0.1:9944",
            "ws://localhost.example",
            "ws://127.0.0.1@evil.example:1",
            "ws://[2001:db8::1]:1",
        ] {
            assert!(fault(url).contains("without encryption"), "{url}");
        }
        let mut settings = Settings::network(LOCAL).unwrap();
        settings.endpoints = vec!["ws://10.0.0.1:9944".into()];
        settings.insecure_remote = true;
        assert!(settings.validate().is_ok());
    }

    #[test]
    fn every_fault_is_listed_at_once() {
        let mut settings = Settings::network(LOCAL).unwrap();
        settings.endpoints.push("http://x".into());
        settings.era_blocks = 48;
        settings.attempts_max = 0;
        let text = settings.validate().unwrap_err().to_string();
        assert!(
            ["http://x", "era_blocks is 48", "attempts_max is zero"]
                .iter()
                .all(|part| text.contains(part)),
            "{text}"
        );
        assert!(fault(" , ").contains("no endpoint"));
    }
}
