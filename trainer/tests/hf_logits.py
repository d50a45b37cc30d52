"""Logits of checkpoints that gradmesh wrote, computed by transformers, as the reference for hf_equality.rs.

Usage: hf_logits.py DIR   (DIR holds checkpoint directories; needs torch and transformers)

Writes into each checkpoint directory `hf_logits.json` (all values for the fixed prompt) and, beside it,
NAME-hf-f32 and NAME-hf-bf16: the same model saved again by transformers. Prints the values that
hf_equality.rs keeps. The whole procedure is in the head of that file.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

PROMPT = [72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 108, 100]


def main(root: pathlib.Path) -> None:
    for path in sorted(root.iterdir()):
        if not (path / "gradmesh.json").exists():
            continue
        model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        model.eval()
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT])).logits[0]
        (path / "hf_logits.json").write_text(json.dumps(logits.flatten().tolist()))
        for row in (0, 5, 11):
            print(path.name, row, [round(value, 6) for value in logits[row, :4].tolist()])
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert tokenizer("Hello, world")["input_ids"] == PROMPT, tokenizer("Hello, world")
        text = "h\u00e9llo \u2192 \n\t\x00 fn main() {}"
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode()), ids
        assert tokenizer.decode(ids) == text
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            model.to(dtype).save_pretrained(root / f"{path.name}-hf-{name}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
