"""Lets a checkpoint's models go over to another image tokenizer of the same grid, from which they are trained on.

    python -m training.retokenize --checkpoint bwm_pipelines/checkpoints/playroom --vqgan runs/playroom/tokenizer/vqgan \
        --triplets runs/playroom/triplets/train --out runs/playroom/retokenized

Where the new tokenizer has a code, the old one mostly had a certain other: the models take its embedding and its row of the
head over. So they keep what they know of things and actions, and have to learn only what the new codes tell apart.
"""

import argparse
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import VQModel
from torch import Tensor
from tqdm import tqdm
from transformers import ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.families.chameleon import image_token_name
from training.encode import encode_pixels
from training.triplets import load_readable, to_pixels

BATCH = 32


def predecessors(old: VQModel, new: VQModel, pictures: list) -> Tensor:
    """The old code that is most often where a new one is, int64 [new codes]; -1 for codes that no picture has.

    Raises:
        ValueError: the tokenizers make grids of different sizes.
    """
    sizes = new.config.num_vq_embeddings, old.config.num_vq_embeddings
    counts = torch.zeros(sizes[0] * sizes[1], dtype=torch.int64)
    for first in tqdm(range(0, len(pictures), BATCH), unit="batch"):
        pixels = to_pixels(pictures[first : first + BATCH])
        new_codes, old_codes = (encode_pixels(vqgan, pixels)[0].flatten() for vqgan in (new, old))
        if len(new_codes) != len(old_codes):
            raise ValueError(
                f"The new image tokenizer makes {len(new_codes)} codes where the old makes {len(old_codes)}."
            )
        counts += torch.bincount(new_codes * sizes[1] + old_codes, minlength=len(counts))
    most, codes = counts.view(sizes).max(1)
    return torch.where(most > 0, codes, -1)


def add_image_tokens(tokenizer: PreTrainedTokenizerFast, codes: int) -> PreTrainedTokenizerFast:
    """A copy with a token for each of so many codes; tokens that were there keep their ids."""
    larger = deepcopy(tokenizer)
    larger.add_tokens([image_token_name(code) for code in range(codes)], special_tokens=True)
    return larger


@torch.no_grad()
def move_rows(
    model: ChameleonForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, predecessor: Tensor
) -> ChameleonForConditionalGeneration:
    """The model for `tokenizer`, each code with the embedding and the row of the head of its predecessor [codes]."""
    model.resize_token_embeddings(len(tokenizer))
    model.config.vocabulary_map = tokenizer.get_vocab()
    codes = max(len(predecessor), int(predecessor.max()) + 1)
    ids = torch.tensor(tokenizer.convert_tokens_to_ids([image_token_name(code) for code in range(codes)]))
    known = (predecessor >= 0).nonzero().flatten()
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        table[ids[known]] = table[ids[predecessor[known]]]
    return model


def retokenize(pipe: ChameleonWorldModelPipeline, vqgan: VQModel, pictures: list) -> ChameleonWorldModelPipeline:
    """The pipeline with another image tokenizer. If that has fewer codes, the tokens of the others are left unused.

    Args:
        pipe: with both models.
        vqgan: the other image tokenizer.
        pictures: RGB pictures that show what the codes stand for.

    Raises:
        ValueError: `vqgan` has another grid.
    """
    predecessor = predecessors(pipe.vqgan, vqgan, pictures)
    processor = deepcopy(pipe.processor)
    processor.tokenizer = add_image_tokens(processor.tokenizer, len(predecessor))
    models = {
        name: move_rows(getattr(pipe, name), processor.tokenizer, predecessor)
        for name in ("world_model", "dynamics_model")
    }
    return ChameleonWorldModelPipeline.from_pipe(pipe, vqgan=vqgan, processor=processor, **models)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="pipeline folder or Hub id")
    parser.add_argument("--vqgan", type=Path, required=True, help="folder of the other image tokenizer")
    parser.add_argument("--triplets", type=Path, required=True, help="folder of Parquet shards")
    parser.add_argument("--pictures", type=int, default=4000, help="how many after images to compare the codes in")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = load_readable(args.triplets)
    rows = rows.select(range(0, len(rows), max(1, len(rows) // args.pictures)))
    pipe = ChameleonWorldModelPipeline.from_pretrained(args.checkpoint)
    retokenize(pipe, VQModel.from_pretrained(args.vqgan), rows["after"]).save_pretrained(args.out)


if __name__ == "__main__":
    main()
