"""The evidence against a naive forward for every patch that is undone."""

import pytest
import torch

from bwm_pipelines import Interrupted
from bwm_pipelines.explanation import occlusions, sum_by_word, words_of_tokens

ACTION = "push the red cube to the left"


@pytest.fixture(scope="module")
def codes() -> tuple[torch.Tensor, torch.Tensor]:
    """An image before of 4 x 4 codes, and one after in which the patches 5, 6 and 15 changed."""
    before = torch.arange(16)
    after = before.clone()
    after[[5, 6, 15]] = torch.tensor([20, 21, 22])
    return before, after


def test_single_patches_lose_what_a_naive_comparison_says(verifier, codes):
    before, after = codes
    explained = verifier.explain(before, after, ACTION, window=1)
    expected = torch.zeros(16)
    for patch in (5, 6, 15):
        undone = after.clone()
        undone[patch] = before[patch]
        with_patch, without = verifier(before, torch.stack([after, undone]), ACTION).scores
        expected[patch] = with_patch - without
    torch.testing.assert_close(explained.heatmap, expected.reshape(4, 4), atol=1e-5, rtol=0)
    assert (explained.heatmap.flatten()[[5, 6, 15]].abs() > 1e-4).all()


def test_only_changed_patches_have_evidence(verifier, codes):
    heatmap = verifier.explain(*codes, ACTION).heatmap
    assert heatmap.dtype == torch.float32
    assert heatmap.flatten().nonzero().flatten().tolist() == [5, 6, 15]


def test_unchanged_image_has_no_evidence_at_all(verifier, codes):
    explained = verifier.explain(codes[0], codes[0], ACTION)
    assert not explained.heatmap.any()
    assert explained.word_margins == pytest.approx([0.0] * 7, abs=1e-5)


def test_window_undoes_the_neighbours_within_the_image(codes):
    before, after = codes
    undone = occlusions(before, after, grid_size=4, window=3)
    assert [row.ne(before).nonzero().flatten().tolist() for row in undone] == [[15], [15], [5, 6]]
    assert occlusions(before, after, grid_size=4, window=9).equal(before.expand(3, -1))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_change_nothing(verifier, codes, batch_size):
    batched = verifier.explain(*codes, ACTION, batch_size=batch_size)
    torch.testing.assert_close(batched.heatmap, verifier.explain(*codes, ACTION).heatmap, atol=1e-5, rtol=0)


def test_scores_are_the_verifiers(verifier, codes):
    explained = verifier.explain(*codes, ACTION)
    verified = verifier(*codes, ACTION)
    assert explained.score == pytest.approx(verified.scores[0], abs=1e-5)
    assert explained.unchanged_score == pytest.approx(verified.unchanged_score, abs=1e-5)
    assert sum(explained.token_log_probs) / len(explained.tokens) == pytest.approx(explained.score)


def test_words_share_out_the_log_probability_of_all_tokens_but_eos(verifier, codes):
    explained = verifier.explain(*codes, ACTION)
    assert explained.words == ACTION.split()
    assert explained.tokens[-1] == "</s>"
    assert sum(explained.word_log_probs) == pytest.approx(sum(explained.token_log_probs[:-1]), abs=1e-5)


@pytest.mark.parametrize("action", ["open", "  open   the\tdoor ", "öffne die Tür", "x" * 30 + " y"])
def test_every_token_belongs_to_a_word(verifier, action):
    words, owners = words_of_tokens(verifier.family, action)
    ids = verifier.family.action_ids(action)[:-1]
    assert words == action.split()
    assert len(owners) == len(ids) and owners == sorted(owners) and set(owners) == set(range(len(words)))
    for number, word in enumerate(words):
        mine = [token for token, owner in zip(ids, owners, strict=True) if owner == number]
        assert verifier.family.action_text(mine) == word


def test_sum_by_word_leaves_eos_out():
    assert sum_by_word(torch.tensor([-1.0, -2.0, -4.0, -8.0]), [0, 0, 1], 2) == [-3.0, -4.0]


def test_interruption_after_a_batch(verifier, codes):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1

    with pytest.raises(Interrupted):
        verifier.explain(*codes, ACTION, batch_size=1, callback_on_step_end=callback)
    assert steps == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": " "}, "`action` must say in words what happens, got ' '"),
        ({"window": 2}, "`window` must be odd, .* got 2"),
        ({"window": 0}, "`window` must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, got 0"),
        ({"after": torch.zeros(2, 16, dtype=torch.int64)}, "`after` must be one image, got 2"),
    ],
)
def test_bad_arguments_are_named(verifier, codes, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        verifier.explain(**{"before": codes[0], "after": codes[1], "action": ACTION} | arguments)
