"""Memory that Chameleon-7B needs for K candidates at once, by the functions with which the pipelines choose K and refuse.

    python -m tests.benchmarks.memory

Nothing is loaded or run, so it works on any machine.
"""

import argparse

import torch
from diffusers import VQModel
from transformers import ChameleonConfig

from bwm_pipelines.families.chameleon import image_token_name
from bwm_pipelines.memory import (
    GIB,
    Need,
    image_need,
    planned_weight_bytes,
    sampling_need,
    verification_need,
    weight_bytes,
)
from bwm_pipelines.sampling import BLOCK

PREFIX, IMAGE_TOKENS, ACTION_TOKENS, CODES = 1040, 1024, 16, 8192
QUESTION_TOKENS = 40
LORA_RANK = 16


def chameleon_7b() -> ChameleonConfig:
    """The sizes of Chameleon-7B, and where its vocabulary has images."""
    return ChameleonConfig(vocabulary_map={"<image>": 8711} | {image_token_name(c): 4 + c for c in range(CODES)})


def chameleon_vqgan() -> VQModel:
    """Chameleon's image tokenizer in float32, without weights."""
    with torch.device("meta"):
        return VQModel(
            block_out_channels=(128, 128, 256, 256, 512),
            down_block_types=("DownEncoderBlock2D",) * 5,
            up_block_types=("UpDecoderBlock2D",) * 5,
            layers_per_block=2,
            latent_channels=256,
            vq_embed_dim=256,
            num_vq_embeddings=CODES,
            lookup_from_codebook=True,
        )


def needs(config: ChameleonConfig, vqgan: VQModel, dtype: torch.dtype, *, guided: bool) -> dict[str, Need]:
    """What each phase of imagining and verifying 512 px images needs beside the weights."""
    return {
        "sampling": sampling_need(
            config, dtype, prefix_tokens=PREFIX, new_tokens=IMAGE_TOKENS, num_codes=CODES, guided=guided, block=BLOCK
        ),
        "verification": verification_need(
            config,
            dtype,
            shared_tokens=IMAGE_TOKENS + 4,
            own_tokens=IMAGE_TOKENS + QUESTION_TOKENS + ACTION_TOKENS,
            action_tokens=ACTION_TOKENS,
        ),
        "decoding": image_need(vqgan, 512),
    }


def adapter_bytes(config: ChameleonConfig, dtype: torch.dtype) -> int:
    """A LoRA adapter on the four projections of attention, as the recipes train it."""
    return config.num_hidden_layers * 4 * 2 * LORA_RANK * config.hidden_size * dtype.itemsize


def table(candidates: tuple[int, ...] = (1, 4, 8)) -> str:
    """GiB for K candidates at once as a Markdown table."""
    config, vqgan, dtype = chameleon_7b(), chameleon_vqgan(), torch.bfloat16
    lines = [
        f"| models | weights | guidance | {' | '.join(f'K = {k}' for k in candidates)} |",
        f"|---|---|---|{'---:|' * len(candidates)}",
    ]
    for models in ("two models", "one base, two adapters"):
        for int8 in (False, True):
            weights = planned_weight_bytes(config, dtype, int8=int8)
            weights += weights if models == "two models" else 2 * adapter_bytes(config, dtype)
            weights += weight_bytes(vqgan)
            for guided in (False, True):
                phases = needs(config, vqgan, dtype, guided=guided)
                totals = [
                    weights + max(need.total(k + (phase == "verification")) for phase, need in phases.items())
                    for k in candidates
                ]
                cells = " | ".join(f"{total / GIB:.1f}" for total in totals)
                lines.append(f"| {models} | {'int8' if int8 else 'bf16'} | {'yes' if guided else 'no'} | {cells} |")
    return "\n".join(lines)


def parts() -> str:
    """MiB beside the weights, phase by phase, as a Markdown table."""
    lines = ["| phase | guidance | once | prefill | each candidate |", "|---|---|---:|---:|---:|"]
    for guided in (False, True):
        for phase, need in needs(chameleon_7b(), chameleon_vqgan(), torch.bfloat16, guided=guided).items():
            cells = " | ".join(f"{size / 2**20:.0f}" for size in need)
            lines.append(f"| {phase} | {'yes' if guided else 'no'} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"GiB in all, for K candidates at once:\n\n{table()}\n")
    print(f"MiB beside the weights in bfloat16; the most that any phase needs counts:\n\n{parts()}")


if __name__ == "__main__":
    main()
