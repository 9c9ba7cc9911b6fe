"""Model families, found by the `model_type` of a model's config. A new family is one module and one line here."""

from transformers import PreTrainedModel

from bwm_pipelines.families.chameleon import ChameleonFamily

FAMILIES = {"chameleon": ChameleonFamily}


def family_class(model: PreTrainedModel) -> type[ChameleonFamily]:
    """The family adapter for a model.

    Raises:
        ValueError: no adapter is known for `model.config.model_type`.
    """
    model_type = model.config.model_type
    if model_type not in FAMILIES:
        raise ValueError(f"`model` is of the family {model_type!r}; known families: {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]
