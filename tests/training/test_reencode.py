import pyarrow.parquet as pq
import pytest
import torch
from diffusers import VQModel

from training import reencode
from training.image_tokenizer import build_vqgan
from training.sequences import load_codes
from training.triplets import shards_of


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("other")
    build_vqgan(channels=(8, 8, 8, 16), codes=40, size=32).save_pretrained(folder)
    return folder


def test_pictures_stay_and_codes_change(codes_folder, vqgan_folder, other_folder, tmp_path, monkeypatch):
    arguments = ["x", "--codes", codes_folder, "--old", vqgan_folder, "--vqgan", other_folder, "--out", tmp_path]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    reencode.main()
    scenes, recoded = load_codes(codes_folder), load_codes(tmp_path)
    old, new = (VQModel.from_pretrained(folder) for folder in (vqgan_folder, other_folder))
    for scene, row in zip(scenes, recoded, strict=True):
        assert all(row[name] == scene[name] for name in ("scene", "id", "action", "inverse", "class"))
        codes = torch.tensor([scene["before"], *scene["after"]])
        with torch.no_grad():
            pixels = old.decode(codes, force_not_quantize=True, shape=(len(codes), 4, 4, 16)).sample.clamp(-1, 1)
            expected = new.quantize(new.encode(pixels).latents)[2][2].view(len(codes), -1)
        assert torch.equal(torch.tensor([row["before"], *row["after"]]), expected)
        assert torch.tensor(row["distance"]).shape == torch.tensor(row["after"]).shape
    written = [shard.stat().st_mtime_ns for shard in shards_of(tmp_path)]
    reencode.main()  # nothing is left to do
    assert written == [shard.stat().st_mtime_ns for shard in shards_of(tmp_path)]
    assert pq.read_schema(shards_of(tmp_path)[0]) == pq.read_schema(shards_of(codes_folder)[0])
