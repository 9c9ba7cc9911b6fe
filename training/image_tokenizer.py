"""Trains the image tokenizer, a `diffusers.VQModel`, on the pictures of triplets.

    python -m training.image_tokenizer --triplets runs/playroom/triplets/train --out runs/playroom/vqgan

With --init the autoencoder of a trained one is trained on, with a new codebook. Most steps see crops, most of them of what changed.

Beside reconstruction it trains for consistency: a cell that did not change between before and after should keep its
code, because every needless flip is noise that the world model would have to learn. Checkpoints hold the whole training
state; a run that was killed goes on from the newest complete one. `log.jsonl` holds one line per --log-every steps.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from datasets import concatenate_datasets
from diffusers import VQModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from training.steps import descend, new_accelerator, options, remaining_batches, resume, save
from training.triplets import load_readable, to_pixels

CODES = 512
WARM_UP_STEPS = 200  # as a plain autoencoder, before the codebook is placed among its features
REVIVE_EVERY = 50  # steps
COMMITMENT, CONSISTENCY = 0.25, 1.0  # loss weights
FOREGROUND_WEIGHT = 4.0  # of pixels whose colour is far from the mean colour: things, not walls
CROP_SHARE = 0.6  # of the steps see four half-size crops of each picture instead of the whole: same cost, more things
ELSEWHERE = 0.05  # how often a crop is drawn around an unchanged cell, to 1 for a changed one


def build_vqgan(channels: tuple[int, ...] = (16, 24, 48, 96), codes: int = CODES, size: int = 96) -> VQModel:
    """A small VQModel: each channel entry after the first halves the resolution."""
    return VQModel(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=32,
        vq_embed_dim=16,
        num_vq_embeddings=codes,
        norm_num_groups=8,
        sample_size=size,
        lookup_from_codebook=True,
        mid_block_add_attention=False,
    )


def with_codes(vqgan: VQModel, codes: int) -> VQModel:
    """A copy of the autoencoder with a codebook of another size, which has yet to be placed."""
    other = VQModel.from_config({**vqgan.config, "num_vq_embeddings": codes})
    weights = {name: weight for name, weight in vqgan.state_dict().items() if not name.startswith("quantize.")}
    other.load_state_dict(weights, strict=False)
    return other


@dataclass
class Codebook:
    """Moving-average update of a VQModel's codebook (van den Oord et al. 2017, appendix A.1), with revival of dead codes.

    `counts` [codes] and `sums` [codes, dim] are the running statistics.
    """

    embedding: Tensor
    decay: float = 0.98
    counts: Tensor = field(init=False)
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts, self.sums = torch.ones_like(self.embedding[:, 0]), self.embedding.clone()

    @torch.no_grad()
    def place_among(self, features: Tensor, rounds: int = 10) -> None:
        """k-means from random features [N, dim]; the same on every rank."""
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        self.embedding.copy_(features[order[torch.arange(len(self.embedding)) % len(features)]])
        for _ in range(rounds):
            one_hot = F.one_hot(torch.cdist(features, self.embedding).argmin(1), len(self.embedding)).float()
            used = one_hot.sum(0) > 0
            self.embedding[used] = (one_hot.T @ features)[used] / one_hot.sum(0)[used, None]
        self.counts, self.sums = torch.ones_like(self.embedding[:, 0]), self.embedding.clone()

    @torch.no_grad()
    def update(self, features: Tensor, codes: Tensor) -> None:
        one_hot = F.one_hot(codes, len(self.embedding)).float()
        self.counts.lerp_(one_hot.sum(0), 1 - self.decay)
        self.sums.lerp_(one_hot.T @ features, 1 - self.decay)
        self.embedding.copy_(self.sums / self.counts.clamp_min(1e-3)[:, None])

    @torch.no_grad()
    def revive(self, features: Tensor, minimum: float = 0.02) -> int:
        """Moves codes that are hardly used to the features that are described worst; returns how many."""
        dead = (self.counts < minimum).nonzero().flatten()[: len(features) // 4]
        distance = torch.cdist(features, self.embedding).amin(1)
        worst = distance.topk(4 * len(dead)).indices[::4] if len(dead) else dead
        self.embedding[dead] = features[worst]
        self.counts[dead], self.sums[dead] = 1.0, features[worst]
        return len(dead)

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts, self.sums = state["counts"], state["sums"]


def changed_cells(before: Tensor, after: Tensor, cells: int) -> Tensor:
    """Cells with a pixel that is not the same in both pictures: bool [B, cells, cells]."""
    return F.adaptive_max_pool2d((before - after).abs().amax(1), cells) >= 0.04


def unchanged_cells(before: Tensor, after: Tensor, cells: int) -> Tensor:
    """Cells whose pixels, and those of the cells around them, are the same in both pictures: bool [B, cells, cells]."""
    changed = changed_cells(before, after, cells).float()
    return F.max_pool2d(changed, 3, stride=1, padding=1) == 0


class TokenizerLoss(nn.Module):
    """A VQModel with its training loss, as one module so that data-parallel wrappers see the forward pass."""

    def __init__(self, vqgan: VQModel, mean: Tensor) -> None:
        super().__init__()
        self.vqgan = vqgan
        self.register_buffer("mean_colour", mean, persistent=False)

    def forward(self, before: Tensor, after: Tensor, embedding: Tensor, quantised: bool) -> dict[str, Tensor]:
        """Loss terms for pixels [B, 3, H, W] in [-1, 1] and the codebook [codes, dim].

        Also `features` [2B*cells, dim] and `codes` [2B*cells] for the codebook's update.
        """
        pixels = torch.cat([before, after])
        latents = self.vqgan.encode(pixels).latents
        features = latents.permute(0, 2, 3, 1).flatten(0, 2)
        codes = torch.cdist(features.detach(), embedding).argmin(1)
        chosen = embedding[codes].view_as(latents.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        inputs = latents + (chosen - latents).detach() if quantised else latents
        error = self.vqgan.decoder(self.vqgan.post_quant_conv(inputs)) - pixels
        foreground = (pixels - self.mean_colour).abs().amax(1, keepdim=True) > 0.45
        weight = 1 + (FOREGROUND_WEIGHT - 1) * foreground
        still = unchanged_cells(before, after, latents.shape[-1])
        drift = (latents[: len(before)] - latents[len(before) :]).square().mean(1)
        return {
            "reconstruction": (weight * (error.abs() + 2 * error.square())).mean(),
            "commitment": (latents - chosen.detach()).square().mean() if quantised else latents.sum() * 0,
            "consistency": (drift * still).sum() / still.sum().clamp_min(1),
            "squared_error": error.detach().square().mean() / 4,
            "flip_rate": _flip_rate(codes.view(2, -1), still.flatten()),
            "features": features.detach(),
            "codes": codes,
        }


def crops_of_changes(before: Tensor, after: Tensor, size: int, copies: int) -> tuple[Tensor, Tensor]:
    """`copies` crops of each pair, on multiples of 8 pixels, the same place in both pictures, mostly with what changed."""
    cells, side = before.shape[-1] // 8, size // 8
    changed = changed_cells(before, after, cells).flatten(1)
    places = torch.multinomial(changed + ELSEWHERE * ~changed, copies, replacement=True)
    corners = torch.stack([places // cells, places % cells], -1) - torch.randint(side, (*places.shape, 2))
    corners = 8 * corners.clamp(0, cells - side)
    crops = [
        torch.stack([b[:, y : y + size, x : x + size], a[:, y : y + size, x : x + size]])
        for b, a, pair in zip(before, after, corners.tolist(), strict=True)
        for y, x in pair
    ]
    return tuple(torch.stack(crops, 1))


def _flip_rate(codes: Tensor, still: Tensor) -> Tensor:
    return ((codes[0] != codes[1]) & still).sum() / still.sum().clamp_min(1)


def train(args: argparse.Namespace) -> None:
    accelerator = new_accelerator(cpu=args.cpu, bf16=args.bf16, seed=args.seed)
    set_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    dataset = concatenate_datasets(
        [load_readable(folder).select_columns(["before", "after"]) for folder in args.triplets]
    )
    loader = DataLoader(
        dataset,
        batch_size=args.batch // 2,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda rows: tuple(to_pixels([row[name] for row in rows]) for name in ("before", "after")),
    )
    sample = dataset.select(range(0, len(dataset), max(1, len(dataset) // 200)))
    mean = to_pixels(sample["before"]).mean((0, 2, 3)).view(1, 3, 1, 1)
    if args.init:
        vqgan, warm_up = with_codes(VQModel.from_pretrained(args.init), args.codes), 1
    else:
        vqgan, warm_up = build_vqgan(codes=args.codes, size=dataset[0]["before"].width), WARM_UP_STEPS
    vqgan.quantize.requires_grad_(False)
    model = TokenizerLoss(vqgan, mean)
    optimizer = torch.optim.AdamW(vqgan.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    codebook = Codebook(vqgan.quantize.embedding.weight.data)  # only now, as preparing may have moved the weights
    accelerator.register_for_checkpointing(codebook, schedule)
    first = resume(accelerator, args.out)
    bar = tqdm(total=args.steps, initial=first, unit="step", mininterval=10, disable=not accelerator.is_main_process)
    for step, (before, after) in remaining_batches(accelerator, loader, first, args.steps):
        torch.manual_seed(args.seed + step)
        if step < CROP_SHARE * args.steps:
            before, after = crops_of_changes(before, after, before.shape[-1] // 2, copies=4)
        terms = model(before, after, codebook.embedding, quantised=step >= warm_up)
        loss = terms["reconstruction"] + COMMITMENT * terms["commitment"] + CONSISTENCY * terms["consistency"]
        descend(accelerator, loss, model, optimizer, schedule)
        features, codes = accelerator.gather(terms["features"]), accelerator.gather(terms["codes"])
        update_codebook(codebook, features, codes, step - warm_up)
        done = step + 1
        bar.update()
        if done % args.log_every == 0 and accelerator.is_main_process:
            log(args.out, done, terms, bar)
        if done % args.save_every == 0 or done == args.steps:
            save(accelerator, args.out, done)
    if accelerator.is_main_process:
        vqgan.save_pretrained(args.out / "vqgan")


def update_codebook(codebook: Codebook, features: Tensor, codes: Tensor, step: int) -> None:
    """`step` counts from the end of the warm-up."""
    if step == -1:
        codebook.place_among(features)
    elif step >= 0:
        codebook.update(features, codes)
        if step % REVIVE_EVERY == 0:
            codebook.revive(features)


def log(out: Path, step: int, terms: dict[str, Tensor], bar: tqdm) -> None:
    row = {name: float(terms[name].detach()) for name in ("reconstruction", "commitment", "consistency", "flip_rate")}
    row |= {
        "step": step,
        "psnr": float(-10 * torch.log10(terms["squared_error"])),
        "codes_in_batch": len(terms["codes"].unique()),
    }
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    bar.set_postfix(psnr=f"{row['psnr']:.1f}", flips=f"{row['flip_rate']:.3f}", codes=row["codes_in_batch"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[options(lr=1.5e-3)]
    )
    parser.add_argument("--triplets", type=Path, nargs="+", required=True, help="folders of Parquet shards")
    parser.add_argument("--init", type=Path, help="VQModel to start from; default: random weights")
    parser.add_argument("--codes", type=int, default=CODES, help="size of the codebook")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
