"""Refusals name what was received and what to do, and never a folder of the server."""

import pytest
from PIL import Image

from bwm_pipelines.space import limits as limits_module
from bwm_pipelines.space.limits import Limits, RateLimit, check_action, check_whole, read_upload
from bwm_pipelines.space.result_cache import ResultCache, fingerprint


def test_an_upload_comes_in_upright_and_without_transparency(tmp_path):
    Image.new("RGBA", (5, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    image = read_upload(tmp_path / "a.png", Limits())
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (5, 4), (255, 255, 255))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(megabytes=0), r"“big.png” has 0.0 MB; at most 0 MB"),
        (Limits(megapixels=0), r"“big.png” has 0.0 megapixels; at most 0 "),
    ],
)
def test_an_upload_that_is_too_large_is_refused(tmp_path, limits, message):
    Image.new("RGB", (100, 100)).save(tmp_path / "big.png")
    with pytest.raises(ValueError, match=message):
        read_upload(tmp_path / "big.png", limits)


@pytest.mark.parametrize("name", ["corrupt", "text", "empty"])
def test_an_upload_that_is_no_image_is_refused_by_its_name_alone(tmp_path, corrupt, name):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    path = corrupt if name == "corrupt" else str(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"“\w+.png” cannot be read .* give a PNG or JPEG file") as caught:
        read_upload(path, Limits())
    assert str(tmp_path) not in str(caught.value)


def test_words_and_numbers():
    assert check_action("  open the door\n", Limits()) == "open the door"
    for wrong, message in [(None, "say in words"), (" ", "say in words"), ("x" * 201, "201 characters; at most 200")]:
        with pytest.raises(ValueError, match=message):
            check_action(wrong, Limits())
    assert check_whole("The seed", 3.0, 0, 9) == 3
    for wrong in (None, 10, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="The seed must be a whole number from 0 to 9"):
            check_whole("The seed", wrong, 0, 9)


def test_the_rate_is_limited_for_each_session_and_only_for_a_minute(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(limits_module.time, "monotonic", lambda: now)
    rate = RateLimit(2)
    rate.count("ann")
    now += 20
    rate.count("ann")
    with pytest.raises(ValueError, match="please wait 41 seconds"):
        rate.count("ann")
    rate.count("bob")
    now += 41
    rate.count("ann")
    now += 100
    rate.count("cid")
    assert list(rate._times) == ["cid"]


def test_a_result_is_computed_once_and_an_unfinished_one_is_not_kept():
    runs = []

    def events():
        runs.append(1)
        yield from (0, "draft", 1.5, "better", 2)

    cache = ResultCache(2, fleeting=(float,))
    unfinished = cache.replay("a", events)
    next(unfinished)
    unfinished.close()
    assert list(cache.replay("a", events)) == [0, "draft", 1.5, "better", 2]
    assert list(cache.replay("a", events)) == [2, "better"] and len(runs) == 2
    list(cache.replay("b", events)), list(cache.replay("c", events))
    list(cache.replay("a", events))
    assert len(runs) == 5


def test_a_fingerprint_tells_pictures_apart():
    wide, tall = Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2))
    assert fingerprint(wide) == fingerprint(wide.copy()) != fingerprint(tall)
    assert fingerprint(wide) != fingerprint(Image.new("RGB", (2, 3), "#000001"))
