"""Pages for people to look at: every picture that was asked for is on them."""

import numpy as np
from diffusers import VQModel
from PIL import Image

from training import plot_pairs, plot_tokenizers
from training.evaluation import page
from training.triplets import load_readable


def colours(file) -> int:
    return len(np.unique(np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3), axis=0))


def test_pairs_are_drawn_with_their_words(triplet_folder, tmp_path, monkeypatch):
    sizes = []
    for pairs in (2, 12):
        out = tmp_path / f"{pairs}.png"
        monkeypatch.setattr("sys.argv", ["plot_pairs", str(triplet_folder), "--out", str(out), "--pairs", str(pairs)])
        plot_pairs.main()
        assert colours(out) > 50
        sizes.append(Image.open(out).height)
    assert sizes[0] < sizes[1]
    assert plot_pairs.words_of({"action": "open the door", "score": -0.5, "label": "shut it"}) == (
        "open the door (-0.50) [shut it]"
    )


def test_picks_are_drawn_beside_the_truth(checkpoint_folder, tmp_path, monkeypatch):
    out = tmp_path / "page.png"
    arguments = ["page", "--checkpoint", str(checkpoint_folder), "--episodes", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    page.main()
    assert colours(out) > 50


def test_outcomes_are_drawn_beside_what_tokenizers_show(vqgan_folder, triplet_folder, tmp_path, monkeypatch):
    out = tmp_path / "tokenizers.png"
    arguments = ["plot_tokenizers", str(triplet_folder), "--vqgan", str(vqgan_folder), str(vqgan_folder)]
    monkeypatch.setattr("sys.argv", [*arguments, "--pictures", "4", "--out", str(out)])
    plot_tokenizers.main()
    assert colours(out) > 50

    rows, vqgan = load_readable(triplet_folder).select([0]), VQModel.from_pretrained(vqgan_folder)
    (group,) = plot_tokenizers.reconstructions(rows, [vqgan])
    assert group.words == rows[0]["action"] and group.pictures[0] == rows[0]["after"]
    assert group.pictures[1].size == rows[0]["after"].size and group.pictures[1] != rows[0]["after"]
    assert not plot_tokenizers.something_changes({"before": rows[0]["before"], "after": rows[0]["before"]})
