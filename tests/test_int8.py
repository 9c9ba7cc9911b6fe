"""int8 weights through torchao: what a user loads, what it holds, and that it still ranks."""

import pytest
import torch
from diffusers import PipelineQuantizationConfig
from transformers import TorchAoConfig

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from bwm_pipelines.memory import planned_weight_bytes, weight_bytes

quantization = pytest.importorskip("torchao.quantization", reason="needs the extra `int8`")

ACTION = "open the door"


@pytest.fixture(scope="module")
def int8(checkpoint) -> ChameleonWorldModelPipeline:
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    models = PipelineQuantizationConfig(quant_mapping={"world_model": config, "dynamics_model": config})
    pipe = ChameleonWorldModelPipeline.from_pretrained(checkpoint, quantization_config=models)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_weights_take_what_was_planned(pipe, int8):
    planned = planned_weight_bytes(pipe.world_model.config, torch.float32, int8=True)
    assert weight_bytes(int8.world_model) == planned < weight_bytes(pipe.world_model)


def test_image_tokenizer_stays_as_it_is(pipe, int8, image):
    assert int8.encode_images(image).equal(pipe.encode_images(image))


def test_samples(int8, image):
    output = int8(image, ACTION, num_candidates=2, generator=torch.Generator().manual_seed(0), guidance_scale=2.0)
    assert len(output.images) == 2 and len(set(output.scores)) == 2


def test_scores_are_those_of_full_precision_but_for_rounding(verifier, int8, image):
    codes = torch.randint(32, (8, 16), generator=torch.Generator().manual_seed(0))
    exact = verifier(image, codes, ACTION)
    rounded = DynamicsVerifierPipeline.from_pipe(int8)(image, codes, ACTION)
    moved = max(abs(a - b) for a, b in zip(exact.scores, rounded.scores, strict=True))
    assert 0 < moved < (max(exact.scores) - min(exact.scores)) / 10
