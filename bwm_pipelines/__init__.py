"""Imagine the next image for an action, and verify that the action happened, with diffusers.

Names are loaded when they are first used, so that the import itself takes no torch and no diffusers.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bwm_pipelines.editors import BestOfNOutput, best_of_n
    from bwm_pipelines.pipelines.dynamics_verifier import (
        DynamicsVerifierPipeline,
        ExplanationOutput,
        NamedActionOutput,
        VerifierOutput,
    )
    from bwm_pipelines.pipelines.world_model import ChameleonWorldModelPipeline, WorldModelOutput
    from bwm_pipelines.sampling import Interrupted

__all__ = [
    "BestOfNOutput",
    "ChameleonWorldModelPipeline",
    "DynamicsVerifierPipeline",
    "ExplanationOutput",
    "Interrupted",
    "NamedActionOutput",
    "VerifierOutput",
    "WorldModelOutput",
    "best_of_n",
    "default_checkpoint",
]

_MODULES = {
    "BestOfNOutput": "bwm_pipelines.editors",
    "ChameleonWorldModelPipeline": "bwm_pipelines.pipelines.world_model",
    "DynamicsVerifierPipeline": "bwm_pipelines.pipelines.dynamics_verifier",
    "ExplanationOutput": "bwm_pipelines.pipelines.dynamics_verifier",
    "Interrupted": "bwm_pipelines.sampling",
    "NamedActionOutput": "bwm_pipelines.pipelines.dynamics_verifier",
    "VerifierOutput": "bwm_pipelines.pipelines.dynamics_verifier",
    "WorldModelOutput": "bwm_pipelines.pipelines.world_model",
    "best_of_n": "bwm_pipelines.editors",
}


def default_checkpoint() -> Path:
    """Folder of the small trained checkpoint that comes with this package, for `from_pretrained`."""
    return Path(__file__).parent / "checkpoints" / "playroom"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
