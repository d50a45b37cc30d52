//! Keyfiles and wallets on disk, held against files that other programs made (data/README.md).

#![cfg(unix)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gradmesh_chain::key::{Key, KeyError};
use gradmesh_chain::keyfile::{self, Fault, KeyfileError, Password};
use gradmesh_chain::wallet::{NewWallet, Protection, WalletDir};
use tempfile::TempDir;

const PHRASE: &str = "legal winner thank year wave sausage worth useful legal winner thank yellow";
const PHRASE_ACCOUNT: &str = "5EHgWw2Af1pnoc7f1A8bfmM97W3DAYW8xr82RfhLL9oAabAe";
const SEED_ACCOUNT: &str = "5DeZAMjvpmKhgfoju3A2nSarhrSWDrk25vDi38UocrqVUB6z";
const STASH_ACCOUNT: &str = "5GNJqTPyNqANBkUVMN1LPPrxXnFouWXoe2wNSmmEoLctxiZY";

/// A file of these bytes with this mode, in a directory of its own.
struct OnDisk {
    path: PathBuf,
    _directory: TempDir,
}

fn file_with_mode(bytes: &[u8], mode: u32) -> OnDisk {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    OnDisk {
        path,
        _directory: directory,
    }
}

fn file(bytes: impl AsRef<[u8]>) -> OnDisk {
    file_with_mode(bytes.as_ref(), 0o600)
}

fn data(name: &str) -> Vec<u8> {
    fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(name),
    )
    .unwrap()
}

fn password(text: &str) -> Password {
    Password::new(text.to_owned())
}

fn address(bytes: impl AsRef<[u8]>) -> String {
    keyfile::read_key(&file(bytes).path, None)
        .unwrap()
        .account()
        .to_string()
}

fn fault(bytes: impl AsRef<[u8]>) -> Fault {
    keyfile::read_key(&file(bytes).path, None)
        .unwrap_err()
        .fault
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn plain_files_of_the_official_core_open() {
    assert_eq!(address(data("phrase.json")), PHRASE_ACCOUNT);
    assert_eq!(address(data("seed.json")), SEED_ACCOUNT);
    assert_eq!(
        address(data("uri.json")),
        STASH_ACCOUNT,
        "a private key alone"
    );
}

#[test]
fn encrypted_files_of_other_programs_open_with_their_password_only() {
    for name in ["nacl.bin", "ansible.vault", "fernet.token"] {
        let sealed = file(data(name));
        assert!(keyfile::is_encrypted(&sealed.path).unwrap());
        let key = keyfile::read_key(&sealed.path, Some(&password("throw-away"))).unwrap();
        assert_eq!(key.account().to_string(), PHRASE_ACCOUNT, "{name}");
        let fault = keyfile::read_key(&sealed.path, Some(&password("throw-awaz")))
            .unwrap_err()
            .fault;
        assert!(matches!(fault, Fault::WrongPassword), "{name}: {fault}");
        let fault = keyfile::read_key(&sealed.path, None).unwrap_err().fault;
        let variable = Password::variable(&sealed.path);
        assert!(
            matches!(fault, Fault::PasswordNeeded { variable: v } if v == variable),
            "{name}"
        );
    }
}

#[test]
fn a_damaged_envelope_is_an_error() {
    let password = password("throw-away");
    // Salt, tag, ciphertext and line ends of the one that is cheap to open.
    let vault = String::from_utf8(data("ansible.vault")).unwrap();
    for place in (30..vault.len()).step_by(97) {
        let mut text = vault.clone().into_bytes();
        text[place] = if text[place] == b'3' { b'4' } else { b'3' };
        assert!(
            keyfile::read_key(&file(text).path, Some(&password)).is_err(),
            "{place}"
        );
    }
    let header_only = "$ANSIBLE_VAULT;1.1;AES256\n";
    for text in [
        "$NACL",
        "$NACLshort",
        "$ANSIBLE_VAULT",
        header_only,
        "$ANSIBLE_VAULT;1.0;AES\n00",
        "gAAAAA",
        "gAAAAA==",
    ] {
        let fault = keyfile::read_key(&file(text).path, Some(&password))
            .unwrap_err()
            .fault;
        assert!(matches!(fault, Fault::Damaged { .. }), "{text}: {fault}");
    }
}

#[test]
fn bare_secrets_open() {
    let seed = "05".repeat(32);
    let private = hex::encode(
        hex::decode(
            "33a6f3093f158a7109f679410bef1a0c54168145e0cecb4df006c1c2fffb1f09\
             925a225d97aa00682d6a59b95b18780c10d7032336e88f3442b42361f4a66011",
        )
        .unwrap(),
    );
    assert_eq!(address(&seed), SEED_ACCOUNT);
    assert_eq!(address(format!("0x{seed}\n")), SEED_ACCOUNT);
    assert_eq!(address(&private), Key::dev("Alice").account().to_string());
    assert_eq!(
        address(format!(" 0x{private}")),
        Key::dev("Alice").account().to_string()
    );
    assert_eq!(address(PHRASE), PHRASE_ACCOUNT);
    assert_eq!(
        address(format!("\n{}\n", PHRASE.replace(' ', "  "))),
        PHRASE_ACCOUNT
    );
}

#[test]
fn any_subset_of_keys_will_do_and_the_phrase_comes_before_the_seed_before_the_private_key() {
    let seed = "05".repeat(32);
    let private = "33a6f3093f158a7109f679410bef1a0c54168145e0cecb4df006c1c2fffb1f09\
                   925a225d97aa00682d6a59b95b18780c10d7032336e88f3442b42361f4a66011";
    let alice = Key::dev("Alice").account().to_string();
    assert_eq!(
        address(format!(r#"{{"secretPhrase":"{PHRASE}"}}"#)),
        PHRASE_ACCOUNT
    );
    assert_eq!(
        address(format!(r#"{{"secretSeed":"0x{seed}"}}"#)),
        SEED_ACCOUNT
    );
    assert_eq!(
        address(format!(
            r#"{{"secretSeed":"{seed}","cryptoType":1,"more":[1]}}"#
        )),
        SEED_ACCOUNT
    );
    assert_eq!(address(format!(r#"{{"privateKey":"0x{private}"}}"#)), alice);
    assert_eq!(
        address(format!(
            r#"{{"privateKey":"0x{private}","secretSeed":"0x{seed}"}}"#
        )),
        SEED_ACCOUNT
    );
    let all = format!(
        r#"{{"privateKey":"0x{private}","secretSeed":"0x{seed}","secretPhrase":"{PHRASE}"}}"#
    );
    assert_eq!(address(all), PHRASE_ACCOUNT);
    let null = format!(r#"{{"secretPhrase":null,"secretSeed":"0x{seed}"}}"#);
    assert_eq!(address(null), SEED_ACCOUNT);
}

#[test]
fn a_stated_address_must_be_the_secrets_own_under_either_name() {
    for name in ["ss58Address", " ss58Address"] {
        let sound = format!(r#"{{"secretPhrase":"{PHRASE}","{name}":"{PHRASE_ACCOUNT}"}}"#);
        assert_eq!(address(sound), PHRASE_ACCOUNT);
        let other = format!(r#"{{"secretPhrase":"{PHRASE}","{name}":"{SEED_ACCOUNT}"}}"#);
        let fault = fault(other);
        let Fault::AddressMismatch { stated, derived } = fault else {
            panic!("{fault}")
        };
        assert_eq!(
            (stated.to_string(), derived.to_string()),
            (SEED_ACCOUNT.into(), PHRASE_ACCOUNT.into())
        );
    }
}

#[test]
fn a_public_half_gives_the_address_and_no_key() {
    assert!(
        matches!(fault(data("public.json")), Fault::PublicOnly(account) if account.to_string() == PHRASE_ACCOUNT)
    );
    // Nobody minds who reads a public half.
    let public = file_with_mode(&data("public.json"), 0o644);
    assert_eq!(
        keyfile::read_account(&public.path).unwrap().to_string(),
        PHRASE_ACCOUNT
    );
    let id_only = format!(
        r#"{{"accountId":"0x{}"}}"#,
        hex::encode(Key::dev("Bob").account().0)
    );
    assert_eq!(
        keyfile::read_account(&file(id_only).path).unwrap(),
        Key::dev("Bob").account()
    );
    let secret = file(data("seed.json"));
    assert_eq!(
        keyfile::read_account(&secret.path).unwrap().to_string(),
        SEED_ACCOUNT
    );
    let sealed = file(data("ansible.vault"));
    assert!(matches!(
        keyfile::read_account(&sealed.path).unwrap_err().fault,
        Fault::PasswordNeeded { .. }
    ));
}

#[test]
fn ed25519_keys_are_refused_as_such() {
    assert!(matches!(fault(data("ed25519.json")), Fault::Ed25519));
    let neither = format!(r#"{{"secretPhrase":"{PHRASE}","cryptoType":7}}"#);
    assert!(matches!(fault(neither), Fault::Damaged { .. }));
}

#[test]
fn a_secret_that_others_may_read_or_write_is_refused_with_the_command_that_helps() {
    for mode in [0o644, 0o640, 0o604, 0o660, 0o602, 0o610] {
        for bytes in [data("seed.json"), data("ansible.vault")] {
            let open = file_with_mode(&bytes, mode);
            let error = keyfile::read_key(&open.path, Some(&password("throw-away"))).unwrap_err();
            assert!(
                matches!(error.fault, Fault::Permissions { mode: found } if found == mode),
                "{error}"
            );
            assert_eq!(
                error.what_to_do(),
                format!("chmod 600 {}", open.path.display())
            );
            assert!(
                error.to_string().contains(&format!("{mode:04o}")),
                "{error}"
            );
        }
    }
    for mode in [0o600, 0o400, 0o700] {
        let closed = file_with_mode(&data("seed.json"), mode);
        assert_eq!(
            keyfile::read_key(&closed.path, None)
                .unwrap()
                .account()
                .to_string(),
            SEED_ACCOUNT
        );
    }
}

#[test]
fn what_is_no_keyfile_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let missing = keyfile::read_key(&directory.path().join("none"), None).unwrap_err();
    assert!(matches!(missing.fault, Fault::Missing), "{missing}");
    assert!(missing.to_string().contains("none"), "{missing}");
    let not_a_file = keyfile::read_key(directory.path(), None).unwrap_err();
    assert!(matches!(not_a_file.fault, Fault::NotAFile), "{not_a_file}");
    for text in [
        "",
        "hello",
        "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY",
        "legal winner",
        "0x",
        "[1]",
    ] {
        assert!(matches!(fault(text), Fault::UnknownFormat), "{text}");
    }
    assert!(matches!(fault([0xff, 0xfe]), Fault::UnknownFormat));
    for text in [
        "{",
        "{}",
        r#"{"secretSeed":"0x05"}"#,
        r#"{"secretSeed":5}"#,
        &"05".repeat(31),
        &"ab".repeat(65),
    ] {
        assert!(matches!(fault(text), Fault::Damaged { .. }), "{text}");
    }
    assert!(matches!(
        fault(vec![b' '; 70_000]),
        Fault::TooLong { max: 65_536 }
    ));
    let wrong_word = PHRASE.replace("sausage", "sausages");
    assert!(matches!(
        fault(&wrong_word),
        Fault::Secret(KeyError::UnknownWord(6))
    ));
    let swapped = PHRASE.replace("legal winner thank yellow", "winner legal thank yellow");
    assert!(matches!(
        fault(swapped),
        Fault::Secret(KeyError::PhraseChecksum)
    ));
    assert!(matches!(
        fault("ff".repeat(64)),
        Fault::Secret(KeyError::PrivateKey)
    ));
    let bad_address = format!(r#"{{"secretPhrase":"{PHRASE}","ss58Address":"5Grw"}}"#);
    assert!(matches!(fault(bad_address), Fault::Address(_)));
}

#[test]
fn a_changed_or_missing_byte_never_gives_another_key() {
    let sound = data("phrase.json");
    let account_of = |bytes: &[u8]| {
        keyfile::read_key(&file(bytes).path, None).map(|key| key.account().to_string())
    };
    let (mut opened, mut refused) = (0, 0);
    for place in 0..sound.len() {
        assert!(account_of(&sound[..place]).is_err(), "{place} bytes");
        for byte in [b'"', b'a', b'0', 0xff] {
            let mut changed = sound.clone();
            changed[place] = byte;
            match account_of(&changed) {
                Ok(account) => {
                    assert_eq!(account, PHRASE_ACCOUNT, "byte {place}");
                    opened += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    // Seed and private key may change, as the phrase comes first; the phrase, the address and the braces may not.
    assert!(
        opened > 0 && refused > 0,
        "{opened} opened, {refused} refused"
    );
}

/// JSON with a secret where a parser would quote it, and files with a secret in every form.
#[test]
fn no_message_holds_a_secret() {
    let secret = "cafe".repeat(16);
    for text in [
        format!(r#"{{"secretSeed":{secret}}}"#),
        format!(r#"{{"secretPhrase":["{secret}"]}}"#),
        format!(r#"{{"cryptoType":"{secret}","secretSeed":"{secret}"}}"#),
        format!(r#"{{"secretSeed":"0x{secret}00"}}"#),
        format!(r#"{{"secretSeed":"0x{secret}","ss58Address":"{SEED_ACCOUNT}"}}"#),
        format!("{secret}00"),
        format!("{} {secret}", "word ".repeat(11)),
        format!("$NACL{secret}"),
        format!("gAAAAA{secret}"),
    ] {
        // Without a password the encrypted ones stop before any key is derived.
        let error = keyfile::read_key(&file(&text).path, None).unwrap_err();
        for shown in [error.to_string(), format!("{error:?}"), error.what_to_do()] {
            assert!(!shown.contains("cafecafe"), "{shown}");
        }
    }
    let made = WalletDir::create(new_wallet(
        tempfile::tempdir().unwrap().path(),
        Protection::None,
    ))
    .unwrap();
    let shown = format!(
        "{made:?} {:#?} {:?}",
        made,
        new_wallet(Path::new("/"), Protection::Password(password("hunter2")))
    );
    for words in [made.coldkey.phrase.words(), made.hotkey.phrase.words()] {
        let two = words.split_inclusive(' ').take(2).collect::<String>();
        assert!(!shown.contains(&two), "{shown}");
    }
    assert!(!shown.contains("hunter2"));
}

fn new_wallet(root: &Path, coldkey: Protection) -> NewWallet {
    NewWallet {
        root: root.to_owned(),
        name: "miner".into(),
        hotkey: "default".into(),
        coldkey,
    }
}

#[test]
fn a_new_wallet_opens_again_and_its_phrases_make_its_keys() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("deep/wallets");
    let made = WalletDir::create(new_wallet(
        &root,
        Protection::Password(password("correct horse")),
    ))
    .unwrap();
    let wallet = WalletDir::new(&root, "miner").unwrap();
    assert_eq!(made.wallet, wallet);
    let (coldkey, hotkey) = (&made.coldkey, &made.hotkey);
    assert_ne!(coldkey.account, hotkey.account);

    assert_eq!(
        wallet.hotkey("default", None).unwrap().account(),
        hotkey.account
    );
    assert_eq!(wallet.hotkey_account("default").unwrap(), hotkey.account);
    assert_eq!(wallet.coldkey_account().unwrap(), coldkey.account);
    assert_eq!(
        wallet
            .coldkey(Some(&password("correct horse")))
            .unwrap()
            .account(),
        coldkey.account
    );
    assert!(matches!(
        wallet.coldkey(None).unwrap_err().fault,
        Fault::PasswordNeeded { .. }
    ));
    for key in [coldkey, hotkey] {
        assert_eq!(key.phrase.words().split(' ').count(), 12);
        assert_eq!(
            Key::from_phrase(key.phrase.words()).unwrap().account(),
            key.account
        );
    }

    for path in [
        wallet.coldkey_path(),
        wallet.coldkeypub_path(),
        wallet.hotkey_path("default").unwrap(),
        wallet.path().join("hotkeys/defaultpub.txt"),
    ] {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    for directory in [
        wallet.path().to_owned(),
        wallet.path().join("hotkeys"),
        root,
    ] {
        assert_eq!(mode(&directory), 0o700, "{}", directory.display());
    }
    assert!(keyfile::is_encrypted(&wallet.coldkey_path()).unwrap());
    let public = fs::read_to_string(wallet.coldkeypub_path()).unwrap();
    assert!(
        !public.contains("secret") && !public.contains("private"),
        "{public}"
    );
}

#[test]
fn more_hotkeys_join_a_wallet_and_are_listed() {
    let root = tempfile::tempdir().unwrap();
    let made = WalletDir::create(new_wallet(root.path(), Protection::None)).unwrap();
    let other = made.wallet.create_hotkey("another").unwrap();
    assert_eq!(made.wallet.hotkeys().unwrap(), ["another", "default"]);
    assert_eq!(
        made.wallet.hotkey("another", None).unwrap().account(),
        other.account
    );
    assert_eq!(
        made.wallet.coldkey(None).unwrap().account(),
        made.coldkey.account
    );
    assert_eq!(
        WalletDir::new(root.path(), "none")
            .unwrap()
            .hotkeys()
            .unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn a_key_is_never_replaced_and_a_wallet_is_made_whole_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let made = WalletDir::create(new_wallet(root.path(), Protection::None)).unwrap();
    let files = || -> Vec<(PathBuf, Vec<u8>)> {
        let wallet = &made.wallet;
        let mut files: Vec<_> = [wallet.path().to_owned(), wallet.path().join("hotkeys")]
            .iter()
            .flat_map(|directory| fs::read_dir(directory).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    assert_eq!(before.len(), 4);
    let exists = |result: Result<_, KeyfileError>| {
        matches!(result.map(|_: ()| ()).unwrap_err().fault, Fault::Exists)
    };
    assert!(exists(
        WalletDir::create(new_wallet(root.path(), Protection::None)).map(drop)
    ));
    assert!(exists(made.wallet.create_hotkey("default").map(drop)));
    assert_eq!(files(), before);

    // A stray public half stands in the way of the last of the four files.
    let stray = root.path().join("second/hotkeys/defaultpub.txt");
    fs::create_dir_all(stray.parent().unwrap()).unwrap();
    fs::write(&stray, "mine").unwrap();
    let second = NewWallet {
        name: "second".into(),
        ..new_wallet(root.path(), Protection::None)
    };
    assert!(exists(WalletDir::create(second).map(drop)));
    let left: Vec<_> = fs::read_dir(root.path().join("second"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["hotkeys"]);
    assert_eq!(fs::read(&stray).unwrap(), b"mine");

    // A dangling link is taken for a key as well.
    std::os::unix::fs::symlink("nowhere", made.wallet.hotkey_path("link").unwrap()).unwrap();
    assert!(exists(made.wallet.create_hotkey("link").map(drop)));
}

#[test]
fn a_name_cannot_lead_out_of_the_wallet() {
    let root = tempfile::tempdir().unwrap();
    for name in [
        "",
        ".",
        "..",
        "../other",
        "a/b",
        "a\\b",
        "/etc/passwd",
        ".hidden",
        "a\0b",
        &"x".repeat(129),
    ] {
        let error = WalletDir::new(root.path(), name).unwrap_err();
        assert!(matches!(error.fault, Fault::Name { .. }), "{name:?}");
        let wallet = WalletDir::new(root.path(), "miner").unwrap();
        assert!(
            matches!(
                wallet.hotkey(name, None).unwrap_err().fault,
                Fault::Name { .. }
            ),
            "{name:?}"
        );
        assert!(
            matches!(
                wallet.create_hotkey(name).unwrap_err().fault,
                Fault::Name { .. }
            ),
            "{name:?}"
        );
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}
