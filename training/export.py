"""Puts trained parts together into the folder that `from_pretrained` reads.

    python -m training.export --vqgan runs/playroom/tokenizer/vqgan --world runs/playroom/world/final \
        --dynamics runs/playroom/dynamics/final --out bwm_pipelines/checkpoints/playroom

The folder is written under a temporary name and renamed; its README.md, written by hand, is kept. `sample_scene.png`, a scene
that no training saw, goes beside the weights for the demonstration.
"""

import argparse
import os
import shutil
from pathlib import Path

from diffusers import VQModel
from PIL import Image
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines import ChameleonWorldModelPipeline
from training.fit import FORWARD_PROMPT, INVERSE_PROMPT, build_family
from training.playroom.room import Room
from training.playroom.scenes import sample_scene, scene_seed

CARD = "README.md"


def build_pipeline(vqgan: Path, world: Path, dynamics: Path, **sampling: float | None) -> ChameleonWorldModelPipeline:
    """A pipeline of the trained parts with playroom's prompts; `sampling` holds its defaults, such as `temperature`."""
    tokenizer = VQModel.from_pretrained(vqgan)
    family = build_family(tokenizer)
    return ChameleonWorldModelPipeline(
        world_model=ChameleonForConditionalGeneration.from_pretrained(world),
        dynamics_model=ChameleonForConditionalGeneration.from_pretrained(dynamics),
        processor=family.processor,
        vqgan=tokenizer,
        forward_prompt=FORWARD_PROMPT,
        inverse_prompt=INVERSE_PROMPT,
        image_size=family.image_size,
        mask_image_logits=family.mask_image_logits,
        **sampling,
    )


def photograph_sample_scene(index: int, size: int) -> Image.Image:
    """The test scene of that index."""
    room = Room()
    room.load(sample_scene(scene_seed("test", index)))
    picture = Image.fromarray(room.render(size))
    room.close()
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("vqgan", "world", "dynamics"):
        parser.add_argument(f"--{part}", type=Path, required=True, help=f"folder of the trained {part} part")
    parser.add_argument("--temperature", type=float, default=1.0, help="the checkpoint's default for sampling")
    parser.add_argument("--top-p", type=float, help="likewise; not given: no limit")
    parser.add_argument("--sample-scene", type=int, default=100_027, help="index of the test scene to photograph")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pipe = build_pipeline(args.vqgan, args.world, args.dynamics, temperature=args.temperature, top_p=args.top_p)
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
