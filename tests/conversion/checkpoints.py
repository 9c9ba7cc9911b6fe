"""Small random checkpoints in the layouts, names, types and wrappings in which the published ones come."""

import json
from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from tests.tiny import SENTENCES
from training.text_tokenizer import build_tokenizer

NUM_CODES, IMAGE_SIZE = 32, 16
DDCONFIG = {
    "double_z": False,
    "z_channels": 16,
    "resolution": IMAGE_SIZE,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
YAML = {
    "model": {
        "base_learning_rate": 4.5e-06,
        "target": "taming.models.vqgan.VQModel",
        "params": {
            "ckpt_path": "vqgan.ckpt",
            "embed_dim": 8,
            "n_embed": NUM_CODES,
            "ddconfig": DDCONFIG,
            "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
        },
    }
}


def text_tokenizer() -> dict:
    """Meta's `text_tokenizer.json`: without a placeholder for images, and without bos before a text."""
    content = json.loads(build_tokenizer(SENTENCES, num_codes=NUM_CODES, vocab_size=400).backend_tokenizer.to_str())
    content["post_processor"] = None
    content["model"]["vocab"]["<reserved08707>"] = content["model"]["vocab"].pop("<image>")
    for token in content["added_tokens"]:
        token["content"] = token["content"].replace("<image>", "<reserved08707>")
    return content


def meta_params(*, swin_norm: bool = False, n_kv_heads: int | None = None, n_layers: int = 2, dim: int = 64) -> dict:
    params = {
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": 4,
        "multiple_of": 32,
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "qk_normalization": True,
        "swin_norm": swin_norm,
    }
    return params | ({"n_kv_heads": n_kv_heads} if n_kv_heads else {})


def meta_ranks(params: dict, vocab_size: int, num_ranks: int = 1, seed: int = 0) -> list[dict[str, Tensor | None]]:
    """The state dict of every model-parallel rank, in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    dim, size = params["dim"], params["dim"] // params["n_heads"]
    pairs = params.get("n_kv_heads") or params["n_heads"]
    hidden = 2 * dim

    def new(*shape: int, around: float = 0.0) -> Tensor:
        spread = 0.3 if around or len(shape) == 1 else 2 / shape[-1] ** 0.5
        return (around + spread * torch.randn(*shape, generator=generator)).bfloat16()

    ends = {"norm.weight": new(dim, around=1.0)}
    for layer in range(params["n_layers"]):
        for name in ("attention_norm", "ffn_norm"):
            ends[f"layers.{layer}.{name}.weight"] = new(dim, around=1.0)
    ranks = []
    for _ in range(num_ranks):
        rank: dict[str, Tensor | None] = {"rope.freqs": new(size // 2).float()}
        rank["tok_embeddings.weight"] = new(vocab_size, dim // num_ranks)
        rank["output.weight"] = new(vocab_size // num_ranks, dim)
        for layer in range(params["n_layers"]):
            prefix = f"layers.{layer}."
            rank[f"{prefix}attention.wq.weight"] = new(dim // num_ranks, dim)
            rank[f"{prefix}attention.wk.weight"] = new(pairs * size // num_ranks, dim)
            rank[f"{prefix}attention.wv.weight"] = new(pairs * size // num_ranks, dim)
            rank[f"{prefix}attention.wo.weight"] = new(dim, dim // num_ranks)
            for name in ("q_normalization", "k_normalization"):
                rank[f"{prefix}attention.{name}.weight"] = new(size, around=1.0)
                rank[f"{prefix}attention.{name}.bias"] = new(size)
            rank[f"{prefix}feed_forward.w1.weight"] = new(hidden // num_ranks, dim)
            rank[f"{prefix}feed_forward.w2.weight"] = new(dim, hidden // num_ranks)
            rank[f"{prefix}feed_forward.w3.weight"] = new(hidden // num_ranks, dim)
        ranks.append(rank | ends)
    return ranks


def vqgan_state(seed: int = 1) -> dict[str, Tensor]:
    """The generator's part of the state dict of a `vqgan.ckpt`, in float32."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    channels = [DDCONFIG["ch"] * factor for factor in DDCONFIG["ch_mult"]]
    top, latent, embed = channels[-1], DDCONFIG["z_channels"], YAML["model"]["params"]["embed_dim"]

    def conv(name: str, inputs: int, outputs: int, size: int) -> None:
        scale = (2 / (inputs * size * size)) ** 0.5
        state[f"{name}.weight"] = scale * torch.randn(outputs, inputs, size, size, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs, 3)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def middle(name: str) -> None:
        block(f"{name}.block_1", top, top)
        norm(f"{name}.attn_1.norm", top)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", top, top, 1)
        block(f"{name}.block_2", top, top)

    conv("encoder.conv_in", 3, channels[0], 3)
    width = channels[0]
    for level, wider in enumerate(channels):
        for number in range(DDCONFIG["num_res_blocks"]):
            block(f"encoder.down.{level}.block.{number}", width, wider)
            width = wider
        if level + 1 < len(channels):
            conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    middle("encoder.mid")
    norm("encoder.norm_out", top)
    conv("encoder.conv_out", top, latent, 3)
    conv("decoder.conv_in", latent, top, 3)
    middle("decoder.mid")
    for level in reversed(range(len(channels))):
        for number in range(DDCONFIG["num_res_blocks"] + 1):
            block(f"decoder.up.{level}.block.{number}", width, channels[level])
            width = channels[level]
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", width, 3, 3)
    conv("quant_conv", latent, embed, 1)
    conv("post_quant_conv", embed, latent, 1)
    state["quantize.embedding.weight"] = torch.randn(NUM_CODES, embed, generator=generator)
    return state


def write_vqgan(folder: Path, state: dict[str, Tensor], config: dict = YAML) -> Path:
    """`vqgan.ckpt` as Lightning writes it, with what training leaves there, and `vqgan.yaml`."""
    training = {
        "loss.discriminator.main.0.weight": torch.randn(4, 3, 4, 4),
        "loss.perceptual_loss.scaling_layer.shift": torch.randn(1, 3, 1, 1),
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(7),
        "model_ema.encoderconv_inweight": torch.randn_like(state["encoder.conv_in.weight"]),
    }
    wrapper = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.0.8",
        "state_dict": state | training,
        "callbacks": {},
        "optimizer_states": [
            {"state": {0: {"step": 1000, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
        ],
        "lr_schedulers": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(wrapper, folder / "vqgan.ckpt")
    (folder / "vqgan.yaml").write_text(yaml.safe_dump(config))
    return folder / "vqgan.ckpt"


def write_meta(
    root: Path, params: dict, ranks: list[dict[str, Tensor | None]], vqgan: dict[str, Tensor], size: str = "7b"
) -> Path:
    """Meta's download, or GAIR's."""
    model = root / "models" / size
    model.mkdir(parents=True)
    (model / "params.json").write_text(json.dumps({"model": params, "model_parallel_size": 8, "max_seq_len": 4096}))
    (model / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": len(ranks)}))
    for number, rank in enumerate(ranks):
        torch.save(rank, model / ("consolidated.pth" if len(ranks) == 1 else f"consolidated.{number:02d}.pth"))
    write_vqgan(root / "tokenizer", vqgan)
    (root / "tokenizer" / "text_tokenizer.json").write_text(json.dumps(text_tokenizer()))
    return root


def stock_model(seed: int = 3, dtype: torch.dtype = torch.float32) -> ChameleonForConditionalGeneration:
    """transformers' class with random weights, its image encoder that of `vqgan_state`."""
    content = text_tokenizer()
    vocabulary = content["model"]["vocab"]
    vocabulary["<image>"] = vocabulary.pop("<reserved08707>")
    config = ChameleonConfig(
        vocab_size=len(vocabulary),
        vocabulary_map=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
        pad_token_id=vocabulary["<pad>"],
        vq_config={
            "embed_dim": 8,
            "num_embeddings": NUM_CODES,
            "latent_channels": DDCONFIG["z_channels"],
            "base_channels": DDCONFIG["ch"],
            "channel_multiplier": DDCONFIG["ch_mult"],
            "resolution": IMAGE_SIZE,
            "attn_resolutions": [],
        },
    )
    model = ChameleonForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "vqmodel" not in name and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
        elif "_norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3, generator=generator)
    encoder = {name: value for name, value in vqgan_state().items() if not name.startswith("decoder.")}
    model.model.vqmodel.load_state_dict(encoder)
    for parameter in model.parameters():  # not the rotary frequencies, which are no weights
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def write_transformers(
    folder: Path, model: ChameleonForConditionalGeneration, *, decoder: bool, max_shard_size: str = "100KB"
) -> Path:
    """What `save_pretrained` writes, with the decoder that the community's conversion of Anole adds."""
    state = model.state_dict()
    if decoder:
        for name, value in vqgan_state().items():
            if name.startswith("decoder."):
                state[f"model.vqmodel.{name}"] = value.to(model.dtype)
    model.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    content = text_tokenizer()
    content["model"]["vocab"]["<image>"] = content["model"]["vocab"].pop("<reserved08707>")
    for token in content["added_tokens"]:
        token["content"] = token["content"].replace("<reserved08707>", "<image>")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder
