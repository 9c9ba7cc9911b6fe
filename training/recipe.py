"""A training recipe: what is learned, from which sequences and with which loss, and the settings of the trainer.

`recipes/` holds the paper's values for 7B and ours for playroom.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from training.recognition import EVEN, RecognitionWeights

Objective = Literal["base", "dynamics", "world"]
OBJECTIVES = get_args(Objective)


@dataclass(frozen=True)
class Recipe:
    """One stage of training.

    Args:
        objective: "world" learns the after image from before and action, "dynamics" the action from before and after,
            "base" both by turns.
        trainer: arguments of `transformers.TrainingArguments`; a batch counts scenes.
        actions_per_scene: triplets drawn of each scene; they share its before image.
        class_weights: how much likelier a triplet of a class is drawn than one of a class that is not named here; above 0.
        still: a patch whose features move less than this (squared L2 distance) keeps the code it had before: below it,
            codes differ by the encoder's jitter, not by what happened. 0 leaves the after image as it was encoded.
        weights: how much each token of the after image counts (Eq. 2); world model only.
        action_dropout: share of forward sequences without words: the unconditional branch of guidance.
        own_draws: share of forward sequences that go on from what the model itself draws, see `training.scheduled_sampling`;
            world model only.
        copies: share of inverse sequences that show the before image twice and say that nothing changed.
        reversals: share of inverse batches that show after and before swapped, with the inverse action.
        lora: arguments of `peft.LoraConfig`; None trains all weights.
    """

    objective: Objective
    trainer: dict[str, Any] = field(default_factory=dict)
    actions_per_scene: int = 1
    class_weights: dict[str, float] = field(default_factory=dict)
    still: float = 0.0
    weights: RecognitionWeights = EVEN
    action_dropout: float = 0.0
    own_draws: float = 0.0
    copies: float = 0.0
    reversals: float = 0.0
    lora: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> "Recipe":
        """Reads a YAML file with these keys.

        Args:
            path: the file.
            changes: "key=value" each, the value in YAML; they replace what the file says.

        Raises:
            ValueError: file or changes name a key or an objective that there is not, a class weight is not above 0, or draws
                are asked for where no after image is predicted from an action.
        """
        entries = yaml.safe_load(path.read_text())
        for change in changes:
            key, _, value = change.partition("=")
            entries[key] = yaml.safe_load(value)
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(entries) - known):
            raise ValueError(f"`recipe` {str(path)!r} has the unknown key {unknown[0]!r}; known are {sorted(known)}.")
        if entries.get("objective") not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {OBJECTIVES}, got {entries.get('objective')!r} in {path}.")
        for name, weight in entries.get("class_weights", {}).items():
            if not weight > 0:
                raise ValueError(f"`class_weights` must be above 0, got {weight} for {name!r} in {path}.")
        if entries.get("own_draws") and entries["objective"] != "world":
            raise ValueError(f"`own_draws` needs the objective 'world', got {entries['objective']!r} in {path}.")
        if "weights" in entries:
            entries["weights"] = RecognitionWeights(**entries["weights"])
        return cls(**entries)
