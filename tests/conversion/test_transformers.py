"""transformers' layout, with and without the image decoder."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.conversion import convert
from tests.conversion.checkpoints import (
    DDCONFIG,
    IMAGE_SIZE,
    stock_model,
    vqgan_state,
    write_transformers,
    write_vqgan,
)
from tests.conversion.conftest import PART_SIZE
from tests.conversion.reference import decode, encode
from tests.tiny import plain_logits


@pytest.fixture(scope="module")
def model():
    return stock_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """As the community's conversion of Anole: the decoder in the model's own files."""
    return write_transformers(tmp_path_factory.mktemp("transformers") / "anole", model, decoder=True)


def assert_same(pipe, model) -> None:
    ids = torch.arange(40) % model.config.vocab_size
    torch.testing.assert_close(plain_logits(pipe.world_model.float(), ids), plain_logits(model.float(), ids))


def assert_same_images(family, atol: float = 1e-4) -> None:
    pixels = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = encode(vqgan_state(), DDCONFIG, pixels)
    assert family.encode_image(pixels)[0].equal(codes)
    torch.testing.assert_close(
        family.decode_image(codes[None]), decode(vqgan_state(), DDCONFIG, codes).clamp(-1, 1), atol=atol, rtol=0
    )


def test_decoder_among_the_models_own_tensors(folder, model, tmp_path):
    assert len(list(folder.glob("*.safetensors"))) > 3
    report = convert(folder, tmp_path / "out", part_size=PART_SIZE)
    assert report["code_agreement"] == 1 and report["world_model"]["max_logit_difference"] < 1e-5
    pipe = ChameleonWorldModelPipeline.from_pretrained(tmp_path / "out")
    assert_same(pipe, model)
    assert_same_images(pipe.family)
    assert not any("decoder" in name for name in pipe.world_model.state_dict())


def test_decoder_is_attached_from_a_file(model, tmp_path):
    folder = write_transformers(tmp_path / "chameleon", model, decoder=False)
    with pytest.raises(ValueError, match="^`vqgan` is needed: .* has no image decoder.*GAIR/Anole-7b-v0.1"):
        convert(folder, tmp_path / "out")
    convert(folder, tmp_path / "out", vqgan=write_vqgan(tmp_path / "tokenizer", vqgan_state()), part_size=PART_SIZE)
    pipe = ChameleonWorldModelPipeline.from_pretrained(tmp_path / "out")
    assert_same(pipe, model)
    assert_same_images(pipe.family)


def test_half_precision_keeps_its_type_and_gets_the_exact_image_tokenizer(tmp_path):
    model = stock_model(dtype=torch.bfloat16)
    folder = write_transformers(tmp_path / "anole", model, decoder=True)
    assert convert(folder, tmp_path / "rounded", part_size=PART_SIZE)["vqgan_dtype"] == "bfloat16"
    vqgan = write_vqgan(tmp_path / "tokenizer", vqgan_state())
    assert convert(folder, tmp_path / "exact", vqgan=vqgan, part_size=PART_SIZE)["vqgan_dtype"] == "float32"
    rounded, exact = (ChameleonWorldModelPipeline.from_pretrained(tmp_path / name) for name in ("rounded", "exact"))
    assert rounded.world_model.dtype == exact.world_model.dtype == torch.bfloat16
    assert rounded.vqgan.dtype == exact.vqgan.dtype == torch.float32
    assert_same(exact, model)
    assert_same_images(exact.family)
    with pytest.raises(AssertionError):
        assert_same_images(rounded.family)


def test_image_tokenizer_of_another_checkpoint(folder, tmp_path):
    other = write_vqgan(tmp_path / "tokenizer", vqgan_state(seed=8))
    with pytest.raises(ValueError, match="^`vqgan` .* is another image tokenizer than that of `source`"):
        convert(folder, tmp_path / "out", vqgan=other)


def test_older_files_of_torch(model, tmp_path):
    folder = write_transformers(tmp_path / "old", model, decoder=True, max_shard_size="1GB")
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    convert(folder, tmp_path / "out", part_size=PART_SIZE)
    assert_same(ChameleonWorldModelPipeline.from_pretrained(tmp_path / "out"), model)


def test_fork_with_queries_in_another_order(model, tmp_path):
    folder = write_transformers(tmp_path / "fork", model, decoder=True, max_shard_size="1GB")
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if "q_norm" in name or "k_norm" in name]:
        state[name] = state[name][0].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="[qk]_norm.weight of .* has one dimension.*GAIR's old fork"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokenizer_of_another_model(model, tmp_path):
    folder = write_transformers(tmp_path / "mixed", model, decoder=True)
    config = json.loads((folder / "config.json").read_text())
    config["vocabulary_map"]["IMGIMGAZ"], config["vocabulary_map"]["IMGIMGBZ"] = 5, 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not have the tokens of config.json"):
        convert(folder, tmp_path / "out")
