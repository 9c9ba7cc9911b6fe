"""The sampler's pure functions, and the whole of it against transformers without any cache."""

import math
from functools import cache, partial

import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import DynamicCache

from bwm_pipelines.compilation import Compiled
from bwm_pipelines.families.chameleon import StockImageSteps, _layer
from bwm_pipelines.sampling import (
    BLOCK,
    Sampled,
    candidate_generators,
    candidate_uniforms,
    filter_logits,
    pick_codes,
    sample_codes,
)
from tests.tiny import build_pipeline, plain_logits, stock_prompt

BEFORE = torch.arange(16)
ACTION = "open the door"

logit_rows = st.lists(st.floats(-30, 30), min_size=1, max_size=20).map(
    lambda row: torch.tensor([row], dtype=torch.float64)
)


# --- Picking by inverse CDF ---


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows, uniform=st.floats(0, 1, exclude_max=True), removed=st.integers(0, 19))
def test_picked_code_holds_the_uniform_number_in_its_part_of_the_cdf(logits, uniform, removed):
    if removed < logits.shape[1] - 1:
        logits[0, removed] = -math.inf
    (code,) = pick_codes(logits, torch.tensor([uniform], dtype=torch.float64)).tolist()
    probabilities = logits[0].softmax(-1)
    above = probabilities[: code + 1].sum().item()
    assert probabilities[code] > 0
    assert above - probabilities[code].item() - 1e-12 <= uniform <= above + 1e-12


def test_largest_uniform_number_never_picks_a_code_of_no_probability():
    logits = torch.tensor([[0.0, 0.0, 0.0, -math.inf]], dtype=torch.float64)
    largest = torch.tensor([1.0], dtype=torch.float64).nextafter(torch.zeros(1, dtype=torch.float64))
    assert pick_codes(logits, largest).tolist() == [2]


def test_uniform_numbers_on_a_grid_give_the_probabilities():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    picked = pick_codes(logits.expand(10_000, -1), grid)
    torch.testing.assert_close(picked.bincount() / 10_000, logits.softmax(-1).float(), atol=1e-4, rtol=0)


# --- Filtering ---


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows, top_k=st.integers(1, 25))
def test_top_k_keeps_the_largest(logits, top_k):
    kept = filter_logits(logits, top_k=top_k).isfinite()[0]
    smallest_kept = logits[0].sort(descending=True).values[min(top_k, logits.shape[1]) - 1]
    assert kept.equal(logits[0] >= smallest_kept)


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows, top_p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_it(logits, top_p):
    kept = filter_logits(logits, top_p=top_p).isfinite()[0]
    probabilities = logits[0].softmax(-1)
    mass = probabilities[kept].sum().item()
    assert mass >= top_p - 1e-9
    assert mass - probabilities[kept].min().item() < top_p + 1e-9
    assert not kept.all() or len(kept) == kept.sum()
    if not kept.all():
        assert probabilities[kept].min() >= probabilities[~kept].max()


def test_no_filter_changes_nothing():
    logits = torch.randn(2, 8)
    assert filter_logits(logits, top_k=8, top_p=1.0).equal(logits)


# --- Seeds ---


def test_candidates_do_not_depend_on_their_number():
    few, many = (
        candidate_uniforms(candidate_generators(torch.Generator().manual_seed(7), k), num_tokens=33) for k in (3, 8)
    )
    assert few.equal(many[:3])
    assert len({row.sum().item() for row in many}) == 8


def test_inputs_of_a_batch_draw_differently_from_one_generator():
    generator = torch.Generator().manual_seed(7)
    first, second = (candidate_uniforms(candidate_generators(generator, 2), num_tokens=9) for _ in range(2))
    assert not first.equal(second)


def test_no_generator_means_the_global_seed():
    draws = []
    for _ in range(2):
        torch.manual_seed(11)
        draws.append(candidate_uniforms(candidate_generators(None, 2), num_tokens=9))
    assert draws[0].equal(draws[1])


# --- The whole sampler ---


def plain_greedy(pipe, guidance_scale: float) -> list[int]:
    """Greedy image tokens by a full forward pass for each, without any cache."""
    tokens = pipe.family.image_token_ids
    boi = torch.tensor([pipe.processor.image_start_token_id])
    conditional = torch.cat([stock_prompt(pipe, f"<image>Edit: {ACTION}", BEFORE), boi])
    unconditional = torch.cat([stock_prompt(pipe, "<image>Edit: ", BEFORE), boi])
    codes = []
    for _ in range(16):
        drawn = tokens[codes]
        logits, free = (
            plain_logits(pipe.world_model, torch.cat([p, drawn]))[-1, tokens] for p in (conditional, unconditional)
        )
        codes.append((free + guidance_scale * (logits - free)).argmax().item())
    return codes


def draw(pipe, uniforms: torch.Tensor, **options) -> Sampled:
    before = BEFORE.to(pipe.device)
    with torch.no_grad():
        return sample_codes(
            pipe.family,
            pipe.world_model,
            pipe.family.forward_prompt_ids(before, ACTION),
            uniforms=uniforms,
            unconditional_ids=pipe.family.forward_prompt_ids(before, ""),
            **options,
        )


def sample(pipe, uniforms: torch.Tensor, **options) -> torch.Tensor:
    return draw(pipe, uniforms, **options).codes


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0, 0.0])
@pytest.mark.parametrize("num_candidates", [1, 8])
def test_greedy_tokens_are_those_of_a_plain_forward(pipe, num_candidates, guidance_scale):
    codes = sample(pipe, torch.zeros(num_candidates, 16), temperature=0.0, guidance_scale=guidance_scale)
    assert codes.tolist() == [plain_greedy(pipe, guidance_scale)] * num_candidates


def test_guidance_matters(pipe):
    assert plain_greedy(pipe, 1.0) != plain_greedy(pipe, 3.0)


def test_sampled_tokens_are_the_inverse_cdf_of_a_plain_forward(pipe):
    uniforms = torch.rand(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    codes = sample(pipe, uniforms, temperature=0.7, top_k=12, top_p=0.9)
    prompt = pipe.family.forward_prompt_ids(BEFORE, ACTION)
    for row, row_uniforms in zip(codes, uniforms, strict=True):
        ids = torch.cat([prompt, pipe.family.image_token_ids[row[:-1]]])
        logits = plain_logits(pipe.world_model, ids)[-16:, pipe.family.image_token_ids].double()
        assert pick_codes(filter_logits(logits / 0.7, 12, 0.9), row_uniforms).equal(row)


@pytest.mark.parametrize("candidate_batch_size", [1, 3, 8, 100, None])
@pytest.mark.parametrize("num_candidates", [1, 5, 8])
def test_candidate_depends_on_no_other_and_on_no_batch_size(pipe, num_candidates, candidate_batch_size):
    uniforms = torch.rand(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    alone = torch.cat([sample(pipe, row[None]) for row in uniforms])
    codes = sample(pipe, uniforms[:num_candidates], candidate_batch_size=candidate_batch_size)
    assert codes.equal(alone[:num_candidates])
    assert len(alone.unique(dim=0)) == 8


@settings(max_examples=15, deadline=None)
@given(
    num_candidates=st.integers(1, 6),
    num_tokens=st.integers(1, 16),
    candidate_batch_size=st.integers(1, 7),
    guidance_scale=st.sampled_from([1.0, 2.5]),
    temperature=st.sampled_from([0.0, 0.8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_tokens_are_those_of_a_plain_forward_for_any_shape(
    pipe, num_candidates, num_tokens, candidate_batch_size, guidance_scale, temperature, seed
):
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(num_candidates, num_tokens, dtype=torch.float64, generator=generator)
    options = {"temperature": temperature, "guidance_scale": guidance_scale}
    codes = sample(pipe, uniforms, candidate_batch_size=candidate_batch_size, **options)
    assert codes.shape == uniforms.shape
    prompts = [pipe.family.forward_prompt_ids(BEFORE, action) for action in (ACTION, "")]
    for row, row_uniforms in zip(codes, uniforms, strict=True):
        drawn = pipe.family.image_token_ids[row[:-1]]
        logits, free = (
            plain_logits(pipe.world_model, torch.cat([prompt, drawn]))[-num_tokens:, pipe.family.image_token_ids]
            for prompt in prompts
        )
        guided = (free + guidance_scale * (logits - free)).double()
        expected = pick_codes(guided / temperature, row_uniforms) if temperature else guided.argmax(-1)
        assert expected.equal(row)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_model_offloaded_in_parts_gives_the_same_tokens(pipe, guidance_scale):
    """Weights that hooks bring one by one: the stock forward is used, one token a step."""
    uniforms = torch.rand(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    offloaded = build_pipeline()
    cpu_offload(offloaded.world_model, execution_device=torch.device("cpu"))
    steps = offloaded.family.continue_prompts(offloaded.world_model, [DynamicCache()], 1, 1)
    assert isinstance(steps, StockImageSteps)
    codes = sample(offloaded, uniforms, guidance_scale=guidance_scale, draft=BEFORE)
    assert codes.equal(sample(pipe, uniforms, guidance_scale=guidance_scale))


def test_adapter_of_the_world_model_works_and_changes_the_tokens(pipe):
    uniforms = torch.rand(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    adapted = build_pipeline()
    targets = ["q_proj", "down_proj", "lm_head"]
    adapted.world_model.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    codes = sample(adapted, uniforms)
    assert not codes.equal(sample(pipe, uniforms))
    prompt = adapted.family.forward_prompt_ids(BEFORE, ACTION)
    for row, row_uniforms in zip(codes, uniforms, strict=True):
        ids = torch.cat([prompt, adapted.family.image_token_ids[row[:-1]]])
        logits = plain_logits(adapted.world_model, ids)[-16:, adapted.family.image_token_ids].double()
        assert pick_codes(logits, row_uniforms).equal(row)


# --- Compiled ---


@pytest.fixture
def compile_with(monkeypatch):
    """Lets the step be compiled anew by a backend of `torch.compile`."""

    def install(backend):
        torch._dynamo.reset()
        monkeypatch.setattr("torch.compile", partial(torch.compile, backend=backend))
        monkeypatch.setattr("bwm_pipelines.families.chameleon._compiled_layer", cache(lambda: Compiled(_layer)))
        # The tokens of an image then take several windows.
        monkeypatch.setattr("bwm_pipelines.sampling.WINDOW", 4)

    return install


@pytest.fixture
def said(monkeypatch):
    """What is logged about compilation."""
    messages = []
    monkeypatch.setattr("bwm_pipelines.compilation.logger.warning", messages.append)
    return messages


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("draft", [None, BEFORE])
def test_compiled_tokens_are_those_of_the_eager_step(pipe, compile_with, said, guidance_scale, draft):
    """Traced and made functional as for every backend; those that write code take a minute."""
    compile_with("aot_eager")
    uniforms = torch.rand(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    options = {"guidance_scale": guidance_scale, "candidate_batch_size": 3, "draft": draft}
    assert sample(pipe, uniforms, compiled=True, **options).equal(sample(pipe, uniforms, **options))
    assert said == ["Compiling the sampling step; this first call takes a minute or so longer."]


def test_compilation_that_fails_is_reported_and_changes_nothing(pipe, compile_with, said):
    def no_compiler(*args):
        raise RuntimeError("no compiler found")

    compile_with(no_compiler)
    uniforms = torch.rand(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert sample(pipe, uniforms, compiled=True).equal(sample(pipe, uniforms))
    assert len(said) == 2
    assert "it runs uncompiled" in said[1] and "no compiler found" in said[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an Nvidia GPU")
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("drafted", [False, True])
def test_recorded_tokens_are_those_of_the_eager_step(guidance_scale, drafted, monkeypatch, said):
    monkeypatch.setattr("bwm_pipelines.sampling.WINDOW", 4)
    pipe = build_pipeline().to("cuda")
    uniforms = torch.rand(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    options = {"guidance_scale": guidance_scale, "candidate_batch_size": 3}
    options["draft"] = BEFORE.to("cuda") if drafted else None
    assert sample(pipe, uniforms, **options).equal(sample(pipe, uniforms, compiled=False, **options))
    assert not [message for message in said if "failed" in message]


# --- Reading the prompts ---


def test_the_prompts_are_read_once(pipe):
    lengths = []
    hook = pipe.world_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sample(pipe, torch.zeros(8, 16), candidate_batch_size=4, guidance_scale=2.0)
    hook.remove()
    assert lengths == [(1, len(pipe.family.forward_prompt_ids(BEFORE, action))) for action in (ACTION, "")]


def test_every_token_is_reported(pipe):
    seen = []
    codes = sample(
        pipe, torch.zeros(3, 16), candidate_batch_size=2, on_step=lambda part, new: seen.append((part.clone(), new))
    )
    assert [tuple(part.shape) for part, _ in seen] == [(k, t) for k in (2, 1) for t in range(1, 17)]
    assert {new for _, new in seen} == {1}
    assert torch.cat([seen[15][0], seen[31][0]]).equal(codes)


# --- Drafts ---


@settings(max_examples=30, deadline=None)
@given(
    num_candidates=st.integers(1, 5),
    num_tokens=st.integers(1, 16),
    candidate_batch_size=st.integers(1, 6),
    guidance_scale=st.sampled_from([1.0, 2.5]),
    block=st.integers(1, 20),
    wrong=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_draft_changes_no_token_whatever_of_it_is_right(
    pipe, num_candidates, num_tokens, candidate_batch_size, guidance_scale, block, wrong, seed
):
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(num_candidates, num_tokens, dtype=torch.float64, generator=generator)
    codes = sample(pipe, uniforms, guidance_scale=guidance_scale)
    is_wrong = torch.rand(num_tokens, generator=generator) < wrong
    draft = torch.where(is_wrong, (codes[0] + 1) % codes.max().clamp_min(1), codes[0])
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bwm_pipelines.sampling.BLOCK", block)
        drafted = sample(
            pipe,
            uniforms,
            draft=draft,
            guidance_scale=guidance_scale,
            candidate_batch_size=candidate_batch_size,
            on_step=lambda part, new: seen.append((part.clone(), new)),
        )
    assert drafted.equal(codes)
    ends = iter(codes.split(candidate_batch_size))
    rows = None
    for part, new in seen:
        if rows is None or new == part.shape[1]:
            rows, before = next(ends), 0
        assert part.shape[1] == before + new and part.equal(rows[:, : part.shape[1]])
        before = part.shape[1]


def test_right_guesses_save_steps(pipe):
    uniforms = torch.rand(1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    codes, new_tokens = sample(pipe, uniforms), []
    sample(pipe, uniforms, draft=codes[0], on_step=lambda _, new: new_tokens.append(new))
    assert new_tokens == [1, BLOCK, 15 - BLOCK]
    one_wrong = codes[0].clone()
    one_wrong[3] += 1
    new_tokens.clear()
    sample(pipe, uniforms, draft=one_wrong, on_step=lambda _, new: new_tokens.append(new))
    assert new_tokens[:2] == [1, 3]


def test_many_candidates_have_fewer_guesses_each(pipe, monkeypatch):
    monkeypatch.setattr("bwm_pipelines.sampling.STEP_TOKENS", 13)
    uniforms = torch.rand(1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).repeat(3, 1)
    codes, new_tokens = sample(pipe, uniforms), []
    assert sample(pipe, uniforms, draft=codes[0], on_step=lambda _, new: new_tokens.append(new)).equal(codes)
    assert new_tokens == [1, 4, 4, 4, 3]
    new_tokens.clear()
    sample(pipe, uniforms.repeat(5, 1), draft=codes[0], on_step=lambda _, new: new_tokens.append(new))
    assert new_tokens == [1] * 16


def test_the_pipeline_drafts_with_the_image_before(pipe, image, monkeypatch):
    drafts = []
    monkeypatch.setattr(
        "bwm_pipelines.pipelines.world_model.sample_codes",
        lambda *args, **options: drafts.append(options["draft"]) or sample_codes(*args, **options),
    )
    codes = pipe.encode_images(image)
    pipe(codes, ACTION)
    assert len(drafts) == 1 and drafts[0].equal(codes[0])


# --- Expected features ---


@pytest.mark.parametrize("options", [{"temperature": 0.7, "top_k": 12}, {"guidance_scale": 2.0}, {"draft": BEFORE}])
def test_features_are_the_mean_entry_of_what_each_code_was_drawn_from(pipe, options):
    codebook, tokens = pipe.vqgan.quantize.embedding.weight.detach(), pipe.family.image_token_ids
    uniforms = torch.rand(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    sampled = draw(pipe, uniforms, codebook=codebook, candidate_batch_size=2, **options)
    assert sampled.codes.equal(sample(pipe, uniforms, **options))
    scale = options.get("guidance_scale", 1.0)
    for codes, features in zip(sampled.codes, sampled.features, strict=True):
        logits, free = (
            plain_logits(
                pipe.world_model, torch.cat([pipe.family.forward_prompt_ids(BEFORE, words), tokens[codes[:-1]]])
            )[-16:, tokens]
            for words in (ACTION, "")
        )
        kept = filter_logits((free + scale * (logits - free)) / options.get("temperature", 1.0), options.get("top_k"))
        torch.testing.assert_close(features, kept.softmax(-1) @ codebook, atol=1e-5, rtol=1e-4)


def test_the_likeliest_code_is_its_own_mean(pipe):
    codebook = pipe.vqgan.quantize.embedding.weight.detach()
    sampled = draw(pipe, torch.zeros(1, 16), temperature=0.0, codebook=codebook)
    torch.testing.assert_close(sampled.features, codebook[sampled.codes])
