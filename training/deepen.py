"""A deeper copy of a trained model that computes the same, to be trained on: block expansion (Wu et al., arXiv 2401.02415).

    python -m training.deepen runs/playroom/cwm/final --layers 8 --out runs/playroom/deeper

Some layers are repeated, and a repeated one adds nothing to the residual stream until training teaches it to.
"""

import argparse
import re
from copy import deepcopy
from pathlib import Path

import torch
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines.new_files import new_files


@torch.no_grad()
def deepen(model: ChameleonForConditionalGeneration, layers: int) -> ChameleonForConditionalGeneration:
    """A model of `layers` layers with the logits of `model`; the added ones are spread evenly.

    Raises:
        ValueError: `layers` is not more than the model has, or more than twice as many.
    """
    depth = model.config.num_hidden_layers
    if not depth < layers <= 2 * depth:
        raise ValueError(f"`layers` must be more than the model's {depth} and at most {2 * depth}, got {layers}.")
    config = deepcopy(model.config)
    config.num_hidden_layers = layers
    deeper = ChameleonForConditionalGeneration(config)
    deeper.generation_config = deepcopy(model.generation_config)
    sources = [layer * depth // layers for layer in range(layers)]
    weights = model.state_dict()
    deeper.load_state_dict({name: weights[_name_in_source(name, sources)] for name in deeper.state_dict()})
    for layer, block in enumerate(deeper.model.layers):
        if layer and sources[layer] == sources[layer - 1]:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    return deeper


def _name_in_source(name: str, sources: list[int]) -> str:
    return re.sub(r"^model\.layers\.(\d+)\.", lambda match: f"model.layers.{sources[int(match[1])]}.", name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the trained model")
    parser.add_argument("--layers", type=int, required=True, help="how many the copy has")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    deeper = deepen(ChameleonForConditionalGeneration.from_pretrained(args.model), args.layers)
    with new_files(args.out) as folder:
        deeper.save_pretrained(folder)


if __name__ == "__main__":
    main()
