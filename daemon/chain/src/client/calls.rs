//! What the daemon does on chain.
//!
//! Each call is signed by the key it is given, sent once, and waits for finality (or as [`Client::waiting`] says). Cost
//! of each: about 10 requests to sign and send, then 3 per finalized block until the receipt. Errors of each:
//!
//! - [`ChainError::Refused`]: the pool or the block said no; by name, with what to do.
//! - [`ChainError::Uncertain`]: sent, and the chain went out of sight: [`Client::settle`] it, do not repeat it.
//! - [`ChainError::NotIncluded`]: never stood in a block, and never will.
//! - [`ChainError::Unsupported`]: this runtime has no such call.
//! - [`ChainError::ResultUnread`]: done, and the number or uid that came of it could not be read.
//! - [`ChainError::QueueFull`], [`ChainError::Unreachable`], [`ChainError::ConnectionLost`]: nothing was sent.
//!
//! Dropping the future of a call after it was sent stops the waiting, not the extrinsic; its hash is in the log (`debug`).

use std::net::IpAddr;

use scale_value::Value;
use tracing::info;

use super::Client;
use super::reads::{CERTIFICATE_ED25519, SUBTENSOR, u16_key};
use super::view::{account, number};
use crate::account::AccountId;
use crate::error::ChainError;
use crate::key::Key;
use crate::link::hash;
use crate::runtime::{Call, unreadable};
use crate::types::{Field, Hyperparameter, Receipt, Registration};

/// Version of what we publish as an axon.
const AXON_VERSION: u32 = 1;

impl Client {
    /// Creates a subnet, owned by `coldkey`, with `hotkey` as its first neuron, and returns its number. Costs
    /// [`Client::network_price`] at the block of inclusion; the chain has no limit for it.
    pub async fn register_network(
        &self,
        coldkey: &Key,
        hotkey: &AccountId,
    ) -> Result<(u16, Receipt), ChainError> {
        let call = Call::new(
            SUBTENSOR,
            "register_network",
            vec![("hotkey", account(hotkey))],
        );
        let path = call.path();
        let receipt = self.submit(coldkey, call).await?;
        let netuid = self.new_netuid(&receipt, &coldkey.account(), hotkey).await;
        let netuid = netuid.map_err(|error| unread(path, receipt, &error))?;
        Ok((netuid, receipt))
    }

    /// The subnet that came to this owner and hotkey in the receipt's block.
    async fn new_netuid(
        &self,
        receipt: &Receipt,
        owner: &AccountId,
        hotkey: &AccountId,
    ) -> Result<u16, ChainError> {
        let parent = super::clock::header(&self.inner.link, &receipt.block.hash)
            .await?
            .parent_hash;
        let parent =
            hash(&parent).ok_or_else(|| unreadable("parent's hash".to_owned(), &parent))?;
        // A full chain prunes a subnet and gives its number on: the change of owner tells, not the number.
        let before: Vec<(Vec<u8>, [u8; 32])> = self
            .view(Some(parent))
            .await?
            .entries(SUBTENSOR, "SubnetOwner", Vec::new())
            .await?;
        let view = self.view(Some(receipt.block.hash)).await?;
        let owners: Vec<(Vec<u8>, [u8; 32])> =
            view.entries(SUBTENSOR, "SubnetOwner", Vec::new()).await?;
        for entry in owners
            .iter()
            .filter(|entry| entry.1 == owner.0 && !before.contains(entry))
        {
            let netuid = u16_key("SubnetOwner", &entry.0)?;
            let owner_hotkey: [u8; 32] = view
                .value(SUBTENSOR, "SubnetOwnerHotkey", vec![number(netuid)])
                .await?;
            if owner_hotkey == hotkey.0 {
                return Ok(netuid);
            }
        }
        Err(unreadable(
            "number of the new subnet".to_owned(),
            "no subnet changed to this owner and hotkey",
        ))
    }

    /// Starts a subnet: opens staking and emission. Signed by the owner.
    pub async fn start_call(&self, owner: &Key, netuid: u16) -> Result<Receipt, ChainError> {
        self.submit(
            owner,
            Call::new(SUBTENSOR, "start_call", vec![("netuid", number(netuid))]),
        )
        .await
    }

    /// Registers `hotkey` in a subnet, paid by `coldkey`, never for more than `price_max_rao`. If it is registered already
    /// nothing is sent and nothing paid.
    ///
    /// Where the runtime has `register_limit` the chain itself holds the limit. Older runtimes have no such call: there the
    /// price is compared before sending, and a registration by someone else in the same block can still raise it.
    ///
    /// # Errors
    /// [`ChainError::PriceAboveLimit`] with both figures; [`ChainError::NoSubnet`].
    pub async fn register(
        &self,
        coldkey: &Key,
        netuid: u16,
        hotkey: &AccountId,
        price_max_rao: u64,
    ) -> Result<Registration, ChainError> {
        let (best, view) = self.best_view().await?;
        if let Some(uid) = self.uid(netuid, hotkey, Some(best.hash)).await? {
            return Ok(Registration { uid, receipt: None });
        }
        if !view
            .value::<bool>(SUBTENSOR, "NetworksAdded", vec![number(netuid)])
            .await?
        {
            return Err(ChainError::NoSubnet(netuid));
        }
        let above = |price_rao| ChainError::PriceAboveLimit {
            what: format!("a registration in subnet {netuid}"),
            price_rao,
            price_max_rao,
        };
        let price_rao: u64 = view.value(SUBTENSOR, "Burn", vec![number(netuid)]).await?;
        if price_rao > price_max_rao {
            return Err(above(price_rao));
        }
        let mut arguments = vec![("netuid", number(netuid)), ("hotkey", account(hotkey))];
        let call = if view.runtime.capabilities().register_limit {
            arguments.push(("limit_price", number(price_max_rao)));
            Call::new(SUBTENSOR, "register_limit", arguments)
        } else {
            Call::new(SUBTENSOR, "burned_register", arguments)
        };
        let path = call.path();
        match self.submit(coldkey, call).await {
            Ok(receipt) => match self.uid(netuid, hotkey, Some(receipt.block.hash)).await {
                Ok(Some(uid)) => Ok(Registration {
                    uid,
                    receipt: Some(receipt),
                }),
                Ok(None) => Err(ChainError::NotRegistered {
                    netuid,
                    hotkey: *hotkey,
                }),
                Err(error) => Err(unread(path, receipt, &error)),
            },
            Err(ChainError::Refused(refusal)) => match refusal.name.as_str() {
                "RegistrationPriceLimitExceeded" => {
                    Err(above(self.registration_price(netuid).await?))
                }
                "HotKeyAlreadyRegisteredInSubNet" => match self.uid(netuid, hotkey, None).await? {
                    Some(uid) => Ok(Registration { uid, receipt: None }),
                    None => Err(ChainError::Refused(refusal)),
                },
                _ => Err(ChainError::Refused(refusal)),
            },
            Err(error) => Err(error),
        }
    }

    /// Publishes where `hotkey` listens, with its libp2p key (ed25519) if one is given. `None`: the chain says exactly that
    /// already, nothing was sent.
    ///
    /// `protocol`: as the subnet's software agrees. Free; once per `serving_rate_limit` blocks (50).
    pub async fn serve_axon(
        &self,
        hotkey: &Key,
        netuid: u16,
        ip: IpAddr,
        port: u16,
        protocol: u8,
        peer_key: Option<[u8; 32]>,
    ) -> Result<Option<Receipt>, ChainError> {
        let view = self.best_view().await?.1;
        let axon = view.axon(netuid, &hotkey.account()).await?;
        let same_axon =
            axon.is_some_and(|axon| (axon.ip, axon.port, axon.protocol) == (ip, port, protocol));
        let same_key = match peer_key {
            Some(key) => view.peer_key(netuid, &hotkey.account()).await? == Some(key),
            None => true,
        };
        if same_axon && same_key {
            info!(netuid, %ip, port, "axon stands on chain already");
            return Ok(None);
        }
        let (ip, ip_type) = match ip {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()), 4_u8),
            IpAddr::V6(ip) => (ip.to_bits(), 6),
        };
        let mut arguments = vec![
            ("netuid", number(netuid)),
            ("version", number(AXON_VERSION)),
            ("ip", number(ip)),
            ("port", number(port)),
            ("ip_type", number(ip_type)),
            ("protocol", number(protocol)),
            ("placeholder1", number(0_u8)),
            ("placeholder2", number(0_u8)),
        ];
        let call = match peer_key {
            Some(key) => {
                let certificate = [&[CERTIFICATE_ED25519], key.as_slice()].concat();
                arguments.push(("certificate", Value::from_bytes(certificate)));
                Call::new(SUBTENSOR, "serve_axon_tls", arguments)
            }
            None => Call::new(SUBTENSOR, "serve_axon", arguments),
        };
        self.submit(hotkey, call).await.map(Some)
    }

    /// Overwrites the hotkey's commitment in a subnet. Free; an epoch takes 3100 bytes, of which a call uses at least 100.
    ///
    /// # Errors
    /// [`ChainError::CommitmentSize`]; [`ChainError::Encode`] for [`Field::Other`], which is read but never written.
    pub async fn set_commitment(
        &self,
        hotkey: &Key,
        netuid: u16,
        fields: &[Field],
    ) -> Result<Receipt, ChainError> {
        self.submit(hotkey, commitment_call(netuid, fields)?).await
    }

    /// Stakes TAO of `coldkey` on a hotkey in a subnet.
    ///
    /// `price_max_rao`: most TAO, in rao, for one alpha; all or nothing is bought below it. `None`: at any price, which is
    /// the way of the root network, where one alpha is one TAO.
    pub async fn add_stake(
        &self,
        coldkey: &Key,
        netuid: u16,
        hotkey: &AccountId,
        amount_rao: u64,
        price_max_rao: Option<u64>,
    ) -> Result<Receipt, ChainError> {
        let mut arguments = vec![
            ("hotkey", account(hotkey)),
            ("netuid", number(netuid)),
            ("amount_staked", number(amount_rao)),
        ];
        let call = match price_max_rao {
            Some(price) => {
                arguments.extend([
                    ("limit_price", number(price)),
                    ("allow_partial", Value::bool(false)),
                ]);
                Call::new(SUBTENSOR, "add_stake_limit", arguments)
            }
            None => Call::new(SUBTENSOR, "add_stake", arguments),
        };
        self.submit(coldkey, call).await
    }

    /// Sends TAO; refused if it would leave the sender's account below the existential deposit.
    pub async fn transfer(
        &self,
        from: &Key,
        to: &AccountId,
        amount_rao: u64,
    ) -> Result<Receipt, ChainError> {
        let arguments = vec![
            ("dest", Value::unnamed_variant("Id", [account(to)])),
            ("value", number(amount_rao)),
        ];
        self.submit(
            from,
            Call::new("Balances", "transfer_keep_alive", arguments),
        )
        .await
    }

    /// Changes a hyperparameter of a subnet, signed by its owner. Refused in the last blocks before an epoch.
    pub async fn set_hyperparameter(
        &self,
        owner: &Key,
        netuid: u16,
        value: Hyperparameter,
    ) -> Result<Receipt, ChainError> {
        self.submit(owner, hyperparameter_call(netuid, value)).await
    }

    /// Changes a hyperparameter as root, signed by the chain's sudo key. What the call itself said is read from the event
    /// of the root call, which succeeds even where the call in it failed.
    pub async fn sudo_set_hyperparameter(
        &self,
        root: &Key,
        netuid: u16,
        value: Hyperparameter,
    ) -> Result<Receipt, ChainError> {
        self.submit(root, hyperparameter_call(netuid, value).by_root())
            .await
    }
}

fn unread(call: String, receipt: Receipt, error: &ChainError) -> ChainError {
    ChainError::ResultUnread {
        call,
        receipt: Box::new(receipt),
        reason: error.to_string(),
    }
}

fn commitment_call(netuid: u16, fields: &[Field]) -> Result<Call, ChainError> {
    let longest_bytes = fields
        .iter()
        .map(|field| {
            if let Field::Raw(raw) = field {
                raw.len()
            } else {
                0
            }
        })
        .max();
    let longest_bytes = longest_bytes.unwrap_or(0);
    if fields.len() > Field::COUNT_MAX || longest_bytes > Field::RAW_BYTES_MAX {
        return Err(ChainError::CommitmentSize {
            fields: fields.len(),
            longest_bytes,
        });
    }
    let data = fields.iter().map(|field| {
        let (kind, content) = match field {
            Field::Raw(raw) => (format!("Raw{}", raw.len()), raw.as_slice()),
            Field::Sha256(digest) => ("Sha256".to_owned(), digest.as_slice()),
            Field::BlakeTwo256(digest) => ("BlakeTwo256".to_owned(), digest.as_slice()),
            Field::Other => {
                return Err(ChainError::Encode {
                    what: "commitment".to_owned(),
                    reason: "a field of a kind that is only read".to_owned(),
                });
            }
        };
        Ok(Value::unnamed_variant(kind, [Value::from_bytes(content)]))
    });
    let data = data.collect::<Result<Vec<_>, _>>()?;
    let fields = Value::unnamed_composite([Value::unnamed_composite(data)]);
    let info = Value::named_composite([("fields", fields)]);
    Ok(Call::new(
        "Commitments",
        "set_commitment",
        vec![("netuid", number(netuid)), ("info", info)],
    ))
}

fn hyperparameter_call(netuid: u16, value: Hyperparameter) -> Call {
    use Hyperparameter as H;
    let (name, arguments) = match value {
        H::Tempo(blocks) => ("sudo_set_tempo", vec![("tempo", number(blocks))]),
        H::WeightsRateLimit(blocks) => (
            "sudo_set_weights_set_rate_limit",
            vec![("weights_set_rate_limit", number(blocks))],
        ),
        H::ServingRateLimit(blocks) => (
            "sudo_set_serving_rate_limit",
            vec![("serving_rate_limit", number(blocks))],
        ),
        H::CommitReveal(on) => (
            "sudo_set_commit_reveal_weights_enabled",
            vec![("enabled", Value::bool(on))],
        ),
        H::RevealPeriod(epochs) => (
            "sudo_set_commit_reveal_weights_interval",
            vec![("interval", number(epochs))],
        ),
        H::ActivityCutoff(blocks) => (
            "sudo_set_activity_cutoff",
            vec![("activity_cutoff", number(blocks))],
        ),
        H::ImmunityPeriod(blocks) => (
            "sudo_set_immunity_period",
            vec![("immunity_period", number(blocks))],
        ),
        H::MinAllowedWeights(count) => (
            "sudo_set_min_allowed_weights",
            vec![("min_allowed_weights", number(count))],
        ),
        H::MaxAllowedUids(count) => (
            "sudo_set_max_allowed_uids",
            vec![("max_allowed_uids", number(count))],
        ),
        H::MaxValidators(count) => (
            "sudo_set_max_allowed_validators",
            vec![("max_allowed_validators", number(count))],
        ),
        H::RegistrationAllowed(on) => (
            "sudo_set_network_registration_allowed",
            vec![("registration_allowed", Value::bool(on))],
        ),
        H::Kappa(share) => ("sudo_set_kappa", vec![("kappa", number(share))]),
        H::BondsMovingAverage(share) => (
            "sudo_set_bonds_moving_average",
            vec![("bonds_moving_average", number(share))],
        ),
        H::BondsPenalty(share) => (
            "sudo_set_bonds_penalty",
            vec![("bonds_penalty", number(share))],
        ),
        H::LiquidAlpha(on) => (
            "sudo_set_liquid_alpha_enabled",
            vec![("enabled", Value::bool(on))],
        ),
        H::AlphaValues { low, high } => (
            "sudo_set_alpha_values",
            vec![("alpha_low", number(low)), ("alpha_high", number(high))],
        ),
        H::Yuma3(on) => ("sudo_set_yuma3_enabled", vec![("enabled", Value::bool(on))]),
    };
    Call::new(
        "AdminUtils",
        name,
        [vec![("netuid", number(netuid))], arguments].concat(),
    )
}
