"""The verifier's numbers against a naive forward for every token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bwm_pipelines.verification import action_log_probs, greedy_actions, rank, score_candidates
from tests.tiny import build_pipeline, plain_logits, stock_prompt

BEFORE = torch.arange(16)
ACTION = "push the red cube to the left"


@pytest.fixture(scope="module")
def candidates() -> torch.Tensor:
    return torch.randint(32, (5, 16), generator=torch.Generator().manual_seed(0))


def naive_log_probs(pipe, after: torch.Tensor, masked: bool) -> torch.Tensor:
    """Log-probability of each action token by a full forward pass for each, without any cache."""
    ids = stock_prompt(pipe, "<image><image>What?", BEFORE, after)
    log_probs = []
    for token in pipe.processor.tokenizer(f"{ACTION}</s>", add_special_tokens=False).input_ids:
        if masked:
            with torch.no_grad():
                logits = pipe.dynamics_model(input_ids=ids[None]).logits[0, -1]
        else:
            logits = plain_logits(pipe.dynamics_model, ids)[-1]
        log_probs.append(logits.log_softmax(-1)[token])
        ids = torch.cat([ids, torch.tensor([token])])
    return torch.stack(log_probs)


def log_probs(pipe, candidates: torch.Tensor, **options) -> torch.Tensor:
    with torch.no_grad():
        return action_log_probs(
            lambda *arguments: pipe.family.text_step(pipe.dynamics_model, *arguments),
            pipe.family.inverse_prompt_ids(BEFORE, candidates),
            pipe.family.action_ids(ACTION),
            **options,
        )


@pytest.fixture(scope="module")
def unmasked_pipe():
    return build_pipeline(mask_image_logits=False)


def test_masked_convention_is_the_stock_forwards(pipe, candidates):
    naive = torch.stack([naive_log_probs(pipe, after, masked=True) for after in candidates])
    torch.testing.assert_close(log_probs(pipe, candidates), naive, atol=1e-4, rtol=0)


def test_unmasked_convention_is_the_whole_vocabularys(unmasked_pipe, candidates):
    naive = torch.stack([naive_log_probs(unmasked_pipe, after, masked=False) for after in candidates])
    torch.testing.assert_close(log_probs(unmasked_pipe, candidates), naive, atol=1e-4, rtol=0)


def test_conventions_differ(pipe, unmasked_pipe, candidates):
    masked, unmasked = log_probs(pipe, candidates), log_probs(unmasked_pipe, candidates)
    assert (masked - unmasked).min() > 0.01


@pytest.mark.parametrize("candidate_batch_size", [1, 2, 5, 9])
def test_batches_change_nothing(pipe, candidates, candidate_batch_size):
    done = []
    batched = log_probs(pipe, candidates, candidate_batch_size=candidate_batch_size, on_chunk=done.append)
    torch.testing.assert_close(batched, log_probs(pipe, candidates), atol=1e-5, rtol=0)
    assert sum(done) == 5


def test_one_prompt_alone(pipe, candidates):
    torch.testing.assert_close(log_probs(pipe, candidates[:1]), log_probs(pipe, candidates)[:1], atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_candidates_in_any_batches_score_as_alone(pipe, data):
    """Prompts that share more than the image before, down to equal ones, and batches of every size."""
    count = data.draw(st.integers(1, 6))
    changes = data.draw(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 31)), min_size=count, max_size=count))
    afters = BEFORE.repeat(count, 1)
    for after, (place, code) in zip(afters, changes, strict=True):
        after[place] = code
    batched = log_probs(pipe, afters, candidate_batch_size=data.draw(st.integers(1, count)))
    alone = torch.stack([naive_log_probs(pipe, after, masked=True) for after in afters])
    torch.testing.assert_close(batched, alone, atol=1e-4, rtol=0)


def test_image_before_runs_once_and_the_head_only_where_the_action_stands(pipe, candidates):
    """The image before as its own after is one more row of the same batch."""
    candidates = candidates.clone()
    candidates[:, 0] = BEFORE[0] + 1
    embedded, headed = [], []
    hooks = [
        pipe.dynamics_model.model.embed_tokens.register_forward_hook(lambda *io: embedded.append(io[2].shape[:2])),
        pipe.dynamics_model.lm_head.register_forward_hook(lambda *io: headed.append(io[2].shape[:2])),
    ]
    with torch.no_grad():
        score_candidates(pipe.family, pipe.dynamics_model, BEFORE, candidates, ACTION)
    for hook in hooks:
        hook.remove()
    prompt, action = pipe.family.inverse_prompt_ids(BEFORE, BEFORE), pipe.family.action_ids(ACTION)
    first_code_of_after = len(["bos", "boi", *BEFORE, "eoi", "boi"])
    assert embedded == [(1, first_code_of_after), (6, len(prompt) - first_code_of_after + len(action) - 1)]
    assert headed == [(1, 1), (6, len(action))]


def test_keys_and_values_of_the_image_before_are_kept_once(pipe, candidates):
    """What a step is given, whatever the number of rows, and after every batch, is the prefill's own memory."""
    kept = []

    def step(*arguments):
        logits, cache = pipe.family.text_step(pipe.dynamics_model, *arguments)
        kept.append([layer.keys.data_ptr() for layer in cache.layers])
        assert {len(layer.keys) for layer in cache.layers} == {1}
        return logits, cache

    prompts = pipe.family.inverse_prompt_ids(BEFORE, candidates)
    with torch.no_grad():
        action_log_probs(step, prompts, pipe.family.action_ids(ACTION), candidate_batch_size=2)
    assert kept == [kept[0]] * 4


def test_sampled_codes_are_scored_without_encoding_images_again(pipe, image):
    encoded = []
    hook = pipe.vqgan.encoder.register_forward_hook(lambda _module, inputs, _output: encoded.append(len(inputs[0])))
    pipe(image, ACTION, num_candidates=3, output_type="latent")
    hook.remove()
    assert encoded == [1]


def test_score_is_the_mean_over_the_action_and_the_margin_that_over_nothing_changed(pipe, candidates):
    with torch.no_grad():
        ranking = score_candidates(pipe.family, pipe.dynamics_model, BEFORE, candidates, ACTION)
    expected = [naive_log_probs(pipe, after, masked=True).mean().item() for after in candidates]
    unchanged = naive_log_probs(pipe, BEFORE, masked=True).mean().item()
    assert ranking.scores == pytest.approx(expected, abs=1e-4)
    assert ranking.unchanged_score == pytest.approx(unchanged, abs=1e-4)
    assert ranking.margins == pytest.approx([score - unchanged for score in expected], abs=1e-4)
    assert ranking.order == sorted(range(5), key=lambda i: -expected[i])


def test_copy_has_no_margin_at_all_whatever_the_rounding(pipe):
    def round_by_row(_module, _arguments, output):
        """Rounding that depends on the place in the batch, as that of large matrix products does."""
        output.logits *= 1 + 1e-6 * torch.arange(len(output.logits))[:, None, None]

    hook = pipe.dynamics_model.register_forward_hook(round_by_row)
    with torch.no_grad():
        ranking = score_candidates(pipe.family, pipe.dynamics_model, BEFORE, BEFORE.repeat(4, 1), ACTION)
    hook.remove()
    assert (ranking.margins, ranking.changed) == ([0.0] * 4, False)


def test_candidate_with_a_score_that_is_not_finite_is_excluded():
    ranking = rank([-3.0, math.nan, -1.0, -math.inf], unchanged_score=-2.0)
    assert (ranking.order, ranking.excluded, ranking.changed) == ([2, 0], [1, 3], True)


def test_nothing_beats_unchanged():
    assert not rank([-3.0, -2.0], unchanged_score=-2.0).changed


@pytest.mark.parametrize(("scores", "unchanged"), [([math.nan, math.inf], -1.0), ([-1.0], math.nan)])
def test_nothing_finite_to_rank(scores, unchanged):
    with pytest.raises(ValueError, match="`dynamics_model` gave no finite score"):
        rank(scores, unchanged)


def greedy(pipe, prompts: torch.Tensor, step=None, **options) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with torch.no_grad():
        return greedy_actions(
            step or (lambda *arguments: pipe.family.text_step(pipe.dynamics_model, *arguments)),
            prompts,
            image_token_ids=pipe.family.image_token_ids,
            **options,
        )


@pytest.fixture(scope="module")
def prompts(pipe, candidates):
    return torch.stack([pipe.family.inverse_prompt_ids(BEFORE, after) for after in candidates])


@pytest.mark.parametrize("max_new_tokens", [1, 6])
def test_greedy_actions_are_the_argmax_of_a_plain_forward(pipe, prompts, max_new_tokens):
    for prompt, (ids, scores) in zip(
        prompts, greedy(pipe, prompts, eos_token_id=2, max_new_tokens=max_new_tokens), strict=True
    ):
        with torch.no_grad():
            logits = pipe.dynamics_model(input_ids=torch.cat([prompt, ids[:-1]])[None]).logits[0, -len(ids) :]
        expected = logits.log_softmax(-1).max(-1)
        assert ids.equal(expected.indices)
        torch.testing.assert_close(scores, expected.values, atol=1e-4, rtol=0)


def test_greedy_actions_end_with_eos_each_at_its_own_time(pipe, prompts):
    """Whatever token the first prompt's action has at some place, with that as eos it ends there."""
    endless = [ids.tolist() for ids, _ in greedy(pipe, prompts, eos_token_id=-1, max_new_tokens=8)]
    for eos in endless[0]:
        ended = [ids.tolist() for ids, _ in greedy(pipe, prompts, eos_token_id=eos, max_new_tokens=8)]
        assert ended == [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in endless]
        assert len(ended[0]) == endless[0].index(eos) + 1


def test_greedy_actions_together_are_those_of_each_alone(pipe, prompts):
    options = {"eos_token_id": greedy(pipe, prompts[:1], eos_token_id=-1, max_new_tokens=3)[0][0][-1].item()}
    together = greedy(pipe, prompts, max_new_tokens=8, **options)
    assert len({len(ids) for ids, _ in together}) > 1
    for prompt, (ids, scores) in zip(prompts, together, strict=True):
        ((ids_alone, scores_alone),) = greedy(pipe, prompt[None], max_new_tokens=8, **options)
        assert ids.equal(ids_alone)
        torch.testing.assert_close(scores, scores_alone, atol=1e-5, rtol=0)


def test_an_action_ends_where_logits_are_not_finite_and_leaves_the_others_alone(pipe, prompts):
    calls = []

    def overflow_in_the_second_row(ids, cache, num_logits):
        logits, cache = pipe.family.text_step(pipe.dynamics_model, ids, cache, num_logits)
        calls.append(len(ids))
        if len(calls) == 3:
            logits[1, -1, 7] = torch.inf
        return logits, cache

    sound = greedy(pipe, prompts, eos_token_id=-1, max_new_tokens=5)
    ids, scores = zip(
        *greedy(pipe, prompts, overflow_in_the_second_row, eos_token_id=-1, max_new_tokens=5), strict=True
    )
    assert [len(row) for row in ids] == [5, 3, 5, 5, 5]
    assert scores[1].isnan().tolist() == [False, False, True]
    for row in (0, 2, 3, 4):
        assert ids[row].equal(sound[row][0]) and scores[row].equal(sound[row][1])
