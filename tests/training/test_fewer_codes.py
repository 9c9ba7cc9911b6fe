import torch
from diffusers import VQModel

from training import fewer_codes
from training.encode import encode_pictures
from training.fewer_codes import distinct_codes, uses_of_codes
from training.triplets import load_triplets, shards_of


def test_of_codes_that_look_alike_the_most_used_stays():
    codebook = torch.tensor([[0.0, 0.0], [0.5, 0.0], [3.0, 0.0], [3.0, 1.1]])
    uses = torch.tensor([1, 5, 2, 9])
    assert distinct_codes(codebook, uses, radius=1.0).tolist() == [1, 2, 3]
    assert distinct_codes(codebook, uses, radius=2.0).tolist() == [1, 3]


def test_uses_are_counted_in_what_changed():
    scene = {"after": [[0, 2, 2], [2, 1, 1]], "distance": [[0.0, 3.0, 9.0], [3.0, 2.0, 1.0]]}
    assert uses_of_codes([scene, scene], codes=4, still=2.5).tolist() == [0, 0, 6, 0]


def test_the_tokenizer_with_fewer_codes_encodes_by_those_that_stay(
    vqgan_folder, codes_folder, triplet_folder, tmp_path, monkeypatch
):
    old = VQModel.from_pretrained(vqgan_folder)
    rows = old.quantize.embedding.weight.detach()
    radius = torch.pdist(rows).square().median().item()
    arguments = ["x", "--vqgan", vqgan_folder, "--codes", codes_folder, "--radius", radius, "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    fewer_codes.main()
    new = VQModel.from_pretrained(tmp_path / "out")
    kept = new.quantize.embedding.weight.detach()
    assert 1 < len(kept) < len(rows) and torch.pdist(kept).square().min() > radius
    pictures = load_triplets(shards_of(triplet_folder))["after"][:2]
    codes, features = encode_pictures(new, pictures)
    assert torch.allclose(features, encode_pictures(old, pictures)[1])
    assert torch.equal(codes, torch.cdist(features, kept).argmin(-1))
