//! A `tokenizer.json` for byte tokens, so that `AutoTokenizer` understands models trained on bytes.
//!
//! Token id = byte value. The file format wants a printable character for each byte; GPT-2's table is used: printable
//! Latin-1 bytes stand for themselves, the others take the characters from U+0100 on, in order.

use serde_json::json;

/// GPT-2's character of each byte.
fn characters() -> impl Iterator<Item = char> {
    let mut next = 0x100;
    (0..=255u8).map(move |byte| {
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            char::from(byte)
        } else {
            let character = char::from_u32(next).expect("U+0100 to U+0143 are characters");
            next += 1;
            character
        }
    })
}

pub(super) fn byte_level() -> String {
    let vocab: serde_json::Map<_, _> = characters()
        .enumerate()
        .map(|(id, character)| (character.to_string(), id.into()))
        .collect();
    let level = json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": false,
        "use_regex": false,
    });
    let value = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": level.clone(),
        "post_processor": null,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "vocab": vocab,
            "merges": [],
        },
    });
    format!("{value:#}\n")
}

pub(super) fn config(positions: usize) -> String {
    let value = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "model_max_length": positions,
    });
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let all: BTreeSet<_> = characters().collect();
        assert_eq!(all.len(), 256);
        let letters: Vec<_> = characters().collect();
        // The space is the 33rd byte without a printable form: GPT-2's well-known U+0120.
        assert_eq!((letters[32], letters[65]), ('\u{120}', 'A'));
    }
}
