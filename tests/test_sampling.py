"""The sampler's pure functions, and the whole of it against transformers without any cache."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bwm_pipelines.sampling import (
    candidate_generators,
    candidate_uniforms,
    filter_logits,
    pick_codes,
    sample_codes,
)
from tests.tiny import plain_logits, stock_prompt

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


def sample(pipe, uniforms: torch.Tensor, **options) -> torch.Tensor:
    with torch.no_grad():
        return sample_codes(
            lambda ids, cache: pipe.family.decode_step(pipe.world_model, ids, cache),
            pipe.family.forward_prompt_ids(BEFORE, ACTION),
            code_token_ids=pipe.family.image_token_ids,
            num_tokens=16,
            uniforms=uniforms,
            unconditional_ids=pipe.family.forward_prompt_ids(BEFORE, ""),
            **options,
        )


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


def test_candidates_share_one_prefill(pipe):
    lengths = []
    hook = pipe.world_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sample(pipe, torch.zeros(8, 16), candidate_batch_size=4)
    hook.remove()
    prompt = len(pipe.family.forward_prompt_ids(BEFORE, ACTION))
    assert lengths == [(1, prompt), *[(4, 1)] * 30]


def test_every_token_is_reported(pipe):
    seen = []
    codes = sample(pipe, torch.zeros(3, 16), candidate_batch_size=2, on_token=seen.append)
    assert [tuple(part.shape) for part in seen] == [(k, t) for k in (2, 1) for t in range(1, 17)]
    assert torch.cat([seen[15], seen[31]]).equal(codes)
