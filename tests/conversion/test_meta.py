"""Meta's layout: logits and images are those of references that know neither transformers nor diffusers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from bwm_pipelines.conversion import convert
from bwm_pipelines.families.chameleon import FORWARD_PROMPT, image_token_name
from tests.conversion.checkpoints import DDCONFIG, IMAGE_SIZE, NUM_CODES, text_tokenizer
from tests.conversion.conftest import PART_SIZE, build_meta
from tests.conversion.reference import decode, encode, transformer_logits
from tests.tiny import plain_logits


def random_ids(count: int = 40) -> torch.Tensor:
    return torch.randint(len(text_tokenizer()["model"]["vocab"]), (count,), generator=torch.Generator().manual_seed(4))


def assert_same_logits(model, ranks, params) -> None:
    ids = random_ids()
    expected = transformer_logits(ranks, params, ids.tolist())
    found = plain_logits(model.float(), ids)
    assert (found[:, : expected.shape[1]] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_logits_are_those_of_the_reference(meta, converted):
    pipe = ChameleonWorldModelPipeline.from_pretrained(converted)
    assert pipe.world_model.dtype == torch.bfloat16 and pipe.vqgan.dtype == torch.float32
    assert_same_logits(pipe.world_model, meta.ranks, meta.params)


@pytest.mark.parametrize(
    ("num_ranks", "params"),
    [(2, {"swin_norm": True, "n_kv_heads": 2}), (4, {}), (1, {"n_kv_heads": 2})],
    ids=["like the 30B", "four ranks", "grouped queries"],
)
def test_logits_of_other_shapes(tmp_path, num_ranks, params):
    meta = build_meta(tmp_path / "meta", num_ranks, **params)
    convert(meta.folder, tmp_path / "out", part_size=PART_SIZE)
    model = ChameleonWorldModelPipeline.from_pretrained(tmp_path / "out").world_model
    assert model.config.swin_norm == meta.params["swin_norm"] and model.config.model_parallel_size == num_ranks
    assert_same_logits(model, meta.ranks, meta.params)


def test_codes_and_images_are_those_of_the_reference(meta, converted):
    family = ChameleonWorldModelPipeline.from_pretrained(converted).family
    for seed in range(3):
        pixels = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        codes = encode(meta.vqgan, DDCONFIG, pixels)
        assert len(codes.unique()) > 4
        assert family.encode_image(pixels)[0].equal(codes)
        expected = decode(meta.vqgan, DDCONFIG, codes).clamp(-1, 1)
        torch.testing.assert_close(family.decode_image(codes[None]), expected, atol=1e-4, rtol=0)


def test_files_of_the_image_tokenizer_are_one_to_one(meta, converted):
    written = {}
    for file in (converted / "vqgan").glob("*.safetensors"):
        written |= load_file(file)
    assert len(written) == len(meta.vqgan)
    assert sum(tensor.numel() for tensor in written.values()) == sum(tensor.numel() for tensor in meta.vqgan.values())


def test_text_is_split_as_by_the_source(converted):
    content = text_tokenizer()
    source = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(content))
    processor = ChameleonWorldModelPipeline.from_pretrained(converted).processor
    bos = content["model"]["vocab"]["<s>"]
    for text in ("open the door", "push the red cube to the left,  twice", "Türöffner 7"):
        assert processor.tokenizer(text).input_ids == [bos, *source(text).input_ids]
    assert processor.image_token_id == content["model"]["vocab"]["<reserved08707>"]
    assert processor.tokenizer.sep_token == "<reserved08706>"


def _tokenizer(content):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(content))


def test_pipeline_imagines_an_image(converted, image):
    pipe = ChameleonWorldModelPipeline.from_pretrained(converted)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(image, "open the door", num_candidates=2, generator=torch.Generator().manual_seed(0))
    assert [picture.size for picture in output.images] == [(IMAGE_SIZE, IMAGE_SIZE)] * 2
    assert output.codes.max() < NUM_CODES and output.scores is None
    vocabulary = pipe.processor.tokenizer.get_vocab()
    assert pipe.family.image_token_ids.tolist() == [vocabulary[image_token_name(code)] for code in range(NUM_CODES)]


def test_prompts_and_sampling_defaults_are_in_the_config(meta, converted, tmp_path):
    index = json.loads((converted / "model_index.json").read_text())
    assert index["forward_prompt"] == FORWARD_PROMPT and index["temperature"] == 1.0
    assert index["image_size"] == IMAGE_SIZE and index["dynamics_model"] == [None, None]
    convert(meta.folder, tmp_path / "out", forward_prompt="{action}<image>", temperature=0.5)
    config = ChameleonWorldModelPipeline.from_pretrained(tmp_path / "out").config
    assert config["forward_prompt"] == "{action}<image>" and config["temperature"] == 0.5


def test_notice_names_the_licence(converted):
    notice = (converted / "NOTICE").read_text()
    assert notice.startswith(
        "Chameleon is licensed under the Chameleon Research License, Copyright (c) Meta Platforms"
    )


def test_model_can_be_the_dynamics_model(meta, tmp_path):
    convert(meta.folder, tmp_path / "out", role="dynamics", part_size=PART_SIZE)
    verifier = DynamicsVerifierPipeline.from_pretrained(tmp_path / "out")
    assert_same_logits(verifier.dynamics_model, meta.ranks, meta.params)


def test_one_model_can_be_both(meta, tmp_path):
    convert(meta.folder, tmp_path / "out", role="both", part_size=PART_SIZE)
    files = sorted((tmp_path / "out" / "world_model").iterdir())
    assert len(files) > 3
    assert all(file.samefile(tmp_path / "out" / "dynamics_model" / file.name) for file in files)
    pipe = ChameleonWorldModelPipeline.from_pretrained(tmp_path / "out")
    assert_same_logits(pipe.dynamics_model, meta.ranks, meta.params)


def test_two_models_are_put_side_by_side(meta, tmp_path):
    other = build_meta(tmp_path / "other", seed=9)
    convert(meta.folder, tmp_path / "out", dynamics=other.folder, part_size=PART_SIZE)
    pipe = ChameleonWorldModelPipeline.from_pretrained(tmp_path / "out")
    assert_same_logits(pipe.world_model, meta.ranks, meta.params)
    assert_same_logits(pipe.dynamics_model, other.ranks, other.params)


def test_rotary_frequencies_may_be_empty_as_in_anole(meta, tmp_path):
    folder = tmp_path / "anole"
    shutil.copytree(meta.folder, folder)
    torch.save(meta.ranks[0] | {"rope.freqs": None}, folder / "models" / "7b" / "consolidated.pth")
    convert(folder / "models" / "7b", tmp_path / "out")  # the tokenizer is found two folders above
    model = ChameleonWorldModelPipeline.from_pretrained(tmp_path / "out").world_model
    assert_same_logits(model, meta.ranks, meta.params)
