"""Puts trained parts together into the folder that `from_pretrained` reads.

    python -m training.export --checkpoint runs/playroom/new --world runs/playroom/world/final \
        --dynamics runs/playroom/dynamics/final --out bwm_pipelines/checkpoints/playroom

The folder is written under a temporary name and renamed; its README.md, which `hub_cards.cards` makes from results, is
kept. `sample_scene.png`, a scene that no training saw, goes beside the weights for the demonstration.
"""

import argparse
import os
import shutil
from pathlib import Path

from diffusers import VQModel
from PIL import Image
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines import ChameleonWorldModelPipeline
from training.playroom.room import Room
from training.playroom.scenes import sample_scene, scene_seed

CARD = "README.md"


def assemble(
    checkpoint: str, world: Path, dynamics: Path, vqgan: Path | None = None, **sampling: float | None
) -> ChameleonWorldModelPipeline:
    """The checkpoint with trained parts in place of its own; `sampling` holds its defaults, such as `temperature`.

    `vqgan` may only differ from the checkpoint's in its decoder: the models know its codes.
    """
    other = {} if vqgan is None else {"vqgan": VQModel.from_pretrained(vqgan)}
    pipe = ChameleonWorldModelPipeline.from_pretrained(
        checkpoint,
        **other,
        world_model=ChameleonForConditionalGeneration.from_pretrained(world),
        dynamics_model=ChameleonForConditionalGeneration.from_pretrained(dynamics),
    )
    pipe.register_to_config(**sampling)
    return pipe


def photograph_sample_scene(index: int, size: int) -> Image.Image:
    """The test scene of that index."""
    room = Room()
    room.load(sample_scene(scene_seed("test", index)))
    picture = Image.fromarray(room.render(size))
    room.close()
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="pipeline folder that the training started from")
    parser.add_argument("--world", type=Path, required=True, help="folder of the trained world model")
    parser.add_argument("--dynamics", type=Path, required=True, help="folder of the trained dynamics model")
    parser.add_argument("--vqgan", type=Path, help="image tokenizer whose decoder was trained on (--decoder-only)")
    parser.add_argument("--temperature", type=float, default=1.0, help="the checkpoint's default for sampling")
    parser.add_argument("--top-p", type=float, help="likewise; not given: no limit")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="likewise; 1: no guidance")
    parser.add_argument("--sample-scene", type=int, default=100_027, help="index of the test scene to photograph")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "guidance_scale": args.guidance_scale}
    pipe = assemble(args.checkpoint, args.world, args.dynamics, args.vqgan, **sampling)
    temporary = args.out.with_name(args.out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    pipe.save_pretrained(temporary)
    photograph_sample_scene(args.sample_scene, pipe.config.image_size).save(temporary / "sample_scene.png")
    if (args.out / CARD).exists():
        shutil.copy(args.out / CARD, temporary / CARD)
    shutil.rmtree(args.out, ignore_errors=True)
    os.replace(temporary, args.out)


if __name__ == "__main__":
    main()
