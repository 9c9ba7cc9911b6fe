"""An untrained playroom checkpoint: a trained image tokenizer, a text tokenizer and a small Chameleon with random weights.

    python -m training.new_checkpoint --vqgan runs/playroom/tokenizer/vqgan --out runs/playroom/new

A pipeline folder like any other, from which `training.fit` starts.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import VQModel
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from bwm_pipelines import ChameleonWorldModelPipeline
from training.playroom.actions import ALL_SENTENCES
from training.text_tokenizer import build_processor, build_tokenizer
from training.triplets import load_triplets, shards_of

# The action stands before the image: every token of the before image is then read in its light, and a token of the after
# image finds its place in the before image at one constant distance. Far easier to learn for a small model.
FORWARD_PROMPT = "{action}<image>"
INVERSE_PROMPT = "<image><image>"
VOCABULARY = 1024
HEAD_SIZE = 64


def new_checkpoint(
    vqgan: VQModel,
    *,
    image_size: int,
    width: int,
    layers: int,
    positions: int = 512,
    sentences: Iterable[str] = ALL_SENTENCES,
) -> ChameleonWorldModelPipeline:
    """A pipeline whose world model and dynamics model start from the same random weights (torch's global seed).

    Args:
        vqgan: the trained image tokenizer.
        image_size: side of its images in pixels.
        width: hidden size, a multiple of 64.
        layers: number of decoder layers.
        positions: longest sequence in tokens.
        sentences: what the text tokenizer learns its words from.
    """
    num_image_tokens = (image_size // 2 ** (len(vqgan.config.block_out_channels) - 1)) ** 2
    tokenizer = build_tokenizer(sentences, num_codes=vqgan.config.num_vq_embeddings, vocab_size=VOCABULARY)
    model = _small_chameleon(tokenizer, width, layers, positions)
    twin = ChameleonForConditionalGeneration(model.config)
    twin.load_state_dict(model.state_dict())
    return ChameleonWorldModelPipeline(
        world_model=model,
        dynamics_model=twin,
        processor=build_processor(tokenizer, image_size=image_size, num_image_tokens=num_image_tokens),
        vqgan=vqgan,
        forward_prompt=FORWARD_PROMPT,
        inverse_prompt=INVERSE_PROMPT,
        image_size=image_size,
    )


def _small_chameleon(
    tokenizer: PreTrainedTokenizerFast, width: int, layers: int, positions: int
) -> ChameleonForConditionalGeneration:
    """A small stock Chameleon. Its built-in VQ encoder is as small as it can be: codes always come from the `vqgan`."""
    config = ChameleonConfig(
        vocab_size=len(tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_SIZE,
        num_key_value_heads=width // HEAD_SIZE,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "embed_dim": 8, "latent_channels": 8,
                   "num_embeddings": 8, "resolution": 8, "attn_type": "none"},
    )  # fmt: skip
    return ChameleonForConditionalGeneration(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vqgan", type=Path, required=True, help="folder of the trained VQModel")
    parser.add_argument("--image-size", type=int, default=96, help="side of its images in pixels")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--words", type=Path, help="folder of triplets whose words to learn; default: playroom's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    pipe = new_checkpoint(
        VQModel.from_pretrained(args.vqgan),
        image_size=args.image_size,
        width=args.width,
        layers=args.layers,
        sentences=load_triplets(shards_of(args.words))["action"][:] if args.words else ALL_SENTENCES,
    )
    pipe.save_pretrained(args.out)


if __name__ == "__main__":
    main()
