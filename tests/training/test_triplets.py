import pytest
import torch
from diffusers import VQModel

from bwm_pipelines.images import to_pixels as library_pixels
from training.encode import encode_pictures
from training.sequences import load_codes
from training.triplets import load_triplets, to_pixels


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no .parquet shards"):
        load_triplets(tmp_path)


def test_training_sees_the_same_pixels_as_the_library(triplet_folder):
    pictures = load_triplets(triplet_folder)["before"][:2]
    assert torch.allclose(to_pixels(pictures), library_pixels(pictures, pictures[0].width), atol=1e-6)


def test_coded_scenes_hold_each_picture_s_codes(triplet_folder, vqgan_folder, codes_folder):
    triplets, scenes = load_triplets(triplet_folder), load_codes(codes_folder)
    vqgan = VQModel.from_pretrained(vqgan_folder)
    assert sum(len(scene["after"]) for scene in scenes) == len(triplets)
    first, last = scenes[0], scenes[len(scenes) - 1]
    assert first["before"] == encode_pictures(vqgan, [triplets[0]["before"]])[0]
    assert last["after"][-1] == encode_pictures(vqgan, [triplets[len(triplets) - 1]["after"]])[0]
    assert last["phrase"][-1] == triplets[len(triplets) - 1]["phrase"]
