"""Pages on which nobody is told what was imagined, and how many of the pictures readers of them accept.

    python -m training.evaluation.acceptance pages --checkpoint OLD NEW --out runs/acceptance
    python -m training.evaluation.acceptance count runs/acceptance reader_a.json reader_b.json

Picks for the first test scenes by each checkpoint, as in `training.evaluation.page`, and as many true outcomes of further scenes
are enlarged, shuffled and numbered, beside the picture before. A reader, who may be a person or a vision-language model, sees
`page-*.png` and `question.txt`, and writes one JSON object: a grade for each number. `key.json` says which is which, and `count`
writes `accepted.json`: the shares that all readers, or any of them, accept and find flawless, with 95 % Wilson intervals; how much more
of the same scenes is accepted by all with one checkpoint than with another; and about how many pictures the readers agree.
"""

import argparse
import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.new_files import new_files
from training.evaluation.intervals import mean, proportion
from training.evaluation.outcomes import draw_command, imagine_episode
from training.evaluation.rows import write_json
from training.playroom.episodes import Episode, play_episode
from training.playroom.room import Room

QUESTION = """Each numbered pair shows a room before an action, and a picture that may be of it afterwards. Grade only how the things
in the second picture are drawn, not whether the action succeeded. The things are cubes, balls and cylinders, standing or lying, a
bowl, a drawer, a door and a lamp.

2: nothing is wrong.
1: something is a little off, but a person who edits pictures would accept it.
0: not acceptable: a thing is melted, bent, pinched, without the corners it should have, of two colours or one that it did not have,
   drawn twice, gone for no reason, or there is a ghost or a smear.

Answer with one JSON object: the grade of each number, as in {"0": 2, "1": 0}.
"""
TRUE = "true outcome"
SIDE, GAP, LINE = 300, 8, 26  # pixels: of an enlarged picture, between them, of the words above
COLUMNS, PER_PAGE = 2, 10


class Item(NamedTuple):
    """A pair on a page: `source` is a checkpoint, or `TRUE`; pictures are uint8 [H, W, 3]."""

    source: str
    scene: int
    action: str
    before: np.ndarray
    after: np.ndarray


def picked(world: ChameleonWorldModelPipeline, source: str, episode: Episode, seed: int) -> Item:
    """The candidate that the verifier picks."""
    _, action, output = imagine_episode(world, episode, seed)
    return Item(source, episode.seed, action, episode.before, (255 * output.images[0]).round().astype(np.uint8))


def happened(episode: Episode, seed: int) -> Item:
    """The true outcome of the same kind of command."""
    commanded, action = draw_command(np.random.default_rng([episode.seed, seed]), episode.outcomes)
    return Item(TRUE, episode.seed, action, episode.before, episode.outcomes[commanded].after)


def draw_page(items: Sequence[Item], first: int) -> Image.Image:
    """Pairs with numbers from `first` on, two a row."""
    width, height = 2 * (SIDE + GAP) + GAP, SIDE + LINE + GAP
    page = Image.new("RGB", (COLUMNS * width, -(-len(items) // COLUMNS) * height), "white")
    pen = ImageDraw.Draw(page)
    for place, item in enumerate(items):
        x, y = place % COLUMNS * width + GAP, place // COLUMNS * height
        pen.text((x, y + 4), f"#{first + place}: {item.action}", fill="black", font_size=16)
        for column, picture in enumerate((item.before, item.after)):
            enlarged = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            page.paste(enlarged, (x + column * (SIDE + GAP), y + LINE))
    return page


def write_pages(args: argparse.Namespace) -> None:
    room, items = Room(), []
    worlds = {name: ChameleonWorldModelPipeline.from_pretrained(name) for name in args.checkpoint}
    for world in worlds.values():
        world.set_progress_bar_config(disable=True)
    size = next(iter(worlds.values())).config.image_size
    for index in tqdm(range(2 * args.episodes), unit="episode"):
        episode = play_episode(room, "test", index, size)
        if index < args.episodes:
            items += [picked(world, name, episode, args.seed) for name, world in worlds.items()]
        else:
            items.append(happened(episode, args.seed))
    room.close()
    random.Random(args.seed).shuffle(items)
    with new_files(args.out) as folder:
        for first in range(0, len(items), PER_PAGE):
            draw_page(items[first : first + PER_PAGE], first).save(folder / f"page-{first // PER_PAGE:02d}.png")
        (folder / "question.txt").write_text(QUESTION)
        (folder / "key.json").write_text(json.dumps([[item.source, item.scene] for item in items]))


def count(key: Sequence[tuple[str, int]], readings: Sequence[dict[str, int]]) -> dict:
    """For each source the shares of pictures that readers accept (at least 1) and find flawless (2).

    Args:
        key: the source and scene of each number.
        readings: of each reader, the grade of each number.

    Raises:
        ValueError: a reading leaves out a number, or holds another grade.
    """
    for number, reading in enumerate(readings):
        if wrong := [str(i) for i in range(len(key)) if reading.get(str(i)) not in (0, 1, 2)]:
            raise ValueError(f"`readings` number {number} has no grade 0, 1 or 2 for {', '.join(wrong)}.")
    grades = {source: [] for source, _ in key}
    for i, (source, _) in enumerate(key):
        grades[source].append([reading[str(i)] for reading in readings])
    return {
        source: {
            "accepted_by_all": proportion(min(row) >= 1 for row in rows),
            "accepted_by_any": proportion(max(row) >= 1 for row in rows),
            "flawless_for_all": proportion(min(row) == 2 for row in rows),
        }
        for source, rows in grades.items()
    }


def compare(key: Sequence[tuple[str, int]], readings: Sequence[dict[str, int]]) -> dict:
    """For each two checkpoints the scenes gained and lost by the second, and its difference with a 95 % bootstrap interval.

    All readers must accept; arguments are as in `count`, the difference is in percent points.
    """
    accepted: dict[str, dict[int, bool]] = {}
    for i, (source, scene) in enumerate(key):
        accepted.setdefault(source, {})[scene] = all(reading[str(i)] >= 1 for reading in readings)
    accepted.pop(TRUE, None)
    compared = {}
    for first, second in combinations(sorted(accepted), 2):
        change = [int(accepted[second][scene]) - old for scene, old in accepted[first].items()]
        compared[f"{second} beside {first}"] = {
            "gained": change.count(1),
            "lost": change.count(-1),
            "difference": mean(100 * one for one in change),
        }
    return compared


def write_count(args: argparse.Namespace) -> None:
    key = json.loads((args.pages / "key.json").read_text())
    readings = [json.loads(reading.read_text()) for reading in args.readings]
    accepted = count(key, readings) | compare(key, readings)
    accepted["agreed"] = proportion(len({reading[str(i)] >= 1 for reading in readings}) == 1 for i in range(len(key)))
    write_json(args.pages, "accepted.json", accepted)
    print(json.dumps(accepted, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    pages = commands.add_parser("pages", help="writes the pages, the question and the key")
    pages.add_argument("--checkpoint", nargs="+", required=True, help="pipeline folders; their picks are mixed")
    pages.add_argument("--episodes", type=int, default=50, help="picks of each, and true outcomes")
    pages.add_argument("--seed", type=int, default=0)
    pages.add_argument("--out", type=Path, required=True)
    pages.set_defaults(run=write_pages)
    counting = commands.add_parser("count", help="counts what readers accept")
    counting.add_argument("pages", type=Path, help="folder of the pages")
    counting.add_argument("readings", type=Path, nargs="+", help="JSON files, one of each reader")
    counting.set_defaults(run=write_count)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
