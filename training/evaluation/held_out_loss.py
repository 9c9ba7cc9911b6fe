"""What world models lose on scenes that they were not trained on: a finer measure than counts of right pictures.

    python -m training.evaluation.held_out_loss runs/playroom/codes/validation --recipe training/recipes/playroom_cwm.yaml \
        --checkpoint bwm_pipelines/checkpoints/playroom --models runs/playroom/cwm/checkpoint-4000 runs/playroom/cwm/final --out runs/playroom/losses

The recognition-weighted loss of the true after image (Eq. 2 of the paper), summed over it, in nats: of the checkpoint's own
world model and of each of the others, which are also compared with it scene by scene. Given scenes that a model was
trained on, it tells how much of them the model knows by heart. Which model draws better pictures is another question, see
`draw_errors`: training on own draws raises this loss.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.families.chameleon import ChameleonFamily
from training.evaluation.intervals import mean, text
from training.evaluation.likelihood import image_log_probs
from training.evaluation.rows import describe_run, write_json
from training.recipe import Recipe
from training.sequences import load_codes, still_after


def losses_of(
    scene: dict, family: ChameleonFamily, world_model: ChameleonForConditionalGeneration, recipe: Recipe
) -> Tensor:
    """The loss of each of the scene's M triplets by the recipe's `still` and `weights`: float32 [M], in nats."""
    before = torch.tensor(scene["before"])
    prompts = [family.forward_prompt_ids(before, action) for action in scene["action"]]
    after = [torch.tensor(still_after(scene, i, recipe.still)) for i in range(len(prompts))]
    log_probs = torch.stack(image_log_probs(family, world_model, prompts, after))
    return -(recipe.weights(torch.tensor(scene["distance"])) * log_probs).sum(1)


def summarise(scenes: list[dict], losses: list[Tensor], others: list[Tensor]) -> dict:
    """Mean loss, the difference from `others`, and the mean loss of each class; bootstrap intervals over scenes."""
    classes = np.concatenate([scene["class"] for scene in scenes])
    every = torch.cat(losses).numpy()
    return {
        "loss": mean(loss.mean().item() for loss in losses),
        "difference": mean((loss - other).mean().item() for loss, other in zip(losses, others, strict=True)),
        "per_class": {name: float(every[classes == name].mean()) for name in np.unique(classes)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codes", type=Path, help="folder of coded scenes")
    parser.add_argument("--recipe", type=Path, required=True, help="the world model's, see training/recipe.py")
    parser.add_argument(
        "--checkpoint", required=True, help="pipeline folder whose world model the others are compared with"
    )
    parser.add_argument("--models", nargs="*", default=[], help="folders of other world models with the same codes")
    parser.add_argument("--out", type=Path, required=True, help="folder for held_out_loss.json")
    args = parser.parse_args()
    recipe, scenes = Recipe.read(args.recipe), list(load_codes(args.codes))
    pipe = ChameleonWorldModelPipeline.from_pretrained(args.checkpoint, dynamics_model=None)
    losses, summary = {}, {}
    for name in (args.checkpoint, *args.models):
        model = pipe.world_model
        if losses:
            model = ChameleonForConditionalGeneration.from_pretrained(name)
        progress = tqdm(scenes, desc=name, unit="scene")
        losses[name] = [losses_of(scene, pipe.family, model, recipe) for scene in progress]
        summary[name] = summarise(scenes, losses[name], losses[args.checkpoint])
        print(f"{name}: {text(summary[name]['loss'])}, difference {text(summary[name]['difference'])}")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out, "held_out_loss.json", describe_run("training.evaluation.held_out_loss") | summary)


if __name__ == "__main__":
    main()
