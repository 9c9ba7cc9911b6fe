"""From coded scenes to token sequences with labels, for the base, the dynamics model and the world model."""

import random
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor

from bwm_pipelines.families.chameleon import ChameleonFamily

IGNORED = -100  # label of tokens that carry no loss
OBJECTIVES = ("base", "dynamics", "world")


@dataclass
class SceneCollator:
    """Draws actions of each scene and lays them out as sequences.

    "world" has forward sequences with the loss on the after image; "dynamics" inverse ones with the loss on the action;
    "base" takes turns and, in its inverse sequences, learns the after image as well: what may happen next, unasked.
    All sequences of a batch are of one kind. Inverse ones begin with the scene's before image, so those of a scene share it.
    """

    family: ChameleonFamily
    objective: str
    actions_per_scene: int
    pad_id: int

    def __call__(self, scenes: list[dict]) -> dict[str, Tensor]:
        """Returns `input_ids` and `labels`, int64 [scenes, actions, length]."""
        inverse = self.objective == "dynamics" or (self.objective == "base" and random.random() < 0.5)
        build = self.inverse_sequence if inverse else self.forward_sequence
        sequences = []
        for scene in scenes:
            before, count = torch.tensor(scene["before"]), len(scene["phrase"])
            picks = random.sample(range(count), min(count, self.actions_per_scene))
            picks += random.choices(range(count), k=self.actions_per_scene - len(picks))
            sequences += [build(before, torch.tensor(scene["after"][i]), scene["phrase"][i]) for i in picks]
        ids = self._pad([ids for ids, _ in sequences], self.pad_id)
        labels = self._pad([labels for _, labels in sequences], IGNORED)
        shape = (len(scenes), self.actions_per_scene, -1)
        return {"input_ids": ids.view(shape), "labels": labels.view(shape)}

    def forward_sequence(self, before: Tensor, after: Tensor, action: str) -> tuple[Tensor, Tensor]:
        prompt = self.family.forward_prompt_ids(before, action)
        answer = self.family.image_token_ids[after]
        return torch.cat([prompt, answer]), torch.cat([torch.full_like(prompt, IGNORED), answer])

    def inverse_sequence(self, before: Tensor, after: Tensor, action: str) -> tuple[Tensor, Tensor]:
        prompt, answer = self.family.inverse_prompt_ids(before, after), self.family.action_ids(action)
        prompt_labels = torch.full_like(prompt, IGNORED)
        if self.objective == "base":
            images = torch.isin(prompt, self.family.image_token_ids).nonzero().flatten()[-len(after) :]
            prompt_labels[images] = prompt[images]
        return torch.cat([prompt, answer]), torch.cat([prompt_labels, answer])

    @staticmethod
    def _pad(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def load_codes(folder: str) -> Dataset:
    """Scenes that `training.encode` wrote."""
    return Dataset.load_from_disk(str(folder))
