import random

import pytest
import torch

from bwm_pipelines import ChameleonWorldModelPipeline
from training.recipe import Recipe
from training.recognition import RecognitionWeights
from training.sequences import IGNORED, NOTHING, SceneCollator, load_codes, pick_actions

RNG = random.Random(0)


@pytest.fixture(scope="module")
def family(checkpoint_folder):
    return ChameleonWorldModelPipeline.from_pretrained(checkpoint_folder).family


@pytest.fixture(scope="module")
def scenes(codes_folder):
    return list(load_codes(codes_folder))[:2]


def words(family, labels):
    return family.action_text(labels[labels != IGNORED])


def images(family, ids):
    return ids[torch.isin(ids, family.image_token_ids)].view(2, -1)


def test_labels_stand_where_the_objective_learns(family, scenes):
    world, dynamics = (
        SceneCollator(family, Recipe(objective, actions_per_scene=3))(scenes) for objective in ("world", "dynamics")
    )
    is_image = torch.isin(world["input_ids"], family.image_token_ids)
    assert ((world["labels"] != IGNORED).sum(-1) == family.num_image_tokens).all()
    assert is_image[world["labels"] != IGNORED].all()
    learned = dynamics["labels"][0, 0]
    assert words(family, learned) in scenes[0]["action"]
    assert learned[learned != IGNORED][-1] == family.tokenizer.eos_token_id


def test_the_base_learns_the_after_image_but_not_the_before_image(family, scenes):
    ids, labels, weights = SceneCollator(family, Recipe("base")).inverse_sequence(scenes[0], 0, RNG)
    before, after = images(family, ids)
    learned = labels[(labels != IGNORED) & torch.isin(ids, family.image_token_ids)]
    assert torch.equal(learned, after) and len(before) == len(after)
    assert torch.equal(weights, (labels != IGNORED).float())


def test_the_world_model_learns_what_changes(family, scenes):
    weights = RecognitionWeights(floor=0.2)
    _, labels, got = SceneCollator(family, Recipe("world", weights=weights)).forward_sequence(scenes[0], 1, RNG)
    assert torch.equal(got[labels != IGNORED], weights(torch.tensor(scenes[0]["distance"][1])))
    assert (got[labels == IGNORED] == 0).all()


def test_a_patch_that_barely_moves_keeps_its_code(family):
    scene = {
        "scene": "one",
        "before": [0] * 16,
        "after": [[1] * 16],
        "distance": [[0.5] * 15 + [2.0]],
        "action": ["open the door"],
    }
    shown = {}
    for still in (0.0, 2.0):
        ids, _, _ = SceneCollator(family, Recipe("world", still=still)).forward_sequence(scene, 0, RNG)
        shown[still] = torch.isin(images(family, ids)[1], family.image_token_ids[1])
    assert shown[0.0].all()
    assert shown[2.0].tolist() == [False] * 15 + [True]


def test_the_dynamics_model_sees_after_images_with_and_without_jitter(family):
    scene = {
        "scene": "one",
        "before": [0] * 16,
        "after": [[1] * 16],
        "distance": [[0.5] * 16],
        "action": ["open the door"],
    }
    collator = SceneCollator(family, Recipe("dynamics", still=1.0))
    pairs = [images(family, collator.inverse_sequence(scene, 0, random.Random(seed))[0]) for seed in range(20)]
    assert {torch.equal(before, after) for before, after in pairs} == {True, False}


def test_the_world_model_learns_without_words_too(family, scenes):
    ids, labels, _ = SceneCollator(family, Recipe("world", action_dropout=1.0)).forward_sequence(scenes[0], 0, RNG)
    assert torch.equal(ids[labels == IGNORED], family.forward_prompt_ids(torch.tensor(scenes[0]["before"]), ""))


def test_copies_are_said_to_change_nothing(family, scenes):
    ids, labels, _ = SceneCollator(family, Recipe("dynamics", copies=1.0)).inverse_sequence(scenes[0], 0, RNG)
    before, after = images(family, ids)
    assert torch.equal(before, after)
    assert words(family, labels) == NOTHING


def test_reversed_pairs_are_said_to_be_the_inverse_action(family):
    before, door, push = [0] * 16, [1] * 16, [2] * 16
    scene = {
        "scene": "one",
        "before": before,
        "after": [door, push],
        "distance": [[9.0] * 16] * 2,
        "action": ["open the door", "knock the red cube over"],
        "inverse": ["close the door", None],
        "class": ["open door", "knock over"],
    }
    batch = SceneCollator(family, Recipe("dynamics", reversals=1.0, actions_per_scene=2))([scene])
    for ids, labels in zip(batch["input_ids"][0], batch["labels"][0], strict=True):
        shown = images(family, ids)
        assert torch.equal(shown[0], family.image_token_ids[torch.tensor(door)])
        assert torch.equal(shown[1], family.image_token_ids[torch.tensor(before)])
        assert words(family, labels) == "close the door"


def test_a_class_with_more_weight_is_drawn_more_often(scenes):
    rare = scenes[0]["class"][0]
    others = sum(name != rare for name in scenes[0]["class"])
    for weights, low, high in (({}, 0.0, 0.5), ({rare: 50.0 * others}, 0.9, 1.0)):
        recipe, rng = Recipe("dynamics", class_weights=weights), random.Random(0)
        indices = [*range(others + 1)]
        picks = [scenes[0]["class"][i] for _ in range(100) for i in pick_actions(scenes[0], indices, recipe, rng)]
        assert low <= picks.count(rare) / len(picks) <= high


def test_actions_of_a_scene_are_drawn_again_only_when_there_are_no_others(family, scenes):
    wanted = len(scenes[0]["action"]) + 2
    batch = SceneCollator(family, Recipe("world", actions_per_scene=wanted))(scenes[:1])
    assert len({str(row) for row in batch["input_ids"][0].tolist()}) == len(set(scenes[0]["action"]))


def test_what_is_drawn_depends_on_seed_epoch_and_scenes_only(family, scenes):
    recipe = Recipe("dynamics", actions_per_scene=2, copies=0.5)
    draw = lambda **kwargs: SceneCollator(family, recipe, **kwargs)(scenes)["input_ids"].tolist()
    assert draw() == draw()
    assert len({str(draw(seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}) > 1
