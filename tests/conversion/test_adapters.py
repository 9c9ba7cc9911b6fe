"""PEFT adapters, trained on transformers' modules or on Meta's."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from bwm_pipelines.adapters import adapter_of
from bwm_pipelines.conversion import convert
from tests.conversion.checkpoints import stock_model, write_transformers
from tests.conversion.conftest import PART_SIZE
from tests.conversion.reference import transformer_logits
from tests.tiny import plain_logits

peft = pytest.importorskip("peft")

RANK, ALPHA = 4, 8


def write_adapter(folder, seed: int, model=None, **options) -> tuple:
    """An adapter with random weights on transformers' model; returns its folder and the model with it."""
    settings = {
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"],
    } | options
    model = peft.get_peft_model(model or stock_model(), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_transformers(tmp_path_factory.mktemp("base") / "anole", stock_model(), decoder=True)


def logits_with(out, name, ids):
    model = ChameleonForConditionalGeneration.from_pretrained(out / "world_model", dtype=torch.float32)
    plain = plain_logits(model, ids)
    model.load_adapter(str(out / "adapters" / name), adapter_name=name)
    return plain_logits(model, ids), plain


def test_two_adapters_on_one_base(base, tmp_path):
    cwm, with_cwm = write_adapter(tmp_path / "cwm", seed=1)
    cdm, with_cdm = write_adapter(tmp_path / "cdm", seed=2, r=2)
    report = convert(cwm, tmp_path / "out", dynamics=cdm, base=base, part_size=PART_SIZE)
    assert report["components"] == ["world_model", "adapters/cwm", "adapters/cdm"]
    pipe = ChameleonWorldModelPipeline.from_pretrained(tmp_path / "out")
    assert pipe.dynamics_model is pipe.world_model
    ids = torch.arange(5, 45)
    found = []
    for component, model in (("world_model", with_cwm), ("dynamics_model", with_cdm)):
        with adapter_of(component, pipe.world_model):
            found.append(plain_logits(pipe.world_model, ids))
        torch.testing.assert_close(found[-1], plain_logits(model.base_model.model, ids))
    assert (found[0] - found[1]).abs().max() > 0.1


def test_dynamics_adapter_alone(base, tmp_path):
    cdm, model = write_adapter(tmp_path / "cdm", seed=2)
    report = convert(cdm, tmp_path / "out", role="dynamics", base=base, part_size=PART_SIZE)
    assert report["components"] == ["world_model", "adapters/cdm"]
    verifier = DynamicsVerifierPipeline.from_pretrained(tmp_path / "out")
    ids = torch.arange(5, 45)
    torch.testing.assert_close(plain_logits(verifier.dynamics_model, ids), plain_logits(model.base_model.model, ids))


@pytest.mark.parametrize("kind", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens", "q_proj"]}])
def test_embeddings_in_an_adapter(base, tmp_path, kind):
    cwm, model = write_adapter(tmp_path / "cwm", seed=3, **kind)
    convert(cwm, tmp_path / "out", base=base, part_size=PART_SIZE)
    ids = torch.arange(5, 45)
    torch.testing.assert_close(logits_with(tmp_path / "out", "cwm", ids)[0], plain_logits(model.base_model.model, ids))


def test_adapter_on_metas_modules(meta, tmp_path):
    """Its rows must be reordered as those of the weights that it is added to."""
    modules = ["attention.wq", "attention.wk", "attention.wo", "feed_forward.w1"]
    generator = torch.Generator().manual_seed(6)
    tensors, merged = {}, {name: value.float() for name, value in meta.ranks[0].items()}
    for layer in range(meta.params["n_layers"]):
        for module in modules:
            name = f"layers.{layer}.{module}"
            outputs, inputs = merged[f"{name}.weight"].shape
            a = 0.2 * torch.randn(RANK, inputs, generator=generator)
            b = 0.2 * torch.randn(outputs, RANK, generator=generator)
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            merged[f"{name}.weight"] += ALPHA / RANK * b @ a
    (tmp_path / "cwm").mkdir()
    save_file(tensors, tmp_path / "cwm" / "adapter_model.safetensors", metadata={"format": "pt"})
    names = [module.rpartition(".")[2] for module in modules]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names).to_dict() | {"target_modules": names}
    (tmp_path / "cwm" / "adapter_config.json").write_text(json.dumps(config))
    convert(tmp_path / "cwm", tmp_path / "out", base=meta.folder, part_size=PART_SIZE)
    ids = torch.arange(5, 45)
    found, plain = logits_with(tmp_path / "out", "cwm", ids)
    expected = transformer_logits([merged], meta.params, ids.tolist())
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max() < (found - plain).abs().max()


def test_older_adapter_files(base, tmp_path):
    cwm, model = write_adapter(tmp_path / "cwm", seed=1)
    torch.save(load_file(cwm / "adapter_model.safetensors"), cwm / "adapter_model.bin")
    (cwm / "adapter_model.safetensors").unlink()
    convert(cwm, tmp_path / "out", base=base, part_size=PART_SIZE)
    ids = torch.arange(5, 45)
    torch.testing.assert_close(logits_with(tmp_path / "out", "cwm", ids)[0], plain_logits(model.base_model.model, ids))


def refusal(*args, **kwargs) -> str:
    with pytest.raises(ValueError) as error:
        convert(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_base_that_is_missing(tmp_path):
    cwm, _ = write_adapter(tmp_path / "cwm", seed=1)
    config = json.loads((cwm / "adapter_config.json").read_text())
    (cwm / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "leloy/Anole-7b-v0.1-hf"})
    )
    assert "trained on 'leloy/Anole-7b-v0.1-hf'; give the folder of that model" in refusal(cwm, tmp_path / "out")


def test_adapter_of_another_base(meta, tmp_path):
    other = stock_model()
    other.model.layers = other.model.layers[:1]
    cwm, _ = write_adapter(tmp_path / "cwm", seed=1, model=other)
    assert "does not fill" in refusal(cwm, tmp_path / "out", base=meta.folder)


def test_adapter_that_lacks_a_tensor(base, tmp_path):
    cwm, _ = write_adapter(tmp_path / "cwm", seed=1)
    tensors = load_file(cwm / "adapter_model.safetensors")
    removed = min(tensors)
    save_file({name: value for name, value in tensors.items() if name != removed}, cwm / "adapter_model.safetensors")
    assert f"does not fill {removed}" in refusal(cwm, tmp_path / "out", base=base)


def test_adapter_of_a_kind_that_does_not_load(base, tmp_path):
    cwm, _ = write_adapter(tmp_path / "cwm", seed=1, use_dora=True)
    assert "is a DoRA adapter" in refusal(cwm, tmp_path / "out", base=base)


def test_adapter_and_whole_model_do_not_mix(base, tmp_path):
    cdm, _ = write_adapter(tmp_path / "cdm", seed=1)
    assert "both be adapters of one base" in refusal(base, tmp_path / "out", dynamics=cdm)
    assert "`role` is 'both'" in refusal(cdm, tmp_path / "out", role="both", base=base)
    assert "`base` is for adapters" in refusal(base, tmp_path / "out", base=base)
