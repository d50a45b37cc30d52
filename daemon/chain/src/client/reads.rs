//! What stands on chain. `at` is the hash of a block; `None` is the newest finalized one, which costs 2 requests more.
//! A result is of one block throughout: hotkeys and uids in it belong together.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use scale_decode::DecodeAsType;
use scale_value::{Primitive, Value, ValueDef};

use super::Client;
use super::view::{View, account, number};
use crate::account::AccountId;
use crate::error::ChainError;
use crate::runtime::unreadable;
use crate::types::{Axon, Beacon, Commitment, Field, Neuron, Pulse, Subnet};

/// The pallet of everything that is Bittensor's own.
pub(super) const SUBTENSOR: &str = "SubtensorModule";
/// Algorithm byte of an ed25519 key in a neuron's certificate.
pub(super) const CERTIFICATE_ED25519: u8 = 1;

/// `SubnetInfoRuntimeApi.get_subnet_hyperparams`.
#[derive(DecodeAsType)]
struct Hyperparameters {
    tempo: u16,
    immunity_period: u16,
    min_allowed_weights: u16,
    max_weights_limit: u16,
    weights_version: u64,
    weights_rate_limit: u64,
    activity_cutoff: u16,
    registration_allowed: bool,
    serving_rate_limit: u64,
    max_validators: u16,
    commit_reveal_period: u64,
    commit_reveal_weights_enabled: bool,
}

/// `SubnetInfoRuntimeApi.get_metagraph`: a list each, by uid.
#[derive(DecodeAsType)]
struct Metagraph {
    hotkeys: Vec<[u8; 32]>,
    coldkeys: Vec<[u8; 32]>,
    axons: Vec<AxonInfo>,
    active: Vec<bool>,
    validator_permit: Vec<bool>,
    last_update: Vec<u64>,
    emission: Vec<u64>,
    dividends: Vec<u16>,
    incentives: Vec<u16>,
    consensus: Vec<u16>,
    block_at_registration: Vec<u64>,
    alpha_stake: Vec<u64>,
    tao_stake: Vec<u64>,
    total_stake: Vec<u64>,
}

#[derive(DecodeAsType)]
pub(super) struct AxonInfo {
    block: u64,
    version: u32,
    ip: u128,
    port: u16,
    ip_type: u8,
    protocol: u8,
}

#[derive(DecodeAsType)]
pub(super) struct Certificate {
    public_key: Vec<u8>,
    algorithm: u8,
}

#[derive(DecodeAsType)]
struct CommitmentRegistration {
    block: u64,
    info: CommitmentInfo,
}

#[derive(DecodeAsType)]
struct CommitmentInfo {
    fields: Vec<Value>,
}

#[derive(DecodeAsType)]
struct AccountInfo {
    data: AccountData,
}

#[derive(DecodeAsType)]
struct AccountData {
    free: u64,
}

#[derive(DecodeAsType)]
struct StoredPulse {
    round: u64,
    randomness: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(DecodeAsType)]
struct BeaconConfiguration {
    public_key: Vec<u8>,
    period: u64,
    genesis_time: u64,
}

impl Client {
    /// A subnet's state and hyperparameters; `None` if there is none of that number.
    ///
    /// Cost: 3 requests.
    pub async fn subnet(
        &self,
        netuid: u16,
        at: Option<[u8; 32]>,
    ) -> Result<Option<Subnet>, ChainError> {
        self.view(at).await?.subnet(netuid).await
    }

    /// The members of a subnet by uid, all of one block. Empty for a subnet that does not exist.
    ///
    /// A uid read here may belong to another hotkey later: give the block along, or ask [`Client::uid`] again.
    ///
    /// Cost: 4 requests, and 2 per `page_keys` certificates; about 100 kB for 256 uids.
    ///
    /// # Errors
    /// [`ChainError::Unsupported`] by runtimes without `get_metagraph` (before 2025).
    pub async fn neurons(
        &self,
        netuid: u16,
        at: Option<[u8; 32]>,
    ) -> Result<Vec<Neuron>, ChainError> {
        let view = self.view(at).await?;
        let metagraph: Option<Metagraph> = view
            .api(
                "SubnetInfoRuntimeApi",
                "get_metagraph",
                vec![number(netuid)],
            )
            .await?;
        let Some(metagraph) = metagraph else {
            return Ok(Vec::new());
        };
        let validator_trust: Vec<u16> = view
            .value(SUBTENSOR, "ValidatorTrust", vec![number(netuid)])
            .await?;
        let certificates: HashMap<Vec<u8>, Certificate> = view
            .entries(SUBTENSOR, "NeuronCertificates", vec![number(netuid)])
            .await?
            .into_iter()
            .collect();
        (0_u16..=u16::MAX)
            .zip(&metagraph.hotkeys)
            .map(|(uid, hotkey)| {
                let place = usize::from(uid);
                let coldkey = metagraph.coldkeys.get(place).ok_or_else(|| {
                    unreadable(
                        format!("metagraph of subnet {netuid}"),
                        format!("uid {uid} has no coldkey"),
                    )
                })?;
                Ok(Neuron {
                    uid,
                    hotkey: AccountId(*hotkey),
                    coldkey: AccountId(*coldkey),
                    axon: metagraph.axons.get(place).and_then(AxonInfo::axon),
                    peer_key: certificates
                        .get(hotkey.as_slice())
                        .and_then(Certificate::ed25519),
                    active: entry(&metagraph.active, place),
                    validator_permit: entry(&metagraph.validator_permit, place),
                    stake_rao: entry(&metagraph.total_stake, place),
                    alpha_stake_rao: entry(&metagraph.alpha_stake, place),
                    tao_stake_rao: entry(&metagraph.tao_stake, place),
                    emission_rao: entry(&metagraph.emission, place),
                    incentive: entry(&metagraph.incentives, place),
                    consensus: entry(&metagraph.consensus, place),
                    dividends: entry(&metagraph.dividends, place),
                    validator_trust: entry(&validator_trust, place),
                    last_update: entry(&metagraph.last_update, place),
                    registered_at: entry(&metagraph.block_at_registration, place),
                })
            })
            .collect()
    }

    /// The uid of a hotkey; `None` if it is not, or no longer, registered.
    ///
    /// Cost: 2 requests.
    pub async fn uid(
        &self,
        netuid: u16,
        hotkey: &AccountId,
        at: Option<[u8; 32]>,
    ) -> Result<Option<u16>, ChainError> {
        self.view(at)
            .await?
            .find(SUBTENSOR, "Uids", vec![number(netuid), account(hotkey)])
            .await
    }

    /// Numbers of all subnets, ascending, with the root network 0.
    ///
    /// Cost: 3 requests, and 2 per `page_keys` subnets.
    pub async fn subnets(&self) -> Result<Vec<u16>, ChainError> {
        let entries: Vec<(Vec<u8>, bool)> = self
            .view(None)
            .await?
            .entries(SUBTENSOR, "NetworksAdded", Vec::new())
            .await?;
        let mut netuids = Vec::with_capacity(entries.len());
        for (key, added) in entries {
            if added {
                netuids.push(u16_key("NetworksAdded", &key)?);
            }
        }
        netuids.sort_unstable();
        Ok(netuids)
    }

    /// Weights in force, by uid: for each that set any, its list of (uid, weight).
    ///
    /// Cost: 2 requests, and 2 per `page_keys` uids.
    pub async fn weights(
        &self,
        netuid: u16,
        at: Option<[u8; 32]>,
    ) -> Result<Vec<(u16, Vec<(u16, u16)>)>, ChainError> {
        let entries = self
            .view(at)
            .await?
            .entries(SUBTENSOR, "Weights", vec![number(netuid)])
            .await?;
        let mut rows = Vec::with_capacity(entries.len());
        for (key, row) in entries {
            rows.push((u16_key("Weights", &key)?, row));
        }
        rows.sort_unstable_by_key(|(uid, _)| *uid);
        Ok(rows)
    }

    /// All commitments of a subnet, by hotkey. A pruned neuron's may still be among them.
    ///
    /// Cost: 2 requests, and 2 per `page_keys` commitments.
    pub async fn commitments(
        &self,
        netuid: u16,
        at: Option<[u8; 32]>,
    ) -> Result<Vec<(AccountId, Commitment)>, ChainError> {
        let view = self.view(at).await?;
        let entries = view
            .entries::<CommitmentRegistration>("Commitments", "CommitmentOf", vec![number(netuid)])
            .await?;
        let mut commitments = Vec::with_capacity(entries.len());
        for (key, registration) in entries {
            let hotkey = <[u8; 32]>::try_from(key.as_slice()).map_err(|_| {
                unreadable(
                    "key in Commitments.CommitmentOf".to_owned(),
                    "not an account",
                )
            })?;
            commitments.push((AccountId(hotkey), registration.commitment()));
        }
        commitments.sort_unstable_by_key(|(hotkey, _)| *hotkey);
        Ok(commitments)
    }

    /// The commitment of one hotkey, the last that it made.
    ///
    /// Cost: 2 requests.
    pub async fn commitment(
        &self,
        netuid: u16,
        hotkey: &AccountId,
        at: Option<[u8; 32]>,
    ) -> Result<Option<Commitment>, ChainError> {
        let view = self.view(at).await?;
        let found: Option<CommitmentRegistration> = view
            .find(
                "Commitments",
                "CommitmentOf",
                vec![number(netuid), account(hotkey)],
            )
            .await?;
        Ok(found.map(CommitmentRegistration::commitment))
    }

    /// Free balance, in rao; 0 for an account that does not exist.
    ///
    /// Cost: 4 requests.
    pub async fn balance(&self, of: &AccountId) -> Result<u64, ChainError> {
        let info: AccountInfo = self
            .view(None)
            .await?
            .value("System", "Account", vec![account(of)])
            .await?;
        Ok(info.data.free)
    }

    /// Alpha that all coldkeys together hold on a hotkey in a subnet, in rao of alpha.
    ///
    /// Cost: 4 requests.
    pub async fn stake(&self, netuid: u16, hotkey: &AccountId) -> Result<u64, ChainError> {
        self.view(None)
            .await?
            .value(
                SUBTENSOR,
                "TotalHotkeyAlpha",
                vec![account(hotkey), number(netuid)],
            )
            .await
    }

    /// Price of a registration now, in rao. Falls with every block and jumps with every registration.
    ///
    /// Cost: 4 requests.
    pub async fn registration_price(&self, netuid: u16) -> Result<u64, ChainError> {
        self.best_view()
            .await?
            .1
            .value(SUBTENSOR, "Burn", vec![number(netuid)])
            .await
    }

    /// Price of a new subnet now, in rao.
    ///
    /// Cost: 4 requests.
    pub async fn network_price(&self) -> Result<u64, ChainError> {
        let view = self.best_view().await?.1;
        view.api(
            "SubnetRegistrationRuntimeApi",
            "get_network_registration_cost",
            Vec::new(),
        )
        .await
    }

    /// A pulse of the beacon, if the chain holds it. Not verified: the chain did.
    ///
    /// Cost: 4 requests.
    pub async fn pulse(&self, round: u64) -> Result<Option<Pulse>, ChainError> {
        let pulse: Option<StoredPulse> = self
            .view(None)
            .await?
            .find("Drand", "Pulses", vec![number(round)])
            .await?;
        Ok(pulse.map(
            |StoredPulse {
                 round,
                 randomness,
                 signature,
             }| Pulse {
                round,
                randomness,
                signature,
            },
        ))
    }

    /// Newest round of the beacon that the chain holds; 0 before the first.
    ///
    /// Cost: 4 requests.
    pub async fn last_pulse(&self) -> Result<u64, ChainError> {
        self.view(None)
            .await?
            .value("Drand", "LastStoredRound", Vec::new())
            .await
    }

    /// The beacon that the chain follows. To be read, not assumed: a development chain has its own.
    ///
    /// Cost: 4 requests.
    pub async fn beacon(&self) -> Result<Beacon, ChainError> {
        self.view(None).await?.beacon().await
    }
}

impl View {
    pub(super) async fn subnet(&self, netuid: u16) -> Result<Option<Subnet>, ChainError> {
        let epoch_state = self.runtime.capabilities().epoch_state;
        let mut items = vec![
            (SUBTENSOR, "NetworksAdded"),
            (SUBTENSOR, "SubnetOwner"),
            (SUBTENSOR, "SubnetOwnerHotkey"),
            (SUBTENSOR, "BlocksSinceLastStep"),
            (SUBTENSOR, "SubnetworkN"),
            (SUBTENSOR, "MaxAllowedUids"),
            (SUBTENSOR, "Burn"),
            (SUBTENSOR, "SubtokenEnabled"),
        ];
        if epoch_state {
            items.extend([
                (SUBTENSOR, "LastEpochBlock"),
                (SUBTENSOR, "SubnetEpochIndex"),
            ]);
        }
        let batch = self.batch(&items, number(netuid)).await?;
        if !batch.value::<bool>(SUBTENSOR, "NetworksAdded")? {
            return Ok(None);
        }
        let hyper: Option<Hyperparameters> = self
            .api(
                "SubnetInfoRuntimeApi",
                "get_subnet_hyperparams",
                vec![number(netuid)],
            )
            .await?;
        let Some(hyper) = hyper else { return Ok(None) };
        let of_state = |item| {
            if epoch_state {
                batch.value(SUBTENSOR, item).map(Some)
            } else {
                Ok(None)
            }
        };
        Ok(Some(Subnet {
            netuid,
            owner_coldkey: AccountId(batch.value(SUBTENSOR, "SubnetOwner")?),
            owner_hotkey: AccountId(batch.value(SUBTENSOR, "SubnetOwnerHotkey")?),
            tempo: hyper.tempo,
            blocks_since_last_step: batch.value(SUBTENSOR, "BlocksSinceLastStep")?,
            epoch_index: of_state("SubnetEpochIndex")?,
            last_epoch_block: of_state("LastEpochBlock")?,
            commit_reveal: hyper.commit_reveal_weights_enabled,
            reveal_period_epochs: hyper.commit_reveal_period,
            weights_rate_limit: hyper.weights_rate_limit,
            weights_version: hyper.weights_version,
            min_allowed_weights: hyper.min_allowed_weights,
            max_weights_limit: hyper.max_weights_limit,
            activity_cutoff: hyper.activity_cutoff,
            immunity_period: hyper.immunity_period,
            max_validators: hyper.max_validators,
            neurons: batch.value(SUBTENSOR, "SubnetworkN")?,
            neurons_max: batch.value(SUBTENSOR, "MaxAllowedUids")?,
            burn_rao: batch.value(SUBTENSOR, "Burn")?,
            serving_rate_limit: hyper.serving_rate_limit,
            registration_allowed: hyper.registration_allowed,
            subtoken_enabled: batch.value(SUBTENSOR, "SubtokenEnabled")?,
        }))
    }

    pub(super) async fn beacon(&self) -> Result<Beacon, ChainError> {
        let BeaconConfiguration {
            public_key,
            period,
            genesis_time,
        } = self.value("Drand", "BeaconConfig", Vec::new()).await?;
        Ok(Beacon {
            public_key,
            genesis_unix_s: genesis_time,
            period_s: period,
        })
    }

    pub(super) async fn axon(
        &self,
        netuid: u16,
        hotkey: &AccountId,
    ) -> Result<Option<Axon>, ChainError> {
        let info: Option<AxonInfo> = self
            .find(SUBTENSOR, "Axons", vec![number(netuid), account(hotkey)])
            .await?;
        Ok(info.as_ref().and_then(AxonInfo::axon))
    }

    pub(super) async fn peer_key(
        &self,
        netuid: u16,
        hotkey: &AccountId,
    ) -> Result<Option<[u8; 32]>, ChainError> {
        let keys = vec![number(netuid), account(hotkey)];
        let certificate: Option<Certificate> =
            self.optional(SUBTENSOR, "NeuronCertificates", keys).await?;
        Ok(certificate.as_ref().and_then(Certificate::ed25519))
    }
}

impl AxonInfo {
    /// `None` for the empty entry of a neuron that never published.
    fn axon(&self) -> Option<Axon> {
        let ip = match self.ip_type {
            4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(self.ip).ok()?)),
            6 => IpAddr::V6(Ipv6Addr::from_bits(self.ip)),
            _ => return None,
        };
        (self.port != 0).then_some(Axon {
            ip,
            port: self.port,
            protocol: self.protocol,
            version: self.version,
            block: self.block,
        })
    }
}

impl Certificate {
    fn ed25519(&self) -> Option<[u8; 32]> {
        if self.algorithm == CERTIFICATE_ED25519 {
            self.public_key.as_slice().try_into().ok()
        } else {
            None
        }
    }
}

impl CommitmentRegistration {
    fn commitment(self) -> Commitment {
        Commitment {
            block: self.block,
            fields: self.info.fields.iter().map(field).collect(),
        }
    }
}

/// Reads a field by the name of its kind: `Raw0` to `Raw128`, and the digests.
fn field(value: &Value) -> Field {
    let ValueDef::Variant(variant) = &value.value else {
        return Field::Other;
    };
    let Some(content) = variant.values.values().next().and_then(byte_string) else {
        return Field::Other;
    };
    let digest = || <[u8; 32]>::try_from(content.as_slice()).ok();
    match variant.name.as_str() {
        "Sha256" => digest().map_or(Field::Other, Field::Sha256),
        "BlakeTwo256" => digest().map_or(Field::Other, Field::BlakeTwo256),
        name if name
            .strip_prefix("Raw")
            .is_some_and(|length| length.parse() == Ok(content.len())) =>
        {
            Field::Raw(content)
        }
        _ => Field::Other,
    }
}

/// The bytes of a value that is a list of numbers below 256.
fn byte_string(value: &Value) -> Option<Vec<u8>> {
    let ValueDef::Composite(items) = &value.value else {
        return None;
    };
    items
        .values()
        .map(|item| match item.value {
            ValueDef::Primitive(Primitive::U128(number)) => u8::try_from(number).ok(),
            _ => None,
        })
        .collect()
}

/// An entry of a list by uid; the type's zero where the list is shorter.
fn entry<T: Copy + Default>(list: &[T], place: usize) -> T {
    list.get(place).copied().unwrap_or_default()
}

pub(super) fn u16_key(item: &str, key: &[u8]) -> Result<u16, ChainError> {
    let key = <[u8; 2]>::try_from(key);
    key.map(u16::from_le_bytes)
        .map_err(|_| unreadable(format!("key in {SUBTENSOR}.{item}"), "not a u16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(ip: u128, ip_type: u8, port: u16) -> AxonInfo {
        AxonInfo {
            block: 1,
            version: 2,
            ip,
            port,
            ip_type,
            protocol: 4,
        }
    }

    #[test]
    fn an_axon_is_an_address_or_nothing() {
        assert_eq!(
            info(0x0102_0304, 4, 8091).axon().unwrap().ip.to_string(),
            "1.2.3.4"
        );
        assert_eq!(info(1, 6, 8091).axon().unwrap().ip.to_string(), "::1");
        assert_eq!(info(0, 0, 0).axon(), None);
        assert_eq!(info(0x0102_0304, 4, 0).axon(), None);
        assert_eq!(info(1 << 32, 4, 1).axon(), None, "an address of 33 bits");
        assert_eq!(info(1, 5, 1).axon(), None);
    }

    #[test]
    fn fields_are_read_by_name_and_strangers_are_kept_as_such() {
        let raw = |name: &str, bytes: &[u8]| {
            field(&Value::unnamed_variant(
                name,
                [Value::unnamed_composite(
                    bytes.iter().map(|byte| Value::u128((*byte).into())),
                )],
            ))
        };
        assert_eq!(raw("Raw5", b"hello"), Field::Raw(b"hello".to_vec()));
        assert_eq!(raw("Raw0", b""), Field::Raw(Vec::new()));
        assert_eq!(raw("Raw4", b"hello"), Field::Other);
        assert_eq!(raw("RawX", b"hello"), Field::Other);
        assert_eq!(raw("Sha256", &[7; 32]), Field::Sha256([7; 32]));
        assert_eq!(raw("Sha256", &[7; 31]), Field::Other);
        assert_eq!(raw("BlakeTwo256", &[8; 32]), Field::BlakeTwo256([8; 32]));
        assert_eq!(raw("Keccak256", &[8; 32]), Field::Other);
        assert_eq!(
            field(&Value::unnamed_variant("ResetBondsFlag", [])),
            Field::Other
        );
    }
}
