//! Why the chain refuses calls, by name, and what to do about each: the one table of it.
//!
//! The same fault comes from two places. A node's pool checks an extrinsic before it takes it and answers with a number;
//! a block that holds the extrinsic answers with an error of a pallet. Which of the two depends on the runtime's version,
//! so both become one [`Refusal`] with one name. Errors of pallets are known by name only, never by index: indices move
//! between versions.

use std::fmt;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Advice {
    /// The same call may succeed later; nothing else has to change.
    Retry,
    /// Somebody has to change something first: an amount, a key, a setting, a limit.
    Fix,
    /// Neither time nor settings help: the call makes no sense here, or software and chain do not fit.
    Stop,
}

/// Who refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The node's pool: the extrinsic never stood in a block and cost nothing.
    Pool,
    /// The runtime, in a block: fees are paid and the nonce is used.
    Block,
}

/// A call that the chain refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Pallet and call, `SubtensorModule.set_weights`.
    pub call: String,
    /// The chain's own name of the fault, `SettingWeightsTooFast`.
    pub name: String,
    /// Who refused.
    pub stage: Stage,
}

impl Refusal {
    /// What to do, in one word. A name that is not in the table gives [`Advice::Stop`]: repeating what nobody here
    /// understands helps nobody.
    pub fn advice(&self) -> Advice {
        find(&self.name).map_or(Advice::Stop, |row| row.advice)
    }

    /// What to do, in words for a person.
    pub fn what_to_do(&self) -> String {
        find(&self.name).map_or_else(
            || {
                format!(
                    "{} is not known to this version of gradmesh; look it up in subtensor's errors",
                    self.name
                )
            },
            |row| row.what_to_do.to_owned(),
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Pool => "before it reached a block",
            Stage::Block => "in a block",
        };
        write!(f, "{} refused {stage}: {}", self.call, self.name)
    }
}

struct Row {
    name: &'static str,
    advice: Advice,
    what_to_do: &'static str,
}

fn find(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}

/// Name of a pool's custom code (`Custom error: N`) for a call. Numbers are those of subtensor's
/// `CustomTransactionError`; a rate limit has one number for all calls and a name for each.
pub(crate) fn custom_code_name(code: u8, call: &str) -> String {
    let name = match code {
        1 => "AmountTooLow",
        2 => "NotEnoughBalanceToStake",
        3 => "SubnetNotExists",
        4 => "HotKeyAccountNotExists",
        5 => "NotEnoughStakeToWithdraw",
        6 => match call.rsplit('.').next().unwrap_or(call) {
            "set_weights" | "set_mechanism_weights" | "batch_set_weights" => {
                "SettingWeightsTooFast"
            }
            "commit_weights"
            | "commit_mechanism_weights"
            | "commit_timelocked_weights"
            | "commit_timelocked_mechanism_weights" => "CommittingWeightsTooFast",
            "serve_axon" | "serve_axon_tls" => "ServingRateLimitExceeded",
            "register_network" | "register_network_with_identity" => "NetworkTxRateLimitExceeded",
            _ => "TxRateLimitExceeded",
        },
        7 => "InsufficientLiquidity",
        8 => "SlippageTooHigh",
        9 => "TransferDisallowed",
        10 => "HotKeyNotRegisteredInNetwork",
        11 => "InvalidIpAddress",
        12 => "ServingRateLimitExceeded",
        13 => "InvalidPort",
        15 => "InvalidRevealRound",
        16 => "NoWeightsCommitFound",
        17 => "CommitBlockNotInRevealRange",
        18 => "InputLengthsUnequal",
        19 => "UidVecContainInvalidOne",
        21 => "ColdkeySwapDisputed",
        255 => "BadRequest",
        _ => return format!("Custom error: {code}"),
    };
    name.to_owned()
}

const fn row(name: &'static str, advice: Advice, what_to_do: &'static str) -> Row {
    Row {
        name,
        advice,
        what_to_do,
    }
}

use Advice::{Fix, Retry, Stop};

/// Every error named in the operations of this crate. Sorted by concern.
static TABLE: &[Row] = &[
    // Registration.
    row(
        "SubnetNotExists",
        Fix,
        "check the netuid: there is no such subnet on this chain",
    ),
    row(
        "SubNetRegistrationDisabled",
        Fix,
        "ask the subnet's owner to allow registration, or choose another subnet",
    ),
    row(
        "HotKeyAlreadyRegisteredInSubNet",
        Stop,
        "nothing: the hotkey is registered in this subnet already",
    ),
    row(
        "NonAssociatedColdKey",
        Fix,
        "use the coldkey that owns this hotkey, or a hotkey that no other coldkey owns",
    ),
    row(
        "NoNeuronIdAvailable",
        Retry,
        "wait until a neuron leaves its immunity period: the subnet is full",
    ),
    row(
        "NotEnoughBalanceToStake",
        Fix,
        "put more TAO on the coldkey: its free balance does not cover the amount",
    ),
    row(
        "RegistrationPriceLimitExceeded",
        Fix,
        "raise the price limit or wait: the price falls with every block",
    ),
    row(
        "TooManyRegistrationsThisBlock",
        Retry,
        "try again in the next block",
    ),
    row(
        "TooManyRegistrationsThisInterval",
        Retry,
        "try again in the next registration interval",
    ),
    row(
        "RegistrationNotPermittedOnRootSubnet",
        Fix,
        "choose another netuid: 0 is the root network",
    ),
    row(
        "BalanceWithdrawalError",
        Fix,
        "put more TAO on the coldkey: the amount cannot be withdrawn",
    ),
    row(
        "ZeroBalanceAfterWithdrawn",
        Fix,
        "leave at least 500 rao on the coldkey",
    ),
    // Subnets.
    row(
        "NetworkTxRateLimitExceeded",
        Retry,
        "wait: a new subnet is possible once per 7200 blocks on the whole chain",
    ),
    row(
        "CannotAffordLockCost",
        Fix,
        "put more TAO on the coldkey: a subnet's price is read with network_price",
    ),
    row(
        "SubnetLimitReached",
        Retry,
        "wait until a subnet is removed: the chain holds no more",
    ),
    row(
        "AllNetworksInImmunity",
        Retry,
        "wait until a subnet leaves its immunity period",
    ),
    row(
        "NotSubnetOwner",
        Fix,
        "sign with the coldkey that owns the subnet",
    ),
    row(
        "NeedWaitingMoreBlocksToStarCall",
        Retry,
        "wait: a subnet may be started some blocks after its creation",
    ),
    row(
        "FirstEmissionBlockNumberAlreadySet",
        Stop,
        "nothing: the subnet is started already",
    ),
    row(
        "AdminActionProhibitedDuringWeightsWindow",
        Retry,
        "wait for the epoch: its last blocks refuse owner changes",
    ),
    row(
        "TxRateLimitExceeded",
        Retry,
        "wait: this call was made too recently",
    ),
    row(
        "InvalidValue",
        Fix,
        "choose a value within the runtime's bounds",
    ),
    row(
        "RevealPeriodTooLarge",
        Fix,
        "choose a reveal period of at most 100 epochs",
    ),
    row(
        "RevealPeriodTooSmall",
        Fix,
        "choose a reveal period of at least one epoch",
    ),
    row(
        "ActivityCutoffTooLow",
        Fix,
        "choose a longer activity cutoff",
    ),
    row(
        "CallDisabled",
        Stop,
        "nothing: this runtime has switched the call off",
    ),
    row("RequireSudo", Fix, "sign with the chain's sudo key"),
    row(
        "BadSigner",
        Fix,
        "this key may not sign this call: sudo calls need the chain's sudo key",
    ),
    row(
        "BadOrigin",
        Fix,
        "sign with the key that this call is for: owner, root or hotkey",
    ),
    // Axons.
    row(
        "HotKeyNotRegisteredInNetwork",
        Fix,
        "register the hotkey in the subnet first; a pruned neuron registers anew",
    ),
    row(
        "HotKeyNotRegisteredInSubNet",
        Fix,
        "register the hotkey in the subnet first; a pruned neuron registers anew",
    ),
    row("InvalidIpType", Fix, "publish an IPv4 or IPv6 address"),
    row(
        "InvalidIpAddress",
        Fix,
        "publish an address that others can reach: loopback and broadcast are refused",
    ),
    row("InvalidPort", Fix, "publish a port other than 0"),
    row(
        "ServingRateLimitExceeded",
        Retry,
        "wait: an axon changes at most once per 50 blocks",
    ),
    // Weights.
    row(
        "CommitRevealEnabled",
        Stop,
        "commit the weights instead: the subnet wants them locked",
    ),
    row(
        "CommitRevealDisabled",
        Stop,
        "set the weights in the clear: the subnet has commit-reveal off",
    ),
    row(
        "IncorrectCommitRevealVersion",
        Stop,
        "update gradmesh: the chain wants another form of locked weights",
    ),
    row(
        "SettingWeightsTooFast",
        Retry,
        "wait: weights, and a registration, block the uid for the weights rate limit",
    ),
    row(
        "CommittingWeightsTooFast",
        Retry,
        "wait: weights, and a registration, block the uid for the weights rate limit",
    ),
    row(
        "TooManyUnrevealedCommits",
        Retry,
        "wait until older commits are revealed: ten may be open",
    ),
    row(
        "NoWeightsCommitFound",
        Stop,
        "commit first: there is no commit to reveal",
    ),
    row(
        "InvalidRevealCommitHashNotMatch",
        Stop,
        "reveal the uids, weights, salt and version that were committed",
    ),
    row("RevealTooEarly", Retry, "wait for the epoch of the reveal"),
    row(
        "ExpiredWeightCommit",
        Stop,
        "commit anew: the epoch of the reveal has passed",
    ),
    row(
        "InvalidRevealRound",
        Retry,
        "commit anew with a round of the beacon that is still to come",
    ),
    row(
        "CommitBlockNotInRevealRange",
        Retry,
        "wait for the epoch of the reveal",
    ),
    row(
        "NotEnoughStakeToSetWeights",
        Fix,
        "stake more on the hotkey: the chain has a least stake for weights",
    ),
    row(
        "NeuronNoValidatorPermit",
        Fix,
        "stake more on the hotkey: only the subnet's largest stakes may set weights",
    ),
    row(
        "IncorrectWeightVersionKey",
        Fix,
        "update gradmesh: the subnet asks for a newer weights version",
    ),
    row("WeightVecNotEqualSize", Stop, "give one weight per uid"),
    row("InputLengthsUnequal", Stop, "give one weight per uid"),
    row(
        "UidsLengthExceedUidsInSubNet",
        Retry,
        "read the subnet again: it has fewer uids than were named",
    ),
    row("DuplicateUids", Stop, "name every uid once"),
    row(
        "UidVecContainInvalidOne",
        Retry,
        "read the subnet again: a named uid does not exist",
    ),
    row(
        "WeightVecLengthIsLow",
        Fix,
        "name more uids: the subnet has a least count of weights",
    ),
    row(
        "MaxWeightExceeded",
        Fix,
        "spread the weights: one exceeds the subnet's largest share",
    ),
    row("MechanismDoesNotExist", Stop, "use mechanism 0"),
    // Commitments.
    row(
        "SpaceLimitExceeded",
        Retry,
        "wait for the next epoch: 3100 bytes of commitments fit into one, at least 100 each",
    ),
    row(
        "TooManyFieldsInCommitmentInfo",
        Stop,
        "commit to at most three fields",
    ),
    row(
        "AccountNotAllowedCommit",
        Fix,
        "register the hotkey in the subnet first; a pruned neuron registers anew",
    ),
    // Stake and transfers.
    row(
        "SubtokenDisabled",
        Retry,
        "wait for start_call by the owner: staking opens with it",
    ),
    row("AmountTooLow", Fix, "stake at least 0.002 TAO"),
    row(
        "HotKeyAccountNotExists",
        Fix,
        "register the hotkey first: the chain does not know it",
    ),
    row(
        "SlippageTooHigh",
        Retry,
        "raise the price limit or wait: the pool's price moved beyond it",
    ),
    row(
        "InsufficientLiquidity",
        Retry,
        "take a smaller amount or wait: the subnet's pool is too thin",
    ),
    row(
        "NotEnoughStakeToWithdraw",
        Fix,
        "unstake less: the hotkey holds less alpha",
    ),
    row(
        "StakingOperationRateLimitExceeded",
        Retry,
        "try again in the next block",
    ),
    row("InsufficientBalance", Fix, "put more TAO on the account"),
    row("FundsUnavailable", Fix, "put more TAO on the account"),
    row(
        "NotExpendable",
        Fix,
        "leave at least 500 rao on the account",
    ),
    row(
        "BelowMinimum",
        Fix,
        "send at least 500 rao to a new account",
    ),
    row(
        "TransferDisallowed",
        Stop,
        "nothing: the subnet does not let stake move",
    ),
    row(
        "ColdkeySwapDisputed",
        Fix,
        "settle the dispute over this coldkey first",
    ),
    row(
        "BadRequest",
        Stop,
        "report this: the chain calls the request malformed",
    ),
    // The pool's own.
    row(
        "InabilityToPayFees",
        Fix,
        "put TAO on the signing key: this call has a fee",
    ),
    row("ExhaustsResources", Retry, "try again: the block is full"),
    row(
        "TooLowPriority",
        Retry,
        "wait: another program sends with this key",
    ),
    row(
        "TemporarilyBanned",
        Retry,
        "wait: the node keeps the extrinsic out for a while",
    ),
    row("ImmediatelyDropped", Retry, "wait: the node's pool is full"),
    row(
        "BadProof",
        Stop,
        "report this: the chain does not accept the signature",
    ),
    row("Stale", Retry, "try again: another program used the nonce"),
    row(
        "Future",
        Retry,
        "try again: an earlier extrinsic of this key is missing",
    ),
    row(
        "CallNotAllowed",
        Stop,
        "nothing: this runtime does not take the call",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str) -> Refusal {
        Refusal {
            call: "SubtensorModule.set_weights".into(),
            name: name.into(),
            stage: Stage::Block,
        }
    }

    #[test]
    fn no_name_stands_twice_and_every_advice_is_a_sentence() {
        for (place, row) in TABLE.iter().enumerate() {
            assert!(
                TABLE[..place].iter().all(|other| other.name != row.name),
                "{}",
                row.name
            );
            assert!(
                row.what_to_do.len() > 10 && !row.what_to_do.ends_with('.'),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn a_fault_has_one_name_whether_pool_or_block_found_it() {
        assert_eq!(
            custom_code_name(6, "SubtensorModule.set_weights"),
            "SettingWeightsTooFast"
        );
        assert_eq!(
            custom_code_name(6, "SubtensorModule.commit_timelocked_mechanism_weights"),
            "CommittingWeightsTooFast"
        );
        assert_eq!(
            custom_code_name(12, "SubtensorModule.serve_axon_tls"),
            "ServingRateLimitExceeded"
        );
        for code in (1..=19).filter(|code| *code != 14).chain([21, 255]) {
            let name = custom_code_name(code, "SubtensorModule.add_stake");
            assert!(
                find(&name).is_some(),
                "code {code} is {name}, which the table lacks"
            );
        }
    }

    #[test]
    fn an_unknown_name_stops_and_is_shown() {
        assert_eq!(
            custom_code_name(200, "SubtensorModule.set_weights"),
            "Custom error: 200"
        );
        let unknown = refusal("PrecisionLoss");
        assert_eq!(unknown.advice(), Advice::Stop);
        assert!(unknown.what_to_do().contains("PrecisionLoss"));
        assert!(unknown.to_string().contains("PrecisionLoss"));
    }

    #[test]
    fn limits_of_rate_are_retried_and_limits_of_price_are_not() {
        assert_eq!(refusal("SettingWeightsTooFast").advice(), Advice::Retry);
        assert_eq!(refusal("SpaceLimitExceeded").advice(), Advice::Retry);
        assert_eq!(
            refusal("RegistrationPriceLimitExceeded").advice(),
            Advice::Fix
        );
        assert_eq!(refusal("CommitRevealEnabled").advice(), Advice::Stop);
    }
}
