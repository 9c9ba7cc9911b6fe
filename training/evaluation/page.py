"""A page of edits for people to look at: a scene before, the true outcome, and the candidate that the verifier picks.

    python -m training.evaluation.page --episodes 50 --out page.png

Scenes, commands and candidates are those of `training.evaluation.outcomes` with the same seed. Words are orange where another
outcome is nearer, and green where it is the right one, drawn right, and nothing else visibly changed: an exact success.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import trange

from bwm_pipelines import ChameleonWorldModelPipeline, default_checkpoint
from training.evaluation.outcomes import imagine_episode, nearest_rival, rival_pictures, shown_outcome
from training.evaluation.over_editing import is_exact
from training.picture_grid import BAD, GOOD, NEUTRAL, Group, draw_groups, save
from training.playroom.episodes import Episode, play_episode
from training.playroom.room import Room

COLUMNS = 5


def edit_group(world: ChameleonWorldModelPipeline, episode: Episode, seed: int) -> Group:
    """Before, true outcome and pick of an episode."""
    commanded, action, output = imagine_episode(world, episode, seed)
    truth, pick = episode.outcomes[commanded].after, output.images[0]
    right = nearest_rival(rival_pictures(episode.before, episode.outcomes), pick) == commanded
    exact = is_exact(pick, shown_outcome(world, episode.before, truth), episode.before, truth)
    colour = (GOOD if exact else NEUTRAL) if right else BAD
    pictures = (episode.before, truth, (255 * pick).round().astype(np.uint8))
    return Group(action, [Image.fromarray(picture) for picture in pictures], colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", default=str(default_checkpoint()), help="pipeline folder; default: the embedded one"
    )
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="index of the first scene of the split")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    args = parser.parse_args()
    world, room = ChameleonWorldModelPipeline.from_pretrained(args.checkpoint), Room()
    world.set_progress_bar_config(disable=True)
    size = world.config.image_size
    groups = [
        edit_group(world, play_episode(room, args.split, args.first + i, size), args.seed)
        for i in trange(args.episodes, unit="episode")
    ]
    save(draw_groups(groups, COLUMNS, ("before", "true outcome", "imagined, picked of 8")), args.out)


if __name__ == "__main__":
    main()
