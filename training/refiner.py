"""Trains the refiner: it draws what codes show once more, beside the picture before the action.

    python -m training.refiner --checkpoint CHECKPOINT --triplets runs/playroom/triplets/train --out runs/playroom/refiner

The codes of the after image are drawn as for the decoder (`training.decoder`), the image tokenizer shows them, and the refiner
learns to show the true picture from that and the before image. With `--draws`, free draws of `training.playroom.fitted_draws` are
half of what it sees: there whole things have lost their colour or shape. Nothing else is trained: codes mean what they meant.
Checkpoints hold the whole training state; a run that was killed goes on from the newest complete one.
"""

import argparse
from pathlib import Path

import torch
from accelerate.utils import set_seed
from datasets import Dataset, concatenate_datasets, interleave_datasets
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.refinement import refine
from training.decoder import collate, drawn_pictures, load_labelled, picture_loss
from training.steps import learn, new_accelerator, options
from training.triplets import load_triplets, shards_of

SHOWN_SHARE = 0.25  # of the before images are what their codes show, as where an image is given as codes
FAR = 0.8  # of the true change, from the nearest rendering: beyond it free draws show something that cannot be


def build_refiner(channels: tuple[int, ...] = (64, 96, 128), size: int = 96, factor: int = 2) -> UNet2DModel:
    """A small UNet2DModel that at first shows the mean of both pictures; it sees squares of `factor` pixels as one."""
    plain = len(channels) - 1
    refiner = UNet2DModel(
        sample_size=size // factor,
        in_channels=6 * factor**2,
        out_channels=4 * factor**2,
        block_out_channels=channels,
        down_block_types=(*["DownBlock2D"] * plain, "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * plain),
        layers_per_block=1,
        attention_head_dim=32,
        norm_num_groups=8,
    )
    nn.init.zeros_(refiner.conv_out.weight)
    nn.init.zeros_(refiner.conv_out.bias)
    return refiner


class Refiner(nn.Module):
    """A refiner's forward pass as one module, so that data-parallel wrappers see it."""

    def __init__(self, refiner: UNet2DModel) -> None:
        super().__init__()
        self.refiner = refiner

    def forward(self, drawn: Tensor, before: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # on a CPU the fused backward pass takes ten times as long at this size
            return refine(self.refiner, drawn, before)


def load_drawn(folder: Path) -> Dataset:
    """`before`, `after`, `action` and `drawn` [N] of the free draws in a folder that are not `FAR` from their `after`."""
    rows = load_triplets(shards_of(folder))
    rows = rows.select([i for i, distance in enumerate(rows["distance"][:]) if distance <= FAR])
    return rows.select_columns(["before", "after", "action", "drawn"])


def load_rows(args: argparse.Namespace) -> Dataset:
    """Labelled triplets, and as many with free draws; `drawn` is None where there are none."""
    labelled = concatenate_datasets([load_labelled(folder) for folder in args.triplets])
    if args.draws is None:
        return labelled
    drawn = concatenate_datasets([load_drawn(folder) for folder in args.draws])
    labelled = labelled.add_column("drawn", [None] * len(labelled), feature=drawn.features["drawn"])
    return interleave_datasets([labelled, drawn], stopping_strategy="all_exhausted")


def collate_drawn(rows: list[dict]) -> tuple[Tensor, Tensor, list[str], list[list[int] | None]]:
    return *collate(rows), [row.get("drawn") for row in rows]


@torch.no_grad()
def show(
    pipe: ChameleonWorldModelPipeline,
    before: Tensor,
    after: Tensor,
    actions: list[str],
    drawn: list[list[int] | None],
    still: float,
) -> tuple[Tensor, Tensor]:
    """What the refiner reads, pixels float [B, 3, H, W] in [-1, 1]: drawn pictures, and those before the action.

    `drawn` are the codes of free draws, where there are any; see `training.decoder.drawn_pictures` for the others.
    """
    codes = torch.tensor([free or [0] * pipe.family.num_image_tokens for free in drawn], device=before.device)
    if others := [i for i, free in enumerate(drawn) if free is None]:
        codes[others] = drawn_pictures(pipe, before[others], after[others], [actions[i] for i in others], still)
    codes_only = torch.rand(len(before), 1, 1, 1, device=before.device) < SHOWN_SHARE
    shown_before = pipe.family.decode_image(pipe.family.encode_image(before))
    return pipe.family.decode_image(codes), torch.where(codes_only, shown_before, before)


def train(args: argparse.Namespace) -> None:
    accelerator = new_accelerator(cpu=args.cpu, bf16=args.bf16, seed=args.seed)
    set_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = ChameleonWorldModelPipeline.from_pretrained(args.checkpoint, dynamics_model=None).to(accelerator.device)
    pipe.world_model.eval().set_attn_implementation("eager")  # as in `training.fit`
    pipe.vqgan.to(memory_format=torch.channels_last)
    unet = UNet2DModel.from_pretrained(args.init) if args.init else build_refiner(size=pipe.config.image_size)
    refiner = Refiner(unet).to(memory_format=torch.channels_last)
    rows = load_rows(args)
    loader = DataLoader(rows, batch_size=args.batch, shuffle=True, drop_last=True, collate_fn=collate_drawn)

    def loss_of(refiner: nn.Module, batch: tuple[Tensor, Tensor, list[str], list[list[int] | None]]) -> Tensor:
        before, after, actions, free = batch
        with accelerator.autocast():
            drawn, seen = show(pipe, before, after, actions, free, args.still)
        return picture_loss(refiner(drawn.float(), seen.float()).float(), before, after)

    learn(accelerator, args, refiner, loader, loss_of)
    if accelerator.is_main_process:
        unet.save_pretrained(args.out / "refiner")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[options(lr=1e-3)]
    )
    parser.add_argument("--checkpoint", required=True, help="pipeline folder or Hub id: world model and tokenizer")
    parser.add_argument(
        "--triplets", type=Path, nargs="+", required=True, help="folders of Parquet shards, with words"
    )
    parser.add_argument("--draws", type=Path, nargs="+", help="folders of `training.playroom.fitted_draws`")
    parser.add_argument("--init", type=Path, help="refiner to start from; default: a new one")
    parser.add_argument("--still", type=float, default=2.0, help="as in the world model's recipe")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
