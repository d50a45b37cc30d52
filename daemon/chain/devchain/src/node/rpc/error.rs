//! Errors in Substrate's words and numbers: clients tell them apart by both.

use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::types::error::{
    INTERNAL_ERROR_CODE, INVALID_PARAMS_CODE, SERVER_IS_BUSY_CODE, SERVER_IS_BUSY_MSG,
};
use sp_runtime::transaction_validity::{
    InvalidTransaction, TransactionValidityError, UnknownTransaction,
};

use crate::node::chain::StateError;
use crate::node::executor::{CallError, Refusal};
use crate::node::ledger::SubmitError;
use crate::node::pool::PoolError;

const BAD_FORMAT: i32 = 1001;
const VERIFICATION: i32 = 1002;
const POOL_INVALID: i32 = 1010;
const POOL_UNKNOWN_VALIDITY: i32 = 1011;
const POOL_ALREADY_IMPORTED: i32 = 1013;
const POOL_LOW_PRIORITY: i32 = 1014;
const POOL_FULL: i32 = 1016;
const PAGE_TOO_LARGE: i32 = 4002;
const CLIENT: i32 = 4003;
/// Ours: a `dev_*` call that cannot be done.
const DEV: i32 = 9000;

fn error(code: i32, message: impl Into<String>, data: Option<String>) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(code, message, data)
}

pub(super) fn bad_params(what: impl Into<String>) -> ErrorObjectOwned {
    error(INVALID_PARAMS_CODE, "Invalid params", Some(what.into()))
}

pub(super) fn internal(what: impl Into<String>) -> ErrorObjectOwned {
    error(INTERNAL_ERROR_CODE, what, None)
}

pub(super) fn dev(what: impl Into<String>) -> ErrorObjectOwned {
    error(DEV, what, None)
}

pub(super) fn page_too_large(value: u64, max: u64) -> ErrorObjectOwned {
    error(
        PAGE_TOO_LARGE,
        format!("count exceeds maximum value. value: {value}, max: {max}"),
        None,
    )
}

pub(super) fn state(from: StateError) -> ErrorObjectOwned {
    error(CLIENT, format!("Client error: {from}"), None)
}

pub(super) fn call(from: &CallError) -> ErrorObjectOwned {
    error(CLIENT, format!("Client error: {from}"), None)
}

pub(super) fn submit(from: SubmitError) -> ErrorObjectOwned {
    match from {
        SubmitError::Refused(Refusal::Malformed(what)) => {
            error(BAD_FORMAT, format!("Extrinsic has invalid format: {what}"), None)
        }
        SubmitError::Refused(Refusal::Failed(what)) => {
            error(VERIFICATION, format!("Verification Error: Runtime error: {what}"), None)
        }
        SubmitError::Refused(Refusal::Invalid(TransactionValidityError::Invalid(why))) => {
            error(POOL_INVALID, "Invalid Transaction", Some(invalid(why)))
        }
        SubmitError::Refused(Refusal::Invalid(TransactionValidityError::Unknown(why))) => {
            error(POOL_UNKNOWN_VALIDITY, "Unknown Transaction Validity", Some(unknown(why)))
        }
        SubmitError::Pool(PoolError::AlreadyImported(hash)) => {
            error(POOL_ALREADY_IMPORTED, "Transaction Already Imported", Some(format!("{hash:?}")))
        }
        SubmitError::Pool(PoolError::TooLowPriority { old, new }) => error(
            POOL_LOW_PRIORITY,
            format!("Priority is too low: ({old} vs {new})"),
            Some(
                "The transaction has too low priority to replace another transaction already in the pool.".to_owned(),
            ),
        ),
        SubmitError::Pool(PoolError::Full) => error(
            POOL_FULL,
            "Immediately Dropped",
            Some("The transaction couldn't enter the pool because of the limit".to_owned()),
        ),
        SubmitError::TooManyWatchers => {
            error(SERVER_IS_BUSY_CODE, SERVER_IS_BUSY_MSG, Some("too many extrinsics are watched".to_owned()))
        }
    }
}

/// As Substrate's pool words it; a custom code is what subtensor's own faults come as.
fn invalid(why: InvalidTransaction) -> String {
    match why {
        InvalidTransaction::Custom(code) => format!("Custom error: {code}"),
        why => <&str>::from(why).to_owned(),
    }
}

fn unknown(why: UnknownTransaction) -> String {
    match why {
        UnknownTransaction::Custom(code) => format!("Custom error: {code}"),
        why => <&str>::from(why).to_owned(),
    }
}
