"""World models to measure: the embedded one, the same layers with another vocabulary, and Chameleon-7B's shape."""

import time
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from bwm_pipelines import ChameleonWorldModelPipeline, default_checkpoint
from bwm_pipelines.families.chameleon import ChameleonFamily, image_token_name

PRESETS = ("playroom", "7b", "tiny")
SHAPES = {
    "7b": {},  # the defaults of ChameleonConfig are Chameleon-7B's
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}
NUM_CODES = {"7b": 8192, "tiny": 32}
SMALL_VQ_CONFIG = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "attn_type": "none"}
"""Of the image tokenizer inside the stock model, which is not measured."""
LENGTHS = {"7b": (1040, 1024), "tiny": (6, 8)}
"""Tokens of the prompt and of the image."""
ACTIONS = ("push the red cube left", "put the red cube in the bowl", "knock over the green cylinder", "open the door")
"""How many tokens a draft saves depends on how much they change."""


class ImageTokens(ChameleonFamily):
    """The family's way of running a model, for a model that has no processor.

    Args:
        image_token_ids: int64 [codebook].
    """

    def __init__(self, image_token_ids: Tensor):
        self.image_token_ids = image_token_ids


@dataclass
class Subject:
    """A model to measure, the prompts it continues, int64 [S], a draft of the image after each, int64 [N], and at which
    temperature.
    """

    name: str
    family: ChameleonFamily
    model: ChameleonForConditionalGeneration
    prompts: list[Tensor]
    draft: Tensor
    temperature: float = 1.0

    @property
    def device(self) -> torch.device:
        return self.draft.device

    @property
    def prefix(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))

    @property
    def num_tokens(self) -> int:
        return len(self.draft)

    def weight_bytes(self) -> int:
        """Bytes of weights that a step must read: all layers, and the head's rows of the codes."""
        decoder = self.model.model
        head = len(self.family.image_token_ids) * self.model.lm_head.weight[0].nbytes
        return sum(parameter.nbytes for layer in decoder.layers for parameter in layer.parameters()) + head

    def kv_bytes(self) -> int:
        """Bytes of keys and values of one token."""
        config = self.model.config
        width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
        return 2 * config.num_hidden_layers * width * self.model.dtype.itemsize

    def step_bytes(self, num_candidates: int) -> float:
        """Bytes that a step must read at least, on average: weights, the prompt's cache once, half of each suffix."""
        tokens = self.prefix + num_candidates * self.num_tokens / 2
        return self.weight_bytes() + tokens * self.kv_bytes()


def build_subject(
    preset: str,
    *,
    prefix: int | None = None,
    image_tokens: int | None = None,
    vocabulary: int | None = None,
    device: torch.device,
) -> Subject:
    """A model and what it is to continue.

    Args:
        preset: one of `PRESETS`. All but "playroom" have random weights, and "7b" is in bfloat16.
        prefix: S; None for the preset's.
        image_tokens: N; None for the preset's.
        vocabulary: tokens of embedding and head, those added with random weights; None for the preset's.
        device: where it runs.
    """
    subject = _playroom(device) if preset == "playroom" else _random(preset, device)
    if vocabulary is not None:
        subject.model.resize_token_embeddings(vocabulary, mean_resizing=False)
    if prefix is not None:
        subject.prompts = [of_length(prompt, prefix) for prompt in subject.prompts]
    if image_tokens is not None:
        subject.draft = of_length(subject.draft, image_tokens)
    model = subject.model
    subject.name = f"{preset}, vocabulary {model.config.vocab_size}, {str(model.dtype).removeprefix('torch.')}"
    return subject


def of_length(tokens: Tensor, length: int) -> Tensor:
    """Tokens [N] cut off, or repeated, to so many."""
    return tokens.repeat(length // len(tokens) + 1)[:length]


def _playroom(device: torch.device) -> Subject:
    """The embedded checkpoint, its sample scene and several actions."""
    folder = default_checkpoint()
    pipe = ChameleonWorldModelPipeline.from_pretrained(folder)
    before = pipe.encode_images(Image.open(folder / "sample_scene.png"))[0].to(device)
    prompts = [pipe.family.forward_prompt_ids(before, action) for action in ACTIONS]
    return Subject("playroom", pipe.family, pipe.world_model.to(device), prompts, before, pipe.config.temperature)


def _random(preset: str, device: torch.device) -> Subject:
    """Random weights, after a prompt of random image tokens; a draft for them is nearly always wrong."""
    names = {image_token_name(code): 4 + code for code in range(NUM_CODES[preset])}
    vocab_size = max(names.values()) + 2 if preset == "tiny" else ChameleonConfig().vocab_size
    vocabulary_map = names | {"<image>": vocab_size - 1}
    config = ChameleonConfig(
        vocabulary_map=vocabulary_map, vocab_size=vocab_size, vq_config=SMALL_VQ_CONFIG, **SHAPES[preset]
    )
    config.num_key_value_heads = config.num_attention_heads
    model = _random_model(config, torch.bfloat16 if preset == "7b" else torch.float32, device)
    image_token_ids = torch.tensor(list(names.values()))
    codes = torch.randint(len(names), (sum(LENGTHS[preset]),), generator=torch.Generator().manual_seed(0)).to(device)
    prompt, draft = codes.split(LENGTHS[preset])
    return Subject(preset, ImageTokens(image_token_ids), model.eval(), [image_token_ids.to(device)[prompt]], draft)


def _random_model(
    config: ChameleonConfig, dtype: torch.dtype, device: torch.device
) -> ChameleonForConditionalGeneration:
    torch.manual_seed(0)
    with device:
        return ChameleonForConditionalGeneration._from_config(config, dtype=dtype)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that copying a large tensor moves, reading and writing: the best of several."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def device_name(device: torch.device) -> str:
    """The hardware in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"
