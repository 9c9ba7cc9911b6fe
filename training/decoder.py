"""Trains the decoder of an image tokenizer on codes as the world model draws them.

    python -m training.decoder --checkpoint CHECKPOINT --triplets runs/playroom/triplets/train --out runs/playroom/decoder

What a world model draws is a little off from one code to the next, so a decoder that has only seen the encoder's codes
shows bent edges. Here each code of the after image is drawn by the world model, given the true ones before it, and the
decoder learns to show the true picture. Encoder and codes stay as they are: both models of the checkpoint go on working.
Checkpoints hold the whole training state; a run that was killed goes on from the newest complete one.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.families import ChameleonFamily
from training.encode import encode_pixels
from training.steps import learn, new_accelerator, options
from training.triplets import load_readable, to_pixels

TRUE_SHARE = 0.25  # of the pictures keep the encoder's codes: the decoder also shows what was only encoded
TEMPERATURES = 0.5, 1.3  # of the draws, uniform in between: what free sampling at 0.5 gets wrong lies at about 1
FOREGROUND_WEIGHT, CHANGE_WEIGHT = 2.0, 4.0  # added to the 1 of every pixel: things, and what the action changes


class Decoder(nn.Module):
    """The part of a VQModel that is trained, as one module so that data-parallel wrappers see the forward pass."""

    def __init__(self, family: ChameleonFamily) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = family.vqgan.post_quant_conv, family.vqgan.decoder
        self.grid_size = family.grid_size

    def forward(self, embedded: Tensor) -> Tensor:
        """Entries of the codebook, or means, float [B, N, D] -> pixels, about [-1, 1], float [B, 3, H, W]."""
        grid = embedded.mT.unflatten(-1, (self.grid_size, self.grid_size))
        return self.decoder(self.post_quant_conv(grid))


@torch.no_grad()
def forced_logits(
    family: ChameleonFamily, world_model: PreTrainedModel, before: Tensor, after: Tensor, actions: list[str]
) -> Tensor:
    """The world model's logits of each code of the after images, given the true codes before it.

    Args:
        family: the token layout of `world_model`.
        world_model: the forward dynamics model.
        before, after: VQ codes, int64 [B, N].
        actions: B actions in words.

    Returns:
        float32 [B, N, C].
    """
    prompts = [family.forward_prompt_ids(codes, action) for codes, action in zip(before, actions, strict=True)]
    answers = family.image_token_ids.to(after.device)[after]
    sequences = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
    ids = pad_sequence(sequences, batch_first=True, padding_value=family.tokenizer.pad_token_id)
    with family.image_logits(world_model):
        logits = world_model(input_ids=ids, use_cache=False).logits[..., family.image_token_ids.to(ids.device)]
    first = torch.tensor([len(prompt) - 1 for prompt in prompts], device=ids.device)
    places = first[:, None] + torch.arange(after.shape[1], device=ids.device)
    return logits[torch.arange(len(ids), device=ids.device)[:, None], places].float()


def drawn_pictures(
    pipe: ChameleonWorldModelPipeline, before: Tensor, after: Tensor, actions: list[str], still: float
) -> Tensor:
    """After images, pixels float [B, 3, H, W] in [-1, 1], as the world model draws them, but for `TRUE_SHARE` of them.

    A patch whose features moved less than `still` has the code it had before, as in `training.recipe`.

    Returns:
        Entries of the codebook, float [B, N, D], or means of them where the pipeline shows means.
    """
    (before_codes, before_features), (codes, features) = (encode_pixels(pipe.vqgan, x) for x in (before, after))
    codebook = pipe.vqgan.quantize.embedding.weight.detach()
    moved = (features - before_features).square().sum(-1)
    drawn = len(after) - round(TRUE_SHARE * len(after))
    targets = torch.where(moved < still, before_codes, codes)[:drawn]
    logits = forced_logits(pipe.family, pipe.world_model, before_codes[:drawn], targets, actions[:drawn])
    logits = logits / torch.empty(drawn, 1, 1, device=after.device).uniform_(*TEMPERATURES)
    expected = pipe.config.expected_features
    draws = logits.softmax(-1) @ codebook if expected else codebook[Categorical(logits=logits).sample()]
    return torch.cat([draws, codebook[codes[drawn:]]])


def pixel_weights(before: Tensor, after: Tensor) -> Tensor:
    """How much each pixel of the after image counts, float [B, 1, H, W]: more on things and around what changed."""
    foreground = (after - after.mean((2, 3), keepdim=True)).abs().amax(1, keepdim=True) > 0.45
    changed = F.max_pool2d(((before - after).abs().amax(1, keepdim=True) > 0.2).float(), 9, stride=1, padding=4)
    return 1 + FOREGROUND_WEIGHT * foreground + CHANGE_WEIGHT * changed


def picture_loss(shown: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Mean absolute error of shown pictures from the after images, by `pixel_weights`; all are float [B, 3, H, W]."""
    weights = pixel_weights(before, after)
    return (weights * (shown - after).abs()).mean() / weights.mean()


def load_labelled(folder: Path) -> Dataset:
    """`before`, `after` and `action` of the triplets in a folder that have words and could be read."""
    rows = load_readable(folder)
    rows = rows.select([i for i, action in enumerate(rows["action"][:]) if action is not None])
    return rows.select_columns(["before", "after", "action"])


def collate(rows: list[dict]) -> tuple[Tensor, Tensor, list[str]]:
    before, after = (to_pixels([row[name] for row in rows]) for name in ("before", "after"))
    return before, after, [row["action"] for row in rows]


def train(args: argparse.Namespace) -> None:
    accelerator = new_accelerator(cpu=args.cpu, bf16=args.bf16, seed=args.seed)
    set_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = ChameleonWorldModelPipeline.from_pretrained(args.checkpoint, dynamics_model=None).to(accelerator.device)
    pipe.world_model.eval()
    decoder = Decoder(pipe.family)
    rows = concatenate_datasets([load_labelled(folder) for folder in args.triplets])
    loader = DataLoader(rows, batch_size=args.batch, shuffle=True, drop_last=True, collate_fn=collate)

    def loss_of(decoder: nn.Module, batch: tuple[Tensor, Tensor, list[str]]) -> Tensor:
        before, after, actions = batch
        with accelerator.autocast():
            drawn = drawn_pictures(pipe, before, after, actions, args.still)
        return picture_loss(decoder(drawn).float(), before, after)

    learn(accelerator, args, decoder, loader, loss_of)
    if accelerator.is_main_process:
        pipe.vqgan.save_pretrained(args.out / "vqgan")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[options(lr=6e-4)]
    )
    parser.add_argument("--checkpoint", required=True, help="pipeline folder or Hub id: world model and tokenizer")
    parser.add_argument(
        "--triplets", type=Path, nargs="+", required=True, help="folders of Parquet shards, with words"
    )
    parser.add_argument("--still", type=float, default=2.0, help="as in the world model's recipe")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
