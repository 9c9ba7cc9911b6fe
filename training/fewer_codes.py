"""Drops the codes of an image tokenizer that look like others: one picture is told by fewer codes, with less chance in it.

    python -m training.fewer_codes --vqgan bwm_pipelines/checkpoints/playroom/vqgan --codes runs/playroom/codes/train \
        --radius 1.0 --out runs/playroom/fewer/vqgan

The most used codes stay, each farther from the others than the radius. Which of two codes that look alike a picture has is noise,
which a world model would have to predict, and to read. The models go over to the new codes by `training.retokenize`.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import VQModel
from torch import Tensor

from bwm_pipelines.new_files import new_files
from training.sequences import load_codes


def uses_of_codes(scenes: Iterable[dict], codes: int, still: float) -> Tensor:
    """How often each code is where an after image changed, int64 [codes].

    Args:
        scenes: as `training.encode` writes them.
        codes: size of the codebook.
        still: patches whose features moved less have not changed, as in `training.recipe`.
    """
    uses = torch.zeros(codes, dtype=torch.int64)
    for scene in scenes:
        moved = torch.tensor(scene["distance"]) >= still
        uses += torch.bincount(torch.tensor(scene["after"])[moved], minlength=codes)
    return uses


def distinct_codes(codebook: Tensor, uses: Tensor, radius: float) -> Tensor:
    """Codes that are farther from each other than `radius`, the most used first to be chosen: int64, ascending.

    Args:
        codebook: float [codes, D].
        uses: how often each code is used [codes].
        radius: squared L2 distance.
    """
    kept: list[int] = []
    for code in uses.argsort(descending=True, stable=True).tolist():
        if not kept or (codebook[kept] - codebook[code]).square().sum(1).min() > radius:
            kept.append(code)
    return torch.tensor(sorted(kept))


def with_rows(vqgan: VQModel, kept: Tensor) -> VQModel:
    """A copy whose codebook has only the codes `kept` [codes], in that order."""
    fewer = VQModel.from_config({**vqgan.config, "num_vq_embeddings": len(kept)})
    rows = vqgan.quantize.embedding.weight[kept]
    fewer.load_state_dict({**vqgan.state_dict(), "quantize.embedding.weight": rows})
    return fewer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vqgan", type=Path, required=True, help="folder of the trained VQModel")
    parser.add_argument(
        "--codes", type=Path, required=True, help="folder of scenes in its codes, which say what is used"
    )
    parser.add_argument("--radius", type=float, required=True, help="squared L2 distance between codes")
    parser.add_argument("--still", type=float, default=2.0, help="as in the world model's recipe")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    vqgan = VQModel.from_pretrained(args.vqgan)
    codebook = vqgan.quantize.embedding.weight.detach()
    uses = uses_of_codes(load_codes(args.codes), len(codebook), args.still)
    kept = distinct_codes(codebook, uses, args.radius)
    print(f"{len(kept)} of {len(codebook)} codes")
    with new_files(args.out) as folder:
        with_rows(vqgan, kept).save_pretrained(folder)


if __name__ == "__main__":
    main()
