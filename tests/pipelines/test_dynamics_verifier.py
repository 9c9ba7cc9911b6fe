"""The verifier over images from anywhere."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline, Interrupted
from tests.tiny import build_pipeline

ACTION = "open the door"


@pytest.fixture(scope="module")
def afters() -> list[Image.Image]:
    """Noise of several sizes."""
    noise = np.random.default_rng(0)
    sizes = [(16, 16), (40, 24), (7, 90), (33, 33)]
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_images_of_any_size_score_as_their_codes(verifier, image, afters):
    from_images = verifier(image, afters, ACTION)
    from_codes = verifier(verifier.encode_images(image)[0], verifier.encode_images(afters), ACTION)
    assert from_images == from_codes
    assert from_images.best == from_images.order[0] == int(np.argmax(from_images.scores))
    assert len(set(from_images.scores)) == 4


def test_margins_and_flag(verifier, image, afters):
    output = verifier(image, afters, ACTION)
    assert output.margins == pytest.approx([score - output.unchanged_score for score in output.scores])
    assert output.changed == (max(output.margins) > 0)


def test_no_candidate_beats_the_unchanged_image(verifier, image):
    output = verifier(image, [image, image], ACTION)
    assert (output.margins, output.changed, output.order) == ([0.0, 0.0], False, [0, 1])


def test_one_candidate_needs_no_list(verifier, image, afters):
    assert verifier(image, afters[1], ACTION).scores == verifier(image, afters[1:2], ACTION).scores


def test_candidate_with_a_score_that_is_not_finite_is_excluded_and_reported(pipe, verifier, image):
    before = verifier.encode_images(image)[0]
    code = next(c for c in range(32) if c not in before)
    candidates = before.repeat(3, 1)
    candidates[1, 5] = code
    broken = copy.deepcopy(pipe.dynamics_model)
    with torch.no_grad():
        broken.model.embed_tokens.weight[pipe.family.image_token_ids[code]] = torch.inf
    parts = verifier.components | {"dynamics_model": broken}
    settings = {name: verifier.config[name] for name in ("forward_prompt", "inverse_prompt", "image_size")}
    output = DynamicsVerifierPipeline(**parts, **settings)(before, candidates, ACTION)
    assert (output.order, output.excluded) == ([0, 2], [1])
    assert [math.isfinite(score) for score in output.scores] == [True, False, True]


def test_name_action_scores_its_words_as_the_verifier_does(pipe, verifier, image, afters):
    """The score of named words is that of the same words verified, where greedy words tokenize as they were chosen."""
    model = copy.deepcopy(pipe.dynamics_model)
    words = pipe.family.action_ids(ACTION)
    with torch.no_grad():
        # Every next word follows from the word before alone: attention and the feed-forward give nothing, and the head
        # answers the embedding of each token of the action, and of sep, with the next one.
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        chain = [pipe.processor.tokenizer.sep_token_id, *words.tolist()]
        for here, following in pairwise(chain):
            model.lm_head.weight[following] = model.model.embed_tokens.weight[here] * 5
    settings = {name: verifier.config[name] for name in ("forward_prompt", "inverse_prompt", "image_size")}
    rigged = DynamicsVerifierPipeline(**verifier.components | {"dynamics_model": model}, **settings)
    named = rigged.name_action(image, afters[0])
    assert named.action == ACTION
    assert named.score == pytest.approx(rigged(image, afters[0], ACTION).scores[0], abs=1e-5)


def test_name_actions_are_those_of_each_pair_alone(verifier, image, afters):
    befores = [image, *afters[1:]]
    together = verifier.name_actions(befores, afters)
    alone = [verifier.name_action(before, after) for before, after in zip(befores, afters, strict=True)]
    assert [named.action for named in together] == [named.action for named in alone]
    assert [named.score for named in together] == pytest.approx([named.score for named in alone], abs=1e-5)
    assert len({named.action for named in together}) > 1


def test_name_actions_needs_an_after_for_every_before(verifier, image, afters):
    with pytest.raises(ValueError, match="`afters` must be as many as `befores`, 1, got 4"):
        verifier.name_actions(image, afters)


def test_name_action_stops_at_the_context(verifier, image, afters):
    named = verifier.name_action(image, afters[0], max_new_tokens=10_000)
    assert math.isfinite(named.score)


def test_verifier_loads_from_the_world_models_folder(verifier, checkpoint, image, afters, caplog):
    loaded = DynamicsVerifierPipeline.from_pretrained(checkpoint)
    assert "world_model" not in loaded.components
    assert loaded(image, afters, ACTION) == verifier(image, afters, ACTION)
    assert "will be ignored" not in caplog.text


def test_verifier_needs_a_dynamics_model(pipe, tmp_path):
    settings = {name: pipe.config[name] for name in ("forward_prompt", "inverse_prompt", "image_size")}
    ChameleonWorldModelPipeline(**pipe.components | {"dynamics_model": None}, **settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no dynamics_model"):
        DynamicsVerifierPipeline.from_pretrained(tmp_path)


def test_return_dict_false_gives_the_fields_in_order(verifier, image, afters):
    named = verifier(image, afters, ACTION)
    order, scores, margins, best, unchanged_score, changed, excluded = verifier(
        image, afters, ACTION, return_dict=False
    )
    assert (order, scores, margins, best) == (named.order, named.scores, named.margins, named.best)
    assert (unchanged_score, changed, excluded) == (named.unchanged_score, named.changed, named.excluded)


def test_interrupt_ends_between_batches_and_between_tokens(verifier, image, afters):
    steps = []

    def callback(given, step, timestep, tensors):
        steps.append(step)
        given._interrupt = step == 1

    with pytest.raises(Interrupted):
        verifier(image, afters, ACTION, candidate_batch_size=1, callback_on_step_end=callback)
    with pytest.raises(Interrupted):
        verifier.name_action(image, afters[0], callback_on_step_end=callback)
    assert steps == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"before": "before.png"}, "`before` must be a PIL image, .* got str"),
        ({"before": torch.zeros(2, 3, 8, 8)}, "`before` must be one image, got 2"),
        ({"candidates": []}, "`candidates` is an empty list"),
        ({"candidates": [None]}, "`candidates` must be a PIL image, .* got NoneType"),
        ({"action": ""}, "`action` must say in words what happens, got ''"),
        ({"action": "z" * 100}, "`action` has 100 tokens but 52 fit"),
        ({"candidate_batch_size": 0}, "`candidate_batch_size` must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(verifier, image, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        verifier(**{"before": image, "candidates": ImageOps.mirror(image), "action": ACTION} | arguments)


def test_logits_that_are_not_finite_raise(image, afters):
    pipe = build_pipeline()
    with torch.no_grad():
        pipe.dynamics_model.lm_head.weight[300] = torch.nan
    verifier = DynamicsVerifierPipeline.from_pipe(pipe)
    with pytest.raises(ValueError, match="`dynamics_model` gave no finite score"):
        verifier(image, afters, ACTION)
    with pytest.raises(ValueError, match="`dynamics_model` gave logits that are not finite"):
        verifier.name_action(image, afters[0])
