"""Draws scenes and all their outcomes, to be looked at: every action must be visible to a person.

python -m training.playroom.contact_sheet --scenes 3 --out training/playroom/contact_sheet.png
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from training.playroom.episodes import Episode, play_episode
from training.playroom.room import Room

COLUMNS, GAP, CAPTION = 7, 6, 15  # pictures a row, pixels


def draw_episodes(episodes: list[Episode], size: int) -> Image.Image:
    """One block of rows an episode: the scene before, then every outcome under its words."""
    cells = [_cells(episode) for episode in episodes]
    rows = sum(-(-len(block) // COLUMNS) for block in cells)
    width, height = size + GAP, size + GAP + CAPTION
    sheet = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP + GAP * len(cells)), "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=10), GAP
    for block in cells:
        for i, (caption, picture) in enumerate(block):
            x, y = GAP + i % COLUMNS * width, top + i // COLUMNS * height
            draw.text((x, y), caption, fill="#223", font=font)
            sheet.paste(Image.fromarray(picture), (x, y + CAPTION))
        top += -(-len(block) // COLUMNS) * height + GAP
    return sheet


def _cells(episode: Episode) -> list[tuple]:
    return [("before", episode.before), *((o.action.phrase().replace("the ", ""), o.after) for o in episode.outcomes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("train", "validation", "test"), default="validation")
    parser.add_argument("--first", type=int, default=0, help="index of the first scene")
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--size", type=int, default=144, help="picture side in pixels")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    room = Room()
    episodes = [play_episode(room, args.split, args.first + i, args.size) for i in range(args.scenes)]
    draw_episodes(episodes, args.size).save(args.out)


if __name__ == "__main__":
    main()
