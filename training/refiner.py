"""Trains the refiner: it draws what codes show once more, beside the picture before the action.

    python -m training.refiner --checkpoint CHECKPOINT --triplets runs/playroom/triplets/train --out runs/playroom/refiner

The codes of the after image are drawn as for the decoder (`training.decoder`), the image tokenizer shows them, and the refiner
learns to show the true picture from that and the before image. With `--draws`, free draws of `training.playroom.fitted_draws` are
half of what it sees: there whole things have lost their colour or shape. Of the pictures that would do for such a draw, the one
nearest to what the refiner shows is the target, so that it need not show the mean of all. Nothing else is trained: codes mean what
they meant. Checkpoints hold the whole training state; a run that was killed goes on from the newest complete one.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import set_seed
from datasets import Dataset, Image, List, concatenate_datasets, interleave_datasets
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.refinement import refine
from training.decoder import drawn_pictures, load_labelled, picture_loss
from training.refiner_views import Views, vary
from training.steps import learn, new_accelerator, options
from training.triplets import load_triplets, shards_of, to_pixels

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


class Batch(NamedTuple):
    """Rows of one step; those of free draws have a picture that was `shown`, those of triplets have None.

    Attributes:
        before: pixels, float [B, 3, H, W] in [-1, 1].
        targets: for each row the after images of which any would do, float [M, 3, H, W] in [-1, 1].
        actions: in words.
        shown: what the image tokenizer shows of the draw, float [3, H, W] in [-1, 1].
    """

    before: Tensor
    targets: list[Tensor]
    actions: list[str]
    shown: list[Tensor | None]


def load_drawn(folder: Path) -> Dataset:
    """The free draws in a folder that are not `FAR` from their `after`."""
    rows = load_triplets(shards_of(folder)).select_columns(
        ["before", "after", "action", "shown", "nearby", "distance"]
    )
    rows = rows.cast_column("shown", Image()).cast_column("nearby", List(Image()))
    near = [i for i, distance in enumerate(rows["distance"][:]) if distance <= FAR]
    return rows.select(near).remove_columns("distance")


def load_rows(args: argparse.Namespace) -> Dataset:
    """Labelled triplets, and as many free draws; `shown` and `nearby` are None where there are none.

    Raises:
        ValueError: all free draws are `FAR` from their rendering.
    """
    labelled = concatenate_datasets([load_labelled(folder) for folder in args.triplets])
    if args.draws is None:
        return labelled
    drawn = concatenate_datasets([load_drawn(folder) for folder in args.draws])
    if not len(drawn):
        raise ValueError(f"`draws` hold no draw within {FAR} of its rendering; draw with a trained checkpoint.")
    for name in ("shown", "nearby"):
        labelled = labelled.add_column(name, [None] * len(labelled), feature=drawn.features[name])
    return interleave_datasets([labelled, drawn], stopping_strategy="all_exhausted")


def collate_drawn(rows: list[dict]) -> Batch:
    return Batch(
        to_pixels([row["before"] for row in rows]),
        [to_pixels([row["after"], *(row.get("nearby") or [])]) for row in rows],
        [row["action"] for row in rows],
        [to_pixels([row["shown"]])[0] if row.get("shown") else None for row in rows],
    )


@torch.no_grad()
def show(pipe: ChameleonWorldModelPipeline, batch: Batch, still: float) -> tuple[Tensor, Tensor]:
    """What the refiner reads, pixels float [B, 3, H, W] in [-1, 1]: drawn pictures, and those before the action.

    See `training.decoder.drawn_pictures` for those that are no free draws.
    """
    before, family = batch.before, pipe.family
    pictures = torch.stack([before[i] if shown is None else shown for i, shown in enumerate(batch.shown)])
    if others := [i for i, shown in enumerate(batch.shown) if shown is None]:
        after = torch.stack([batch.targets[i][0] for i in others])
        drawn = drawn_pictures(pipe, before[others], after, [batch.actions[i] for i in others], still)
        pictures[others] = family.decode_features(drawn).to(pictures.dtype)
    codes_only = torch.rand(len(before), 1, 1, 1, device=before.device) < SHOWN_SHARE
    shown_before = family.decode_image(family.encode_image(before))
    return pictures, torch.where(codes_only, shown_before, before)


def nearest(shown: Tensor, targets: list[Tensor]) -> Tensor:
    """For each picture of [B, 3, H, W] that of its targets, [M, 3, H, W], from which it is least far."""
    return torch.stack(
        [some[(some - one).abs().mean((1, 2, 3)).argmin()] for one, some in zip(shown.detach(), targets, strict=True)]
    )


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

    def loss_of(refiner: nn.Module, batch: Batch) -> Tensor:
        with accelerator.autocast():
            drawn, seen = show(pipe, batch, args.still)
        views = vary(Views(batch.before, drawn.float(), seen.float(), batch.targets))
        shown = refiner(views.drawn, views.seen).float()
        return picture_loss(shown, views.before, nearest(shown, views.targets))

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
