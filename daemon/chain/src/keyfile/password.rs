//! Passwords of keyfiles, and where the environment keeps them.
//!
//! Bittensor's tools put the password of the file at PATH into the variable `BT_PW_` followed by PATH, `/` and `.` as `_`,
//! in upper case; its value is base64 of the password with each byte xored by the variable's name, repeated. That hides
//! it from a glance, not from anyone who reads this.

use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::Fault;

/// A password. Wiped when dropped; never shown.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

/// Why the value of a variable is no password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Not base64 text.
    #[error("its value is not base64")]
    NotBase64,
    /// Decodes to something else than text: made for another path.
    #[error("its value does not decode to text: it was made for another path")]
    NotText,
}

impl Password {
    /// A password as a person typed it.
    pub fn new(text: String) -> Password {
        Password(Zeroizing::new(text))
    }

    /// The variable that holds the password of the file at `path`, which is taken literally.
    pub fn variable(path: &Path) -> String {
        format!(
            "BT_PW_{}",
            path.to_string_lossy()
                .replace(['/', '.'], "_")
                .to_uppercase()
        )
    }

    /// The password that the environment holds for the file at `path`.
    pub(super) fn from_environment(path: &Path) -> Result<Password, Fault> {
        let variable = Password::variable(path);
        // A value that is not Unicode is not base64 either, and is reported as such.
        let Some(value) = std::env::var_os(&variable).filter(|value| !value.is_empty()) else {
            return Err(Fault::PasswordNeeded { variable });
        };
        let value = Zeroizing::new(value.into_encoded_bytes());
        Password::decode(&variable, &value)
            .map_err(|source| Fault::PasswordVariable { variable, source })
    }

    /// A password from the value of `variable`.
    fn decode(variable: &str, value: &[u8]) -> Result<Password, PasswordError> {
        let mut bytes = Zeroizing::new(
            STANDARD
                .decode(value.trim_ascii())
                .map_err(|_| PasswordError::NotBase64)?,
        );
        for (byte, mask) in bytes.iter_mut().zip(variable.bytes().cycle()) {
            *byte ^= mask;
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| PasswordError::NotText)?;
        Ok(Password::new(text.to_owned()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_named_after_the_path() {
        let path = Path::new("/home/user/.bittensor/wallets/my.wallet/coldkey");
        assert_eq!(
            Password::variable(path),
            "BT_PW__HOME_USER__BITTENSOR_WALLETS_MY_WALLET_COLDKEY"
        );
    }

    /// Value made by bittensor_core 0.1.5, save_password_to_environment.
    #[test]
    fn a_password_of_bittensors_own_tool_is_read() {
        let password = Password::decode("BT_PW__TMP_X", b"Mpf7IyQoMCYpYQ==").unwrap();
        assert_eq!(password.bytes(), "pässword1".as_bytes());
    }

    #[test]
    fn a_value_that_is_no_password_is_refused() {
        assert_eq!(
            Password::decode("BT_PW_X", b"!").unwrap_err(),
            PasswordError::NotBase64
        );
        assert_eq!(
            Password::decode("BT_PW_X", b"/////w==").unwrap_err(),
            PasswordError::NotText
        );
    }

    #[test]
    fn debug_output_holds_no_password() {
        assert_eq!(
            format!("{:?}", Password::new("hunter2".into())),
            "Password(..)"
        );
    }
}
