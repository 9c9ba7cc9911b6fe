"""Two adapters on one base compute what two whole models do, whatever happens in between."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import torch
from diffusers import PipelineQuantizationConfig
from safetensors.torch import load_file, save_file
from transformers import TorchAoConfig

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline, Interrupted

ACTION = "open the door"


def load(base, adapters, **options) -> ChameleonWorldModelPipeline:
    pipe = ChameleonWorldModelPipeline.from_pretrained(base, **adapters, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def adapted(base, adapters) -> ChameleonWorldModelPipeline:
    return load(base, adapters)


def imagine(pipe, image, **options):
    generator = torch.Generator().manual_seed(0)
    return pipe(image, ACTION, num_candidates=3, generator=generator, output_type="latent", **options)


def assert_same(pipe, reference, image) -> None:
    output, expected = imagine(pipe, image), imagine(reference, image)
    assert output.codes.equal(expected.codes)
    assert output.scores == pytest.approx(expected.scores, abs=1e-5)


def test_one_base_computes_what_two_models_do(adapted, merged, image):
    assert adapted.dynamics_model is adapted.world_model
    assert type(adapted.world_model) is type(merged.world_model)
    for _ in range(2):  # the second time starts from what the first one left
        assert_same(adapted, merged, image)


def test_adapters_differ_from_each_other_and_from_the_base(adapted, base, adapters, image):
    codes = [imagine(p, image).codes for p in (adapted, load(base, {}), load(base, {"cwm": adapters["cdm"]}))]
    assert not any(codes[i].equal(codes[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_verifier_shares_the_base(adapted, merged, image):
    verifier = DynamicsVerifierPipeline.from_pipe(adapted)
    verifier.set_progress_bar_config(disable=True)
    reference = DynamicsVerifierPipeline.from_pipe(merged)
    reference.set_progress_bar_config(disable=True)
    assert verifier.dynamics_model is adapted.world_model
    candidates = imagine(adapted, image).codes
    for _ in range(2):
        scores = verifier(image, candidates, ACTION).scores
        assert scores == pytest.approx(reference(image, candidates, ACTION).scores, abs=1e-5)
        named, expected = (p.name_action(image, candidates[0]) for p in (verifier, reference))
        assert (named.action, named.score) == (expected.action, pytest.approx(expected.score, abs=1e-5))
        explained, expected = (p.explain(image, candidates[0], ACTION) for p in (verifier, reference))
        assert explained.heatmap.allclose(expected.heatmap, atol=1e-5)
        assert_same(adapted, merged, image)


def test_verifier_inside_a_callback_leaves_the_world_model_as_it_was(adapted, merged, image):
    verifier = DynamicsVerifierPipeline.from_pipe(adapted)
    verifier.set_progress_bar_config(disable=True)
    pixels = imagine(merged, image).codes[:1]

    def verify(pipe, step, timestep, tensors):
        if step == 3:
            verifier(image, pixels, ACTION)

    assert imagine(adapted, image, callback_on_step_end=verify).codes.equal(imagine(merged, image).codes)


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt, ZeroDivisionError])
def test_switch_after_an_end_midway(adapted, merged, image, error):
    verifier = DynamicsVerifierPipeline.from_pipe(adapted)
    verifier.set_progress_bar_config(disable=True)

    def end(pipe, step, timestep, tensors):
        if error is not Interrupted:
            raise error
        pipe._interrupt = True

    before = adapted.world_model.active_adapters()
    with pytest.raises(error):
        imagine(adapted, image, callback_on_step_end=end)
    with pytest.raises(error):
        verifier(image, [image, image], ACTION, candidate_batch_size=1, callback_on_step_end=end)
    assert adapted.world_model.active_adapters() == before
    assert_same(adapted, merged, image)


def test_model_without_its_own_adapter_is_bare(base, adapters, image):
    output = imagine(load(base, {"cdm": adapters["cdm"]}), image)
    assert output.codes.equal(imagine(load(base, {}), image).codes[output.order])


def test_adapters_of_the_checkpoint_itself(base, adapters, merged, image, tmp_path):
    folder = Path(shutil.copytree(base, tmp_path / "checkpoint"))
    for name, adapter in adapters.items():
        shutil.copytree(adapter, folder / "adapters" / name)
    assert_same(load(folder, {}), merged, image)
    swapped = load(folder, {"cdm": adapters["cwm"]})
    assert imagine(swapped, image).scores != pytest.approx(imagine(merged, image).scores, abs=1e-3)


def test_saved_and_loaded_again(adapted, merged, base, image, tmp_path):
    adapted.save_pretrained(tmp_path)
    assert_same(adapted, merged, image)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapters", "model_index.json", "processor", "vqgan", "world_model",
    ]  # fmt: skip
    files = [folder / "world_model" / "model.safetensors" for folder in (tmp_path, base)]
    saved, original = map(load_file, files)
    assert saved.keys() == original.keys()
    assert all(saved[name].equal(original[name]) for name in saved)
    assert json.loads((tmp_path / "model_index.json").read_text())["dynamics_model"] == [None, None]
    assert_same(load(tmp_path, {}), merged, image)


def test_verifier_saved_and_loaded_again(base, adapters, merged, image, tmp_path):
    verifier = DynamicsVerifierPipeline.from_pretrained(base, cdm=adapters["cdm"])
    verifier.save_pretrained(tmp_path)
    assert (tmp_path / "adapters" / "cdm" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapters" / "cwm").exists()
    expected = DynamicsVerifierPipeline.from_pipe(merged)(image, image, ACTION).scores
    for pipe in (verifier, DynamicsVerifierPipeline.from_pretrained(tmp_path)):
        pipe.set_progress_bar_config(disable=True)
        assert pipe(image, image, ACTION).scores == pytest.approx(expected, abs=1e-5)


def test_shared_base_is_offloaded_once(adapted, merged, image):
    adapted.enable_model_cpu_offload(device="cpu")
    assert [hook.model for hook in adapted._all_hooks] == [adapted.vqgan, adapted.world_model]
    assert_same(adapted, merged, image)


def test_shared_base_is_offloaded_layer_by_layer_once(adapted, monkeypatch):
    offloaded = []
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, *_, **__: offloaded.append(model))
    adapted.enable_sequential_cpu_offload(device="cpu")
    assert sorted(map(id, offloaded)) == sorted(map(id, [adapted.vqgan, adapted.world_model]))


def test_from_pipe_keeps_dtypes(base, adapters):
    pipe = load(base, adapters, dtype=torch.bfloat16)
    verifier = DynamicsVerifierPipeline.from_pipe(pipe)
    assert verifier.dynamics_model.dtype == torch.bfloat16
    assert verifier.vqgan.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_and_device_map(base, adapters, image, dtype):
    pipe = load(base, adapters, dtype=dtype, device_map="cpu")
    assert {p.dtype for p in pipe.world_model.parameters()} == {dtype}
    if dtype == torch.bfloat16:
        assert len(imagine(pipe, image).scores) == 3


def test_quantized_base(base, adapters, merged, image):
    torchao = pytest.importorskip("torchao.quantization", reason="needs the extra `int8`")
    quantized = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    mapping = PipelineQuantizationConfig(quant_mapping={"world_model": quantized})
    pipe = load(base, adapters, quantization_config=mapping)
    assert pipe.dynamics_model is pipe.world_model
    assert type(pipe.world_model.model.layers[0].mlp.gate_proj.weight).__module__.startswith("torchao")
    codes = imagine(merged, image).codes
    verifiers = [DynamicsVerifierPipeline.from_pipe(p) for p in (pipe, merged)]
    scores, expected = (verifier(image, codes, ACTION).scores for verifier in verifiers)
    assert scores == pytest.approx(expected, abs=0.1)


def refusal(base, kind=ValueError, **adapters) -> str:
    with pytest.raises(kind) as error:
        ChameleonWorldModelPipeline.from_pretrained(base, **adapters)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_adapter_of_another_base(base, adapters, tmp_path):
    folder = Path(shutil.copytree(adapters["cdm"], tmp_path / "cdm"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["to_q"]}))
    assert refusal(base, cdm=folder).startswith(f"`cdm`: {folder} cannot be put onto this base")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    assert refusal(base, cdm=folder).startswith("`cdm`: ")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "k_proj"]}))
    assert "of " + str(folder) in refusal(base, cdm=folder)


def test_adapter_with_a_tensor_missing_or_not_finite(base, adapters, tmp_path):
    folder = Path(shutil.copytree(adapters["cwm"], tmp_path / "cwm"))
    tensors = load_file(folder / "adapter_model.safetensors")
    name = min(tensors)
    save_file(tensors | {name: tensors[name] * torch.nan}, folder / "adapter_model.safetensors")
    assert "holds NaN or infinity" in refusal(base, cwm=folder)
    del tensors[name]
    save_file(tensors, folder / "adapter_model.safetensors")
    assert refusal(base, cwm=folder).startswith("`cwm`: tensor ")


def test_adapter_that_is_none(base, tmp_path):
    assert "has no adapter_config.json" in refusal(base, cwm=tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert "has no adapter_model.safetensors" in refusal(base, cwm=tmp_path)


def test_adapter_for_a_model_that_is_not_loaded(base, adapters):
    message = refusal(base, cdm=adapters["cdm"], dynamics_model=None)
    assert message == "`cdm` was given, but this pipeline loads no `dynamics_model` to put it on."


def test_without_peft(base, adapters):
    code = f"""
import sys
sys.modules["peft"] = None
from bwm_pipelines import ChameleonWorldModelPipeline
ChameleonWorldModelPipeline.from_pretrained({str(base)!r})
try:
    ChameleonWorldModelPipeline.from_pretrained({str(base)!r}, cdm={str(adapters["cdm"])!r})
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "`cdm`: adapters need peft; install it with: pip install 'peft>=0.20'\n"
