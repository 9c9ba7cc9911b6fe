"""Puts trained parts together into the folder that `from_pretrained` reads.

    python -m training.export --checkpoint runs/playroom/new --world runs/playroom/world/final \
        --dynamics runs/playroom/dynamics/final --out bwm_pipelines/checkpoints/playroom

The folder is written under a temporary name and renamed; its README.md, which `hub_cards.cards` makes from results, is
kept. `sample_scene.png`, a scene that no training saw, goes beside the weights for the demonstration.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from diffusers import UNet2DModel, VQModel
from PIL import Image
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines import ChameleonWorldModelPipeline
from training.playroom.room import Room
from training.playroom.scenes import sample_scene, scene_seed

CARD = "README.md"


def mean_of(folders: Sequence[Path]) -> ChameleonForConditionalGeneration:
    """The trained model, or the mean of the weights of several ("model soup", Wortsman et al. 2022).

    Raises:
        ValueError: they are not of one size.
    """
    models = [ChameleonForConditionalGeneration.from_pretrained(folder) for folder in folders]
    weights = [model.state_dict() for model in models]
    shapes = [{name: weight.shape for name, weight in each.items()} for each in weights]
    for folder, others in zip(folders, shapes, strict=True):
        if others != shapes[0]:
            raise ValueError(f"{folder} is not of the size of {folders[0]}; only models of one size have a mean.")
    models[0].load_state_dict({name: sum(each[name] for each in weights) / len(weights) for name in weights[0]})
    models[0].generation_config.use_cache = True  # a trainer saves it switched off
    return models[0]


def assemble(
    checkpoint: str,
    world: Sequence[Path],
    dynamics: Sequence[Path],
    vqgan: Path | None = None,
    refiner: Path | None = None,
    **sampling: float | None,
) -> ChameleonWorldModelPipeline:
    """The checkpoint with trained parts in place of its own; `sampling` holds its defaults, such as `temperature`.

    World model and dynamics model are those of one training each, or means of several; see `mean_of`. `vqgan` may only
    differ from the checkpoint's in its decoder: the models know its codes. `refiner` is one that was trained with that.
    """
    other = {} if vqgan is None else {"vqgan": VQModel.from_pretrained(vqgan)}
    if refiner is not None:
        other["refiner"] = UNet2DModel.from_pretrained(refiner)
    pipe = ChameleonWorldModelPipeline.from_pretrained(
        checkpoint,
        **other,
        world_model=mean_of(world),
        dynamics_model=mean_of(dynamics),
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
    trained = {"type": Path, "nargs": "+", "required": True}
    parser.add_argument("--world", **trained, help="folder of the trained world model; of several, their mean")
    parser.add_argument("--dynamics", **trained, help="folder of the trained dynamics model; likewise")
    parser.add_argument("--vqgan", type=Path, help="image tokenizer whose decoder was trained on (training.decoder)")
    parser.add_argument("--refiner", type=Path, help="folder of the trained refiner (training.refiner)")
    parser.add_argument("--temperature", type=float, default=1.0, help="the checkpoint's default for sampling")
    parser.add_argument("--top-p", type=float, help="likewise; not given: no limit")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="likewise; 1: no guidance")
    parser.add_argument(
        "--expected-features",
        action="store_true",
        help="images show means of entries, see the pipeline's documentation",
    )
    parser.add_argument("--sample-scene", type=int, default=100_027, help="index of the test scene to photograph")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    names = "temperature", "top_p", "guidance_scale", "expected_features"
    sampling = {name: getattr(args, name) for name in names}
    pipe = assemble(args.checkpoint, args.world, args.dynamics, args.vqgan, args.refiner, **sampling)
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
