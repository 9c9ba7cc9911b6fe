"""What converted models must compute, written anew from the papers and independent of the converter.

The transformer is Chameleon's (arXiv 2405.09818, section 2: Llama with query-key norm and, in the larger models, norms
after instead of before), computed as its model-parallel ranks do, each from its own file. The image tokenizer is the VQ-GAN
of arXiv 2012.09841.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


# The transformer


def transformer_logits(ranks: list[State], params: dict, ids: list[int]) -> Tensor:
    """Logits [S, V] of tokens: sums over ranks stand for the all-reduce, concatenations for the all-gather."""
    ranks = [{name: value.float() for name, value in rank.items() if value is not None} for rank in ranks]
    x = torch.cat([rank["tok_embeddings.weight"][ids] for rank in ranks], dim=-1)
    for layer in range(params["n_layers"]):
        for norm, part in (("attention_norm", attention), ("ffn_norm", feed_forward)):
            gain = ranks[0][f"layers.{layer}.{norm}.weight"]
            inner = x if params["swin_norm"] else rms(x, gain, params["norm_eps"])
            out = sum(part(rank, f"layers.{layer}.", inner, params, len(ranks)) for rank in ranks)
            x = x + (rms(out, gain, params["norm_eps"]) if params["swin_norm"] else out)
    x = rms(x, ranks[0]["norm.weight"], params["norm_eps"])
    return torch.cat([x @ rank["output.weight"].T for rank in ranks], dim=-1)


def rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain


def feed_forward(rank: State, prefix: str, x: Tensor, params: dict, num_ranks: int) -> Tensor:
    one, two, three = (rank[f"{prefix}feed_forward.w{number}.weight"] for number in (1, 2, 3))
    gate = x @ one.T
    return (gate * gate.sigmoid() * (x @ three.T)) @ two.T


def attention(rank: State, prefix: str, x: Tensor, params: dict, num_ranks: int) -> Tensor:
    size = params["dim"] // params["n_heads"]
    num_heads = params["n_heads"] // num_ranks
    num_pairs = (params.get("n_kv_heads") or params["n_heads"]) // num_ranks
    q, k, v = (x @ rank[f"{prefix}attention.{name}.weight"].T for name in ("wq", "wk", "wv"))
    outputs = []
    for head in range(num_heads):
        pair = head // (num_heads // num_pairs)
        query = q[:, head * size : (head + 1) * size]
        key, value = (part[:, pair * size : (pair + 1) * size] for part in (k, v))
        query = rotate(normalise(query, rank, f"{prefix}attention.q_normalization"), params["rope_theta"])
        key = rotate(normalise(key, rank, f"{prefix}attention.k_normalization"), params["rope_theta"])
        scores = query @ key.T / math.sqrt(size)
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
        outputs.append(scores.softmax(-1) @ value)
    return torch.cat(outputs, dim=-1) @ rank[f"{prefix}attention.wo.weight"].T


def normalise(x: Tensor, rank: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * rank[f"{name}.weight"] + rank[f"{name}.bias"]
    )


def rotate(x: Tensor, theta: float) -> Tensor:
    """Turn the dimensions (2i, 2i + 1) of position p by p * theta ** (-2i / d)."""
    out = torch.empty_like(x)
    for i in range(0, x.shape[1], 2):
        angle = torch.arange(len(x)) * theta ** (-i / x.shape[1])
        out[:, i] = x[:, i] * angle.cos() - x[:, i + 1] * angle.sin()
        out[:, i + 1] = x[:, i] * angle.sin() + x[:, i + 1] * angle.cos()
    return out


# The image tokenizer


def encode(state: State, ddconfig: dict, pixels: Tensor) -> Tensor:
    """Codes [N] of one image [1, 3, H, W] in [-1, 1]."""
    h = conv(state, "encoder.conv_in", pixels, padding=1)
    for level in range(len(ddconfig["ch_mult"])):
        for block in range(ddconfig["num_res_blocks"]):
            h = residual(state, f"encoder.down.{level}.block.{block}", h)
        if level + 1 < len(ddconfig["ch_mult"]):
            h = conv(state, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = conv(
        state,
        "encoder.conv_out",
        swish(group_norm(state, "encoder.norm_out", middle(state, "encoder.mid", h))),
        padding=1,
    )
    latents = conv(state, "quant_conv", h).flatten(2)[0].T
    return torch.cdist(latents, state["quantize.embedding.weight"]).argmin(-1)


def decode(state: State, ddconfig: dict, codes: Tensor) -> Tensor:
    """The image [1, 3, H, W] of codes [N]."""
    side = math.isqrt(len(codes))
    latents = state["quantize.embedding.weight"][codes].T.unflatten(1, (side, side))[None]
    h = conv(state, "decoder.conv_in", conv(state, "post_quant_conv", latents), padding=1)
    h = middle(state, "decoder.mid", h)
    for level in reversed(range(len(ddconfig["ch_mult"]))):
        for block in range(ddconfig["num_res_blocks"] + 1):
            h = residual(state, f"decoder.up.{level}.block.{block}", h)
        if level > 0:
            h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = conv(state, f"decoder.up.{level}.upsample.conv", h, padding=1)
    return conv(state, "decoder.conv_out", swish(group_norm(state, "decoder.norm_out", h)), padding=1)


def conv(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)


def group_norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def residual(state: State, name: str, x: Tensor) -> Tensor:
    h = conv(state, f"{name}.conv1", swish(group_norm(state, f"{name}.norm1", x)), padding=1)
    h = conv(state, f"{name}.conv2", swish(group_norm(state, f"{name}.norm2", h)), padding=1)
    return h + (conv(state, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in state else x)


def middle(state: State, name: str, x: Tensor) -> Tensor:
    x = residual(state, f"{name}.block_1", x)
    h = group_norm(state, f"{name}.attn_1.norm", x)
    q, k, v = (conv(state, f"{name}.attn_1.{part}", h).flatten(2)[0] for part in "qkv")  # [C, HW]
    seen = v @ (q.T @ k / math.sqrt(len(q))).softmax(-1).T
    x = x + conv(state, f"{name}.attn_1.proj_out", seen.unflatten(1, h.shape[2:])[None])
    return residual(state, f"{name}.block_2", x)
