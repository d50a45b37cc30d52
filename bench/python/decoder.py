"""The decoder of trainer/src/torch/llama.rs in plain torch: same arithmetic, same flat order of parameters."""

import torch
import torch.nn.functional as F


class Decoder(torch.nn.Module):
    """A Llama. Neighbours in the flat order that read the same input are one matrix: q, k and v; gate and up."""

    def __init__(self, config, theta, positions):
        """`config`: fields of Hugging Face's config.json. `theta`: f32, flat. `positions`: of the longest sequence."""
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.queries, self.keys = config["num_attention_heads"], config["num_key_value_heads"]
        self.width = config.get("head_dim") or hidden // self.queries
        self.layers = config["num_hidden_layers"]
        self.epsilon = config["rms_norm_eps"]
        table = (config["vocab_size"], hidden)
        layer = {
            "qkv": ((self.queries + 2 * self.keys) * self.width, hidden),
            "o": (hidden, self.queries * self.width),
            "gate_up": (2 * inner, hidden),
            "down": (hidden, inner),
            "attention_norm": (hidden,),
            "mlp_norm": (hidden,),
        }
        shapes = {"embed": table}
        for number in range(self.layers):
            shapes.update({f"{name}_{number}": shape for name, shape in layer.items()})
        shapes["norm"] = (hidden,)
        if not config["tie_word_embeddings"]:
            shapes["head"] = table
        pieces = theta.split([torch.Size(shape).numel() for shape in shapes.values()])
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True):
            self.register_parameter(name, torch.nn.Parameter(piece.clone().view(shape)))
        for name, values in zip(("cos", "sin"), rotary(config["rope_theta"], self.width, positions)):
            self.register_buffer(name, values, persistent=False)

    def flat(self):
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters()])

    def forward(self, tokens):
        """Mean cross entropy in nats of rows of tokens, each the target of the one before it."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = F.embedding(inputs, self.embed)
        for number in range(self.layers):
            qkv, o, gate_up, down, attention_norm, mlp_norm = (
                self.get_parameter(f"{name}_{number}")
                for name in ("qkv", "o", "gate_up", "down", "attention_norm", "mlp_norm")
            )
            x = x + F.linear(self.attention(self.normed(x, attention_norm), qkv), o)
            gate, up = F.linear(self.normed(x, mlp_norm), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        logits = F.linear(self.normed(x, self.norm), getattr(self, "head", self.embed))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def normed(self, x, weight):
        return F.rms_norm(x, weight.shape, weight, self.epsilon)

    def attention(self, x, qkv):
        sequences, positions, _ = x.shape
        heads = F.linear(x, qkv).view(sequences, positions, -1, self.width)
        turned, value = heads.split([self.queries + self.keys, self.keys], 2)
        cos, sin = self.cos[:positions], self.sin[:positions]
        low, high = turned.chunk(2, -1)
        turned = turned * cos + torch.cat([-high, low], -1) * sin
        query, key = turned.transpose(1, 2).split([self.queries, self.keys], 1)
        mixed = F.scaled_dot_product_attention(
            query, key, value.transpose(1, 2), is_causal=True, enable_gqa=self.queries != self.keys
        )
        return mixed.transpose(1, 2).reshape(sequences, positions, -1)


def rotary(theta, width, positions):
    """cos and sin of position * theta^(-2i/width), [positions, 1, width], angles rounded to f32 as Hugging Face does."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    frequencies = 1.0 / (theta ** exponents.double()).float()
    angles = (torch.arange(positions, dtype=torch.float32)[:, None] * frequencies).double()
    angles = torch.cat([angles, angles], -1)[:, None, :]
    return angles.cos().float(), angles.sin().float()
