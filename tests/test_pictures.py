"""The overview, the film strip and the GIF, read back as pixels."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from bwm_pipelines.pictures import GOOD, LARGE_TILE, WARNING, Frame, evidence_overlay, film_strip, overview, save_gif


def noise(seed, size=(12, 12)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def has_colour(picture, colour):
    return bool((np.asarray(picture) == ImageColor.getrgb(colour)).all(axis=-1).any())


def shows(picture, image, side):
    """True if the picture holds the image at `side` pixels, each of its pixels one hard-edged block."""
    page = np.asarray(picture)
    block = np.asarray(image.resize((side, side), Image.Resampling.NEAREST))
    rows, columns = np.nonzero((page == block[0, 0]).all(axis=-1))
    return any(np.array_equal(page[y : y + side, x : x + side], block) for y, x in zip(rows, columns, strict=True))


BEFORE, CANDIDATES = noise(0), [noise(seed) for seed in range(1, 9)]
SCORES = [-0.1 * rank for rank in range(1, 9)]


def test_overview_shows_before_and_best_large_and_every_candidate():
    picture = overview(BEFORE, CANDIDATES, "open the door", SCORES, [score + 2 for score in SCORES])
    assert shows(picture, BEFORE, LARGE_TILE) and shows(picture, CANDIDATES[0], LARGE_TILE)
    assert all(shows(picture, candidate, LARGE_TILE // 2) for candidate in CANDIDATES)
    assert has_colour(picture, GOOD) and not has_colour(picture, WARNING)


def test_overview_warns_when_no_candidate_beats_nothing_changed():
    picture = overview(BEFORE, CANDIDATES, "open the door", SCORES, [score - 2 for score in SCORES], changed=False)
    assert has_colour(picture, WARNING) and not has_colour(picture, GOOD)


def test_overview_warns_when_nothing_was_verified():
    picture = overview(BEFORE, CANDIDATES, "open the door")
    assert has_colour(picture, WARNING) and not has_colour(picture, GOOD)


def test_overview_draws_a_candidate_without_a_score():
    picture = overview(BEFORE, CANDIDATES[:2], "open the door", [-0.1, float("nan")], [1.0, float("nan")])
    assert has_colour(picture, GOOD) and has_colour(picture, WARNING)


@pytest.mark.parametrize("size", [(1, 1), (100, 100), (512, 512), (30, 700)])
def test_overview_width_does_not_depend_on_the_images(size):
    image = noise(0, size)
    assert overview(image, [image] * 3, "open the door").width == overview(BEFORE, CANDIDATES, "open the door").width


def test_long_action_is_wrapped():
    short, long = (overview(BEFORE, CANDIDATES, "open the door" * times) for times in (1, 9))
    wrapped = overview(BEFORE, CANDIDATES, "open the door " * 9)
    assert short.width == long.width == wrapped.width
    assert wrapped.height > short.height


FRAMES = [
    Frame(BEFORE),
    Frame(CANDIDATES[0], "open the door", -0.1, 1.0),
    Frame(CANDIDATES[1], "close", -3.0, -1.0, False),
]


def test_film_strip_shows_every_frame():
    picture = film_strip(FRAMES)
    assert all(shows(picture, frame.image, LARGE_TILE // 2) for frame in FRAMES)
    assert has_colour(picture, GOOD) and has_colour(picture, WARNING)


def test_gif_shows_every_frame_in_order_and_repeats(tmp_path):
    colours = ["#ff0000", "#00ff00", "#0000ff"]
    frames = [Frame(Image.new("RGB", (4, 4), colour), "turn") for colour in colours]
    save_gif(frames, tmp_path / "rollout.gif", milliseconds=500)
    with Image.open(tmp_path / "rollout.gif") as gif:
        assert gif.n_frames == 3 and gif.info["loop"] == 0
        for number, colour in enumerate(colours):
            gif.seek(number)
            assert gif.info["duration"] == (1000 if number == 2 else 500)
            assert has_colour(gif.convert("RGB"), colour)


def test_evidence_glows_where_it_lies_and_nowhere_else():
    picture = Image.new("RGB", (40, 40), (0, 0, 200))
    heatmap = np.array([[4.0, 0.0], [-9.0, 0.0]])
    glow = np.asarray(evidence_overlay(picture, heatmap), dtype=int)
    assert glow[0, 0, 0] > 90 and glow[0, 0, 0] == glow[..., 0].max()  # orange over the strongest evidence
    dark = glow[-5:, -5:]
    assert dark.max() < 60 and np.ptp(dark) == 0  # grey and darkened without any, or against it
    assert (glow[-5:, :5] == dark).all()
    none = np.asarray(evidence_overlay(picture, -abs(heatmap)), dtype=int)
    assert none.max() < 60
