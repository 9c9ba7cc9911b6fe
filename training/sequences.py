"""From coded scenes to token sequences with labels and weights, as a recipe asks for them."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from torch import Tensor

from bwm_pipelines.families.chameleon import ChameleonFamily
from training.recipe import Recipe
from training.triplets import shards_of

IGNORED = -100  # label of tokens that carry no loss
NOTHING = "nothing changed"

Sequence = tuple[Tensor, Tensor, Tensor]
"""Token ids and labels, int64 [length], and the labels' weights, float32 [length]."""


@dataclass
class SceneCollator:
    """Draws actions of each scene and lays them out as sequences.

    "world" has forward sequences with the loss on the after image; "dynamics" inverse ones with the loss on the action;
    "base" takes turns and, in its inverse sequences, learns the after image as well: what may happen next, unasked.
    All sequences of a batch are of one kind. Inverse ones begin with the scene's before image, so those of a scene share it.
    What is drawn depends on seed, epoch and scenes only, so that a resumed training sees what an undisturbed one sees.
    """

    family: ChameleonFamily
    recipe: Recipe
    seed: int = 0
    epoch: int = 0

    def __call__(self, scenes: list[dict]) -> dict[str, Tensor]:
        """Returns `input_ids` and `labels`, int64, and `weights`, float32, each [scenes, actions, length]."""
        rng = random.Random(f"{self.seed} {self.epoch} {[scene['scene'] for scene in scenes]}")
        sequences = self._draw(scenes, rng)
        padded = [
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
            for rows, value in zip(
                zip(*sequences, strict=True), (self.family.tokenizer.pad_token_id, IGNORED, 0.0), strict=True
            )
        ]
        ids, labels, weights = (rows.view(len(scenes), self.recipe.actions_per_scene, -1) for rows in padded)
        return {"input_ids": ids, "labels": labels, "weights": weights}

    def _draw(self, scenes: list[dict], rng: random.Random) -> list[Sequence]:
        inverse = self.recipe.objective == "dynamics" or (self.recipe.objective == "base" and rng.random() < 0.5)
        build, choices = (self.inverse_sequence if inverse else self.forward_sequence), _all
        if inverse and rng.random() < self.recipe.reversals and all(map(_reversible, scenes)):
            build, choices = self.reversed_sequence, _reversible
        return [
            build(scene, i, rng) for scene in scenes for i in pick_actions(scene, choices(scene), self.recipe, rng)
        ]

    def forward_sequence(self, scene: dict, i: int, rng: random.Random) -> Sequence:
        """The scene's action `i`: before image and words -> after image."""
        before, after = torch.tensor(scene["before"]), torch.tensor(still_after(scene, i, self.recipe.still))
        action = "" if rng.random() < self.recipe.action_dropout else scene["action"][i]
        prompt, answer = self.family.forward_prompt_ids(before, action), self.family.image_token_ids[after]
        weights = self.recipe.weights(torch.tensor(scene["distance"][i]))
        labels = torch.cat([torch.full_like(prompt, IGNORED), answer])
        return torch.cat([prompt, answer]), labels, torch.cat([torch.zeros(len(prompt)), weights])

    def inverse_sequence(self, scene: dict, i: int, rng: random.Random) -> Sequence:
        """The scene's action `i`: before and after image -> words; or now and then the unchanged image -> `NOTHING`."""
        if rng.random() < self.recipe.copies:
            return self._inverse(scene["before"], scene["before"], NOTHING)
        return self._inverse(scene["before"], self._seen_after(scene, i, rng), scene["action"][i])

    def reversed_sequence(self, scene: dict, i: int, rng: random.Random) -> Sequence:
        """The scene's action `i` seen backwards: after and before image -> the inverse action."""
        return self._inverse(self._seen_after(scene, i, rng), scene["before"], scene["inverse"][i])

    def _seen_after(self, scene: dict, i: int, rng: random.Random) -> list[int]:
        """The after image as a picture is encoded or as the world model imagines it: the verifier meets both."""
        return still_after(scene, i, self.recipe.still) if rng.random() < 0.5 else scene["after"][i]

    def _inverse(self, before: list[int], after: list[int], action: str) -> Sequence:
        prompt = self.family.inverse_prompt_ids(torch.tensor(before), torch.tensor(after))
        answer = self.family.action_ids(action)
        prompt_labels = torch.full_like(prompt, IGNORED)
        if self.recipe.objective == "base":
            images = torch.isin(prompt, self.family.image_token_ids).nonzero().flatten()[-len(after) :]
            prompt_labels[images] = prompt[images]
        labels = torch.cat([prompt_labels, answer])
        return torch.cat([prompt, answer]), labels, (labels != IGNORED).float()


def pick_actions(scene: dict, indices: list[int], recipe: Recipe, rng: random.Random) -> list[int]:
    """As many of the scene's actions `indices` as the recipe wants, different ones as far as there are.

    Weighted sampling without replacement (Efraimidis and Spirakis 2006): the largest keys u ** (1 / weight) win.
    """
    wanted, weights = recipe.actions_per_scene, recipe.class_weights
    keys = {i: rng.random() ** (1 / weights.get(scene["class"][i], 1.0)) for i in indices}
    picks = sorted(indices, key=keys.__getitem__, reverse=True)[:wanted]
    return picks + rng.choices(indices, k=wanted - len(picks))


def still_after(scene: dict, i: int, still: float) -> list[int]:
    """The codes after the scene's action `i`, with those of before where features move less than `still`; see `Recipe`."""
    codes = zip(scene["before"], scene["after"][i], scene["distance"][i], strict=True)
    return [before if distance < still else after for before, after, distance in codes]


def _all(scene: dict) -> list[int]:
    return list(range(len(scene["action"])))


def _reversible(scene: dict) -> list[int]:
    """The scene's actions whose inverse is known."""
    return [i for i, inverse in enumerate(scene.get("inverse") or []) if inverse is not None]


def load_codes(folder: str | Path) -> Dataset:
    """Scenes that `training.encode` wrote, or rows of `training.evaluation.draws`.

    Raises:
        ValueError: if the folder holds no shards.
    """
    return load_dataset("parquet", data_files=[str(shard) for shard in shards_of(folder)], split="train")
