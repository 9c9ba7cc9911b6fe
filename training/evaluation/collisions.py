"""How a checkpoint does where an action moves another thing as well, and where not, from what `outcomes` wrote.

    python -m training.evaluation.collisions training/results/twelfth_checkpoint

plays the commanded actions again, without a picture or a model, and writes `collisions.json` into the folder: the figures of
`training.evaluation.outcomes` for either kind of episode.
"""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from training.evaluation.outcomes import figures
from training.evaluation.rows import describe_run, read_rows, write_json
from training.playroom.actions import ALL_ACTIONS
from training.playroom.episodes import moves_another
from training.playroom.room import Room
from training.playroom.scenes import sample_scene

ACTIONS = {action.phrase(): action for action in ALL_ACTIONS}


def collides(room: Room, row: dict) -> bool:
    """True if the action that a row of `outcomes` commands moves another thing as well."""
    room.load(sample_scene(row["scene"]))
    return moves_another(room, room.save(), ACTIONS[row["truth"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder that `outcomes` wrote")
    args = parser.parse_args()
    kinds, room = {True: [], False: []}, Room()
    for row in tqdm(read_rows(args.results / "rows.jsonl"), unit="episode"):
        kinds[collides(room, row)].append(row)
    room.close()
    summary = {"moves_another_thing": figures(kinds[True]), "moves_no_other": figures(kinds[False])}
    write_json(args.results, "collisions.json", describe_run("training.evaluation.collisions") | summary)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
