import pytest
import torch
from diffusers import VQModel

from bwm_pipelines import ChameleonWorldModelPipeline
from training import retokenize
from training.fewer_codes import with_rows
from training.image_tokenizer import build_vqgan
from training.triplets import load_triplets, shards_of


@pytest.fixture(scope="module")
def renamed_folder(vqgan_folder, tmp_path_factory):
    """The same tokenizer with its codes in another order, and eight more that no picture has."""
    vqgan = VQModel.from_pretrained(vqgan_folder)
    more = build_vqgan(channels=(8, 8, 8, 16), codes=40, size=32)
    rows = torch.cat([vqgan.quantize.embedding.weight.flip(0), torch.full((8, 16), 1e3)])
    more.load_state_dict({**vqgan.state_dict(), "quantize.embedding.weight": rows})
    folder = tmp_path_factory.mktemp("renamed")
    more.save_pretrained(folder)
    return folder


def image_logits(pipe, name, before):
    """Of each code, for the first token of the after image."""
    model, prompt = getattr(pipe, name), pipe.family.forward_prompt_ids(before, "open the door")
    with torch.no_grad(), pipe.family.image_logits(model):
        return model(input_ids=prompt[None]).logits[0, -1, pipe.family.image_token_ids]


def test_models_read_and_predict_the_new_codes_as_they_did_the_old(
    checkpoint_folder, renamed_folder, triplet_folder, tmp_path, monkeypatch
):
    arguments = ["x", "--checkpoint", checkpoint_folder, "--vqgan", renamed_folder, "--triplets", triplet_folder]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in [*arguments, "--out", tmp_path / "out"]])
    retokenize.main()
    old, new = (ChameleonWorldModelPipeline.from_pretrained(path) for path in (checkpoint_folder, tmp_path / "out"))
    pictures = load_triplets(shards_of(triplet_folder))["after"]
    known, codes = (pipe.encode_images(pictures[:2]) for pipe in (old, new))
    assert torch.equal(known, 31 - codes)

    seen = retokenize.predecessors(old.vqgan, new.vqgan, pictures) >= 0
    for name in ("world_model", "dynamics_model"):
        old_logits, new_logits = (image_logits(pipe, name, its[0]) for pipe, its in ((old, known), (new, codes)))
        assert old_logits.std() > 0
        assert torch.allclose(old_logits.flip(0)[seen[:32]], new_logits[:32][seen[:32]])
    assert new.config.forward_prompt == old.config.forward_prompt and new.config.image_size == 32


def test_fewer_codes_are_predicted_as_those_that_stay(checkpoint_folder, triplet_folder):
    pictures = load_triplets(shards_of(triplet_folder))["after"]
    old, pipe = (ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder) for _ in range(2))
    fewer = retokenize.retokenize(pipe, with_rows(old.vqgan, torch.arange(10, 26)), pictures)
    assert len(fewer.family.image_token_ids) == 16
    seen = retokenize.predecessors(old.vqgan, fewer.vqgan, pictures)
    assert seen.max() >= 16
    old_logits = image_logits(old, "world_model", seen.max().expand(16))
    new_logits = image_logits(fewer, "world_model", seen.argmax().expand(16))
    assert torch.allclose(new_logits[seen >= 0], old_logits[seen[seen >= 0]])


def test_a_tokenizer_of_another_grid_is_refused(checkpoint_folder, triplet_folder):
    pipe = ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder)
    pictures = load_triplets(shards_of(triplet_folder))["after"][:2]
    with pytest.raises(ValueError, match="makes 128 codes where the old makes 32"):
        retokenize.retokenize(pipe, build_vqgan(channels=(8, 8, 16), codes=32, size=32), pictures)
