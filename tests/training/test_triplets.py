import pytest
import torch
from diffusers import VQModel

from bwm_pipelines.images import to_pixels as library_pixels
from training.encode import encode_pictures, encode_shard
from training.sequences import load_codes
from training.triplets import load_triplets, shards_of, to_pixels


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no .parquet shards"):
        shards_of(tmp_path)


def test_training_sees_the_same_pixels_as_the_library(triplet_folder):
    pictures = load_triplets(shards_of(triplet_folder))["before"][:2]
    assert torch.allclose(to_pixels(pictures), library_pixels(pictures, pictures[0].width), atol=1e-6)


def test_coded_scenes_hold_each_picture_s_codes(triplet_folder, vqgan_folder, codes_folder):
    triplets, scenes = load_triplets(shards_of(triplet_folder)), load_codes(codes_folder)
    vqgan = VQModel.from_pretrained(vqgan_folder)
    assert sum(len(scene["after"]) for scene in scenes) == len(triplets)
    first, last = scenes[0], scenes[len(scenes) - 1]
    assert first["before"] == encode_pictures(vqgan, [triplets[0]["before"]])[0][0].tolist()
    assert last["after"][-1] == encode_pictures(vqgan, [triplets[len(triplets) - 1]["after"]])[0][0].tolist()
    assert last["action"][-1] == triplets[len(triplets) - 1]["action"]


def test_distances_are_those_of_the_features_before_quantisation(triplet_folder, vqgan_folder, codes_folder):
    triplet, scene = load_triplets(shards_of(triplet_folder))[0], load_codes(codes_folder)[0]
    _, (before, after) = encode_pictures(VQModel.from_pretrained(vqgan_folder), [triplet["before"], triplet["after"]])
    assert torch.allclose(torch.tensor(scene["distance"][0]), ((before - after) ** 2).sum(-1), rtol=1e-3, atol=1e-5)


def test_a_finished_shard_of_codes_is_left_alone(triplet_folder, vqgan_folder, tmp_path):
    shard = shards_of(triplet_folder)[0]
    (tmp_path / shard.name).write_text("done before")
    encode_shard(shard, vqgan=vqgan_folder, out=tmp_path)
    assert (tmp_path / shard.name).read_text() == "done before"
