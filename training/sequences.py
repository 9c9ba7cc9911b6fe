"""From coded scenes to token sequences with labels, for the base, the dynamics model and the world model."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from torch import Tensor

from bwm_pipelines.families.chameleon import ChameleonFamily
from training.recognition import EVEN, RecognitionWeights
from training.triplets import shards_of

IGNORED = -100  # label of tokens that carry no loss
OBJECTIVES = ("base", "dynamics", "world")


@dataclass
class SceneCollator:
    """Draws actions of each scene and lays them out as sequences.

    "world" has forward sequences with the loss on the after image; "dynamics" inverse ones with the loss on the action;
    "base" takes turns and, in its inverse sequences, learns the after image as well: what may happen next, unasked.
    All sequences of a batch are of one kind. Inverse ones begin with the scene's before image, so those of a scene share it.
    A world model learns without words in `action_dropout` of its sequences: the unconditional branch of guidance.
    """

    family: ChameleonFamily
    objective: str
    actions_per_scene: int
    pad_id: int
    recognition_weights: RecognitionWeights = EVEN
    action_dropout: float = 0.0

    def __call__(self, scenes: list[dict]) -> dict[str, Tensor]:
        """Returns `input_ids` and `labels`, int64, and the labels' `weights`, float32, each [scenes, actions, length]."""
        inverse = self.objective == "dynamics" or (self.objective == "base" and random.random() < 0.5)
        build = self.inverse_sequence if inverse else self.forward_sequence
        sequences = [build(scene, i) for scene in scenes for i in self._picks(len(scene["action"]))]
        padded = [
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
            for rows, value in zip(zip(*sequences, strict=True), (self.pad_id, IGNORED, 0.0), strict=True)
        ]
        ids, labels, weights = (rows.view(len(scenes), self.actions_per_scene, -1) for rows in padded)
        return {"input_ids": ids, "labels": labels, "weights": weights}

    def _picks(self, count: int) -> list[int]:
        picks = random.sample(range(count), min(count, self.actions_per_scene))
        return picks + random.choices(range(count), k=self.actions_per_scene - len(picks))

    def forward_sequence(self, scene: dict, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """The forward sequence of the scene's action `i` as ids, labels and weights, each [length]."""
        dropped = self.objective == "world" and random.random() < self.action_dropout
        before, after = torch.tensor(scene["before"]), torch.tensor(scene["after"][i])
        prompt = self.family.forward_prompt_ids(before, "" if dropped else scene["action"][i])
        answer = self.family.image_token_ids[after]
        weights = self.recognition_weights(torch.tensor(scene["distance"][i]))
        unlearned = torch.full_like(prompt, IGNORED)
        return (
            torch.cat([prompt, answer]),
            torch.cat([unlearned, answer]),
            torch.cat([torch.zeros(len(prompt)), weights]),
        )

    def inverse_sequence(self, scene: dict, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """The inverse sequence of the scene's action `i` as ids, labels and weights, each [length]."""
        before, after = torch.tensor(scene["before"]), torch.tensor(scene["after"][i])
        prompt = self.family.inverse_prompt_ids(before, after)
        answer = self.family.action_ids(scene["action"][i])
        prompt_labels = torch.full_like(prompt, IGNORED)
        if self.objective == "base":
            images = torch.isin(prompt, self.family.image_token_ids).nonzero().flatten()[-len(after) :]
            prompt_labels[images] = prompt[images]
        labels = torch.cat([prompt_labels, answer])
        return torch.cat([prompt, answer]), labels, (labels != IGNORED).float()


def load_codes(folder: str | Path) -> Dataset:
    """Scenes that `training.encode` wrote.

    Raises:
        ValueError: if the folder holds no shards.
    """
    return load_dataset("parquet", data_files=[str(shard) for shard in shards_of(folder)], split="train")
