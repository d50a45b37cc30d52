//! Held against drand's own pulse of round 1000 and against ciphertexts of other programs.

use gradmesh_timelock::{
    CIPHERTEXT_BYTES_MAX, Error, OVERHEAD_BYTES, QUICKNET_GENESIS_UNIX_S, QUICKNET_PERIOD_S,
    QUICKNET_PUBLIC_KEY, SecretKey, decrypt, encrypt, round_at, verify,
};

/// Signature of quicknet's round 1000, as drand published it.
const ROUND: u64 = 1000;
const SIGNATURE: &str = "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39";

/// What [`ours`] encrypts to; pins the layout and how entropy is spent. The crate timelock 0.0.1 opens it.
const GOLDEN: &str = "aebb339321d3333c2a4a7d1dcc6efca7ea8f25a626d3a81dff458a2050b16643be674699fd15401df433e2f6dc8b95261754\
    88468a46e3ef57364525ff2b265542a4c40063745feda78fd4c6687c3c4ead5e6beb64144580532fe67372d6bd0920000000\
    000000007db612f735fe27ae8178182afe7c218dadb71e91bfcc3ee0d2b84fcc24efd3ed2000000000000000177e03d6d646\
    594d79e5a70779b2d46328c8254ba7a527624972ffe75aa33a7c32000000000000001600000000000000c7c39f56deeee86d\
    4a1990b31adbe2907f06c6177d690c00000000000000e8e0612e5503a0dbfb18818c08000000000000004145535f47434d5f";

fn signature() -> Vec<u8> {
    hex::decode(SIGNATURE).unwrap()
}

fn ours() -> Vec<u8> {
    encrypt(&QUICKNET_PUBLIC_KEY, ROUND, b"golden", [7; 32]).unwrap()
}

/// Ciphertexts of other programs: (maker, message, ciphertext).
fn others() -> Vec<(String, Vec<u8>, Vec<u8>)> {
    include_str!("data/round-1000.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let message = hex::decode(fields[1].trim_start_matches('-')).unwrap();
            (
                fields[0].to_owned(),
                message,
                hex::decode(fields[2]).unwrap(),
            )
        })
        .collect()
}

#[test]
fn drands_own_signature_verifies_for_its_round_and_key_only() {
    assert!(verify(&QUICKNET_PUBLIC_KEY, ROUND, &signature()));
    assert!(!verify(&QUICKNET_PUBLIC_KEY, ROUND + 1, &signature()));
    assert!(!verify(
        &SecretKey::from_seed([1; 32]).public_key(),
        ROUND,
        &signature()
    ));
}

#[test]
fn ciphertexts_of_other_programs_decrypt() {
    let others = others();
    assert_eq!(others.len(), 4);
    for (maker, message, ciphertext) in others {
        assert_eq!(
            decrypt(&ciphertext, &signature()).as_ref(),
            Ok(&message),
            "made by {maker}"
        );
        assert_eq!(ciphertext.len(), message.len() + OVERHEAD_BYTES);
    }
}

#[test]
fn the_same_arguments_give_the_same_bytes_and_any_other_give_none_in_common() {
    assert_eq!(hex::encode(ours()), GOLDEN);
    assert_eq!(decrypt(&ours(), &signature()), Ok(b"golden".to_vec()));
    for other in [
        encrypt(&QUICKNET_PUBLIC_KEY, ROUND + 1, b"golden", [7; 32]),
        encrypt(&QUICKNET_PUBLIC_KEY, ROUND, b"goldem", [7; 32]),
        encrypt(&QUICKNET_PUBLIC_KEY, ROUND, b"golden", [8; 32]),
        encrypt(
            &SecretKey::from_seed([1; 32]).public_key(),
            ROUND,
            b"golden",
            [7; 32],
        ),
    ] {
        // Point, V and W, encrypted message and tag: all drawn anew.
        let (ours, other) = (ours(), other.unwrap());
        for range in [0..96, 104..136, 144..176, 192..214] {
            assert_ne!(ours[range.clone()], other[range]);
        }
    }
}

#[test]
fn a_round_of_ones_own_beacon_opens_what_was_encrypted_to_it() {
    let beacon = SecretKey::from_seed([3; 32]);
    for round in [0, 1, 77, u64::MAX] {
        let signature = beacon.sign(round);
        assert!(verify(&beacon.public_key(), round, &signature));
        let ciphertext = encrypt(&beacon.public_key(), round, b"weights", [9; 32]).unwrap();
        assert_eq!(decrypt(&ciphertext, &signature), Ok(b"weights".to_vec()));
        let early = beacon.sign(round.wrapping_sub(1));
        assert_eq!(decrypt(&ciphertext, &early), Err(Error::WrongSignature));
        let foreign = SecretKey::from_seed([4; 32]).sign(round);
        assert_eq!(decrypt(&ciphertext, &foreign), Err(Error::WrongSignature));
    }
}

#[test]
fn a_changed_bit_anywhere_is_an_error() {
    let ciphertext = ours();
    for bit in 0..ciphertext.len() * 8 {
        let mut changed = ciphertext.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(decrypt(&changed, &signature()).is_err(), "bit {bit}");
    }
    for bit in 0..signature().len() * 8 {
        let mut changed = signature();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(
            decrypt(&ciphertext, &changed).is_err(),
            "bit {bit} of the signature"
        );
        assert!(
            !verify(&QUICKNET_PUBLIC_KEY, ROUND, &changed),
            "bit {bit} of the signature"
        );
    }
}

#[test]
fn a_ciphertext_of_another_length_is_an_error() {
    let ciphertext = ours();
    for length in 0..ciphertext.len() {
        let fault = decrypt(&ciphertext[..length], &signature()).unwrap_err();
        assert!(
            matches!(fault, Error::Malformed { bytes, .. } if bytes == length),
            "{length}: {fault}"
        );
    }
    let longer = [ciphertext, vec![0]].concat();
    assert!(matches!(
        decrypt(&longer, &signature()),
        Err(Error::Malformed { .. })
    ));
    let longest = vec![0; CIPHERTEXT_BYTES_MAX + 1];
    let what = "longer than 5000 bytes";
    assert_eq!(
        decrypt(&longest, &signature()),
        Err(Error::Malformed {
            bytes: CIPHERTEXT_BYTES_MAX + 1,
            what
        })
    );
}

#[test]
fn a_length_field_never_reaches_past_the_end() {
    let ciphertext = ours();
    // Offsets of every length field: V, W, body, encrypted message, nonce, cipher suite.
    for offset in [96, 136, 176, 184, 214, 234] {
        for claimed in [
            0,
            1,
            31,
            33,
            5_000,
            u64::from(u32::MAX),
            u64::MAX - 7,
            u64::MAX,
        ] {
            let mut changed = ciphertext.clone();
            changed[offset..offset + 8].copy_from_slice(&claimed.to_le_bytes());
            if changed != ciphertext {
                assert!(
                    matches!(
                        decrypt(&changed, &signature()),
                        Err(Error::Malformed { .. })
                    ),
                    "{offset} {claimed}"
                );
            }
        }
    }
}

#[test]
fn the_longest_message_fits_and_one_byte_more_is_refused() {
    let max = CIPHERTEXT_BYTES_MAX - OVERHEAD_BYTES;
    let message = vec![0xa5; max];
    let ciphertext = encrypt(&QUICKNET_PUBLIC_KEY, ROUND, &message, [1; 32]).unwrap();
    assert_eq!(ciphertext.len(), CIPHERTEXT_BYTES_MAX);
    assert_eq!(decrypt(&ciphertext, &signature()), Ok(message));
    let longer = vec![0; max + 1];
    let fault = Error::MessageTooLong {
        bytes: max + 1,
        max,
    };
    assert_eq!(
        encrypt(&QUICKNET_PUBLIC_KEY, ROUND, &longer, [1; 32]),
        Err(fault)
    );
}

/// Encrypting to the point at infinity would let anyone decrypt; a signature of it would open such a ciphertext.
#[test]
fn points_at_infinity_and_points_outside_the_groups_are_refused() {
    let mut infinity = vec![0; 96];
    infinity[0] = 0xc0;
    // Some of these x lie on the curve; its points of so small an x have other factors in their order.
    let small = |x| {
        let mut point = vec![0; 48];
        (point[0], point[47]) = (0x80, x);
        point
    };
    for x in 0..32 {
        assert_eq!(
            decrypt(&ours(), &small(x)),
            Err(Error::Signature(48)),
            "x = {x}"
        );
        assert!(!verify(&QUICKNET_PUBLIC_KEY, ROUND, &small(x)), "x = {x}");
        let key = [small(x), vec![0; 48]].concat();
        assert_eq!(
            encrypt(&key, ROUND, b"message", [1; 32]),
            Err(Error::PublicKey(96)),
            "x = {x}"
        );
    }
    for key in [
        &infinity[..],
        &[0; 96],
        &[0xff; 96],
        &[],
        &QUICKNET_PUBLIC_KEY[..95],
    ] {
        assert_eq!(
            encrypt(key, ROUND, b"message", [1; 32]),
            Err(Error::PublicKey(key.len()))
        );
        assert!(!verify(key, ROUND, &signature()));
    }
    for signature in [
        &infinity[..48],
        &[0; 48],
        &[0xff; 48],
        &[],
        &signature()[..47],
    ] {
        assert_eq!(
            decrypt(&ours(), signature),
            Err(Error::Signature(signature.len()))
        );
        assert!(!verify(&QUICKNET_PUBLIC_KEY, ROUND, signature));
    }
    let mut ciphertext = ours();
    ciphertext[..96].copy_from_slice(&infinity);
    assert!(matches!(
        decrypt(&ciphertext, &signature()),
        Err(Error::Malformed { .. })
    ));
}

/// Bytes of a splitmix64 stream, alone and spliced into a sound ciphertext, so that every branch of the reader is met.
#[test]
fn no_bytes_make_the_reader_panic_or_succeed() {
    let mut state = 0x1234_5678_u64;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    let sound = ours();
    for _ in 0..2_000 {
        let noise: Vec<u8> = (0..next() % 400).map(|_| next() as u8).collect();
        assert!(decrypt(&noise, &signature()).is_err());
        let start = next() as usize % sound.len();
        let length = 1 + next() as usize % (sound.len() - start).min(40);
        let mut spliced = sound.clone();
        for byte in &mut spliced[start..start + length] {
            *byte = next() as u8;
        }
        if spliced != sound {
            assert!(decrypt(&spliced, &signature()).is_err());
        }
    }
}

#[test]
fn rounds_are_counted_from_one_at_genesis() {
    let at = |unix_s| round_at(unix_s, QUICKNET_GENESIS_UNIX_S, QUICKNET_PERIOD_S);
    assert_eq!(at(0), 0);
    assert_eq!(at(QUICKNET_GENESIS_UNIX_S - 1), 0);
    assert_eq!(at(QUICKNET_GENESIS_UNIX_S), 1);
    assert_eq!(at(QUICKNET_GENESIS_UNIX_S + 2), 1);
    assert_eq!(at(QUICKNET_GENESIS_UNIX_S + 3), 2);
    assert_eq!(at(QUICKNET_GENESIS_UNIX_S + 999 * 3), 1000);
    assert_eq!(round_at(u64::MAX, 0, 0), u64::MAX);
}

#[test]
fn debug_output_holds_no_secret() {
    assert_eq!(
        format!("{:?}", SecretKey::from_seed([7; 32])),
        "SecretKey(..)"
    );
}
