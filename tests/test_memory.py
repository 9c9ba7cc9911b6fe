"""Bytes that are computed beforehand against the bytes that tensors then really hold."""

from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import ChameleonForConditionalGeneration

from bwm_pipelines import memory
from bwm_pipelines.memory import (
    GIB,
    USABLE,
    Need,
    fitting_batch_size,
    kv_bytes_per_token,
    planned_weight_bytes,
    weight_bytes,
)
from bwm_pipelines.sampling import BLOCK, sample_codes
from bwm_pipelines.verification import action_log_probs
from tests.benchmarks.memory import chameleon_7b, chameleon_vqgan, table
from tests.peak_memory import PeakMemory
from tests.tiny import NUM_CODES, build_model

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_hidden_layers": 3}
KV_HEADS = [4, 2]  # as many as heads of queries, or groups of queries that share one
DTYPES = [torch.float32, torch.bfloat16]


def peak(run: Callable[[], object]) -> int:
    with torch.no_grad(), PeakMemory() as held:
        run()
    return held.peak


def model_of(pipe, kv_heads: int, dtype: torch.dtype) -> ChameleonForConditionalGeneration:
    return build_model(pipe.processor.tokenizer, seed=0, num_key_value_heads=kv_heads, **SIZES).to(dtype)


def score(model, rows: int, shared: int, own: int, action: int) -> None:
    """Verify candidates whose prompts share so many tokens, each with so many of its own, the action's among them."""

    def step(ids, cache, num_logits):
        outputs = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=num_logits)
        return outputs.logits, outputs.past_key_values

    prompts = torch.ones(rows, shared + own - action + 1, dtype=torch.int64)
    prompts[:, shared] = torch.arange(rows)
    action_log_probs(step, prompts, torch.ones(action, dtype=torch.int64))


# --- Estimates ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_heads", KV_HEADS)
def test_keys_and_values(pipe, kv_heads, dtype):
    model = model_of(pipe, kv_heads, dtype)
    cache = model(torch.ones(1, 7, dtype=torch.int64), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 7 * kv_bytes_per_token(model.config, dtype)


def test_keys_and_values_of_chameleon_7b_take_half_a_mebibyte_a_token():
    assert kv_bytes_per_token(chameleon_7b(), torch.bfloat16) == 2**19


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize(("shared", "own"), [(200, 220), (60, 300), (300, 40)])
@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.bfloat16), (9, torch.float32)])
def test_verification(pipe, kv_heads, shared, own, rows, dtype):
    model = model_of(pipe, kv_heads, dtype)
    need = memory.verification_need(model.config, dtype, shared_tokens=shared, own_tokens=own, action_tokens=7)
    held = peak(lambda: score(model, rows, shared, own, 7))
    assert held * 0.95 < need.total(rows) < held * 1.1


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("block", [1, BLOCK])
@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.float32), (6, torch.bfloat16)])
def test_sampling(pipe, kv_heads, guided, rows, dtype, block):
    model = model_of(pipe, kv_heads, dtype)
    need = memory.sampling_need(
        model.config, dtype, prefix_tokens=90, new_tokens=50, num_codes=NUM_CODES, guided=guided, block=block
    )
    prompt, uniforms = torch.ones(90, dtype=torch.int64), torch.full((rows, 50), 0.5, dtype=torch.float64)
    options = {"guidance_scale": 2.0, "unconditional_ids": prompt[:-3]} if guided else {}
    if block > 1:
        options["draft"] = torch.zeros(50, dtype=torch.int64)
    held = peak(lambda: sample_codes(pipe.family, model, prompt, uniforms=uniforms, **options))
    assert held * 0.8 < need.total(rows) < held * 1.2


@pytest.mark.parametrize("rows", [1, 9])
def test_verification_at_the_size_of_chameleon_7b(rows, monkeypatch):
    """Two of its layers, without memory: what a layer holds passes, only the prefix stays for every layer."""
    config = chameleon_7b()
    config.num_hidden_layers = 2
    need = memory.verification_need(config, torch.bfloat16, shared_tokens=1028, own_tokens=1080, action_tokens=16)
    monkeypatch.setattr("bwm_pipelines.verification._common_prefix_length", lambda prompts: 1028)
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = ChameleonForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        held = peak(lambda: score(model, rows, 1028, 1080, 16))
    assert held * 0.95 < need.total(rows) < held * 1.05


@pytest.mark.parametrize("count", [1, 3])
def test_images(pipe, count):
    need = memory.image_need(pipe.vqgan, 16)
    codes = torch.zeros(count, 16, dtype=torch.int64)
    decoding = peak(lambda: pipe.family.decode_image(codes))
    encoding = peak(lambda: pipe.family.encode_image(torch.zeros(count, 3, 16, 16)))
    assert max(decoding, encoding) * 0.8 < need.total(count) < max(decoding, encoding) * 1.2


def test_images_at_the_size_of_chameleon():
    vqgan = chameleon_vqgan()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        fake = type(vqgan).from_config(vqgan.config)
        held = peak(lambda: fake.encode(torch.zeros(2, 3, 512, 512)))
    assert held * 0.95 < memory.image_need(vqgan, 512).total(2) < held * 1.05


# --- Weights ---


def test_planned_weights_are_the_real_ones(pipe):
    model = pipe.world_model
    assert planned_weight_bytes(model.config, torch.float32) == weight_bytes(model)


def test_shared_base_counts_once(pipe):
    base, other = pipe.world_model, pipe.dynamics_model
    shared = nn.ModuleDict({"base": base, "adapter": nn.Linear(3, 5)})
    assert weight_bytes(base, shared) == weight_bytes(base) + 20 * 4
    assert weight_bytes(base, base) == weight_bytes(base)
    assert weight_bytes(base, other) == 2 * weight_bytes(base)


def test_only_weights_that_are_elsewhere_have_to_be_moved(pipe):
    assert weight_bytes(pipe.vqgan, missing_from=CPU) == 0
    assert weight_bytes(pipe.vqgan, missing_from=torch.device("cuda")) == weight_bytes(pipe.vqgan) > 0


# --- How many fit ---


@pytest.fixture
def free(monkeypatch) -> Callable[[int], None]:
    """Let a machine have so many bytes that may be used."""

    def set_free(size: int) -> None:
        available = SimpleNamespace(available=int(size / USABLE) + 1)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: available)

    return set_free


@pytest.mark.parametrize(
    ("size", "given", "weights", "expected"),
    [(2000, None, 0, 8), (480, None, 0, 4), (480, None, 200, 2), (480, 3, 0, 3), (2000, 20, 0, 8), (180, None, 0, 1)],
)
def test_as_many_as_fit(free, size, given, weights, expected):
    free(size)
    need = Need(once=80, prefill=70, each=100)
    assert fitting_batch_size(need, 8, given, device=CPU, weights=weights) == expected


def test_all_where_nobody_knows_what_is_free():
    assert fitting_batch_size(Need(0, 0, 2**60), 8, None, device=torch.device("mps")) == 8


@pytest.mark.parametrize(
    ("size", "given", "message"),
    [
        (4 * GIB, 8, "`candidate_batch_size` 8 needs 10 GiB of which 4.44 GiB are free on cpu; set it to 3 or leave"),
        (
            GIB // 2,
            None,
            "`candidate_batch_size`: even one candidate needs 2.22 GiB of which 0.556 GiB are free on cpu",
        ),
        (GIB // 2, 8, "`candidate_batch_size`: even one candidate needs 2.22 GiB of which 0.556 GiB are free on cpu"),
        (int(1.5 * GIB), None, "`candidate_batch_size`: even one candidate needs 2.22 GiB"),
    ],
)
def test_what_cannot_fit_is_refused(free, size, given, message):
    free(size)
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        fitting_batch_size(Need(once=GIB, prefill=GIB, each=GIB), 8, given, device=CPU)


# --- The pipelines ---


def test_pipelines_run_as_many_as_fit_and_find_the_same(pipe, verifier, image, free):
    arguments = {"image": image, "action": "open the door", "num_candidates": 24, "temperature": 0}
    calls = []
    together = pipe(**arguments, callback_on_step_end=lambda *given: calls.append(given[1]))
    ranked = verifier(image, together.images, "open the door")
    assert max(calls) == 15
    sampling = memory.sampling_need(
        pipe.world_model.config,
        torch.float32,
        prefix_tokens=40,
        new_tokens=16,
        num_codes=NUM_CODES,
        guided=False,
        block=BLOCK,
    )
    free(max(sampling.total(2), memory.image_need(pipe.vqgan, 16).total(1)))
    apart = pipe(**arguments, callback_on_step_end=lambda *given: calls.append(given[1]))
    assert max(calls) > 32
    assert together.codes.equal(apart.codes)
    assert together.scores == pytest.approx(apart.scores, abs=1e-5)
    assert verifier(image, together.images, "open the door").scores == pytest.approx(ranked.scores, abs=1e-5)


def test_pipelines_refuse_before_anything_is_sampled(pipe, verifier, image, free):
    codes = pipe.encode_images(image)
    free(1000)
    with pytest.raises(ValueError, match="even one candidate needs"):
        pipe(codes, "open the door", callback_on_step_end=lambda *_: pytest.fail("a token was sampled"))
    with pytest.raises(ValueError, match="even one candidate needs"):
        verifier(codes[0], codes, "open the door")


def test_table_grows_with_candidates_and_shrinks_with_int8_and_a_shared_base():
    rows = [line.split("|")[1:-1] for line in table((1, 8)).splitlines()[2:]]
    gib = {tuple(cell.strip() for cell in row[:3]): [float(cell) for cell in row[3:]] for row in rows}
    assert all(one < eight for one, eight in gib.values())
    for models, weights, guidance in gib:
        assert gib[models, "int8", guidance][0] < gib[models, "bf16", guidance][0]
        assert gib["one base, two adapters", weights, guidance][0] < gib["two models", weights, guidance][0]
    two_models_in_bf16 = 2 * 2 * 7.0e9 / GIB
    assert two_models_in_bf16 < gib["two models", "bf16", "no"][0] < two_models_in_bf16 * 1.1
