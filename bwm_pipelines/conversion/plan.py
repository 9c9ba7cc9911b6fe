"""A plan says of every tensor to write where it comes from; a plan that is not exact is refused before any work."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from bwm_pipelines.conversion.weights import Weights


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


class Origin(NamedTuple):
    """Where a tensor comes from: `change` applied to the tensor `name` of `weights`."""

    weights: Weights
    name: str
    change: Callable[[Tensor], Tensor] = unchanged


Plan = dict[str, Origin]


def specs_of(plan: Plan) -> dict[str, Tensor]:
    """Shape and dtype of every tensor that a plan makes, on the device "meta".

    Raises:
        ValueError: a tensor has a shape of which its target cannot be made.
    """
    specs = {}
    for target, (weights, name, change) in plan.items():
        try:
            specs[target] = change(weights.specs[name])
        except (RuntimeError, IndexError):
            raise ValueError(
                f"`source`: {name} of {weights.files[0]} has the shape {list(weights.specs[name].shape)}, of which no "
                f"{target} can be made; use files of one checkpoint."
            ) from None
    return specs


def check_exact(plan: Plan, wanted: dict[str, Tensor], what: str) -> None:
    """Refuse a plan that leaves a tensor of the target unfilled, makes one that it has not, or one of another shape.

    Args:
        wanted: the target's state dict, on the device "meta".
        what: the source, for messages.

    Raises:
        ValueError: the first difference.
    """
    specs = specs_of(plan)
    missing, unknown = sorted(wanted.keys() - specs.keys()), sorted(specs.keys() - wanted.keys())
    if missing:
        raise ValueError(f"`source`: {what} does not fill {_list(missing)}; get the whole checkpoint.")
    if unknown:
        raise ValueError(
            f"`source`: {what} has {_list(plan[name].name for name in unknown)}, which the model has not."
        )
    for name, spec in specs.items():
        if spec.shape != wanted[name].shape:
            raise ValueError(
                f"`source`: {plan[name].name} of {what} makes a tensor of the shape {list(spec.shape)} but its "
                f"configuration asks for {list(wanted[name].shape)}; use files of one checkpoint."
            )


def check_used(weights: Weights, used: Iterable[str], ignored: Callable[[str], bool], what: str) -> None:
    """Refuse weights with a tensor that is neither used nor known to be of no use.

    Raises:
        ValueError: the tensors in question.
    """
    unused = sorted(name for name in weights.specs.keys() - set(used) if not ignored(name))
    if unused:
        raise ValueError(f"`source`: {what} has {_list(unused)}, which no Chameleon has; is it another model?")


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
