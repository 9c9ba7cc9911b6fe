"""The conversion itself: find the layouts, plan every tensor, write, read back, and only then rename."""

import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import VQModel
from torch import Tensor
from tqdm import tqdm
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from bwm_pipelines.adapters import ADAPTERS
from bwm_pipelines.conversion.adapter import adapter_plan
from bwm_pipelines.conversion.image_tokenizer import read_yaml, taming_plan, vq_model_config, vq_model_plan
from bwm_pipelines.conversion.language_model import (
    VQ_PREFIX,
    MetaWeights,
    meta_config,
    meta_plan,
    transformers_plan,
)
from bwm_pipelines.conversion.layouts import AdapterLayout, MetaLayout, TransformersLayout, find_layout
from bwm_pipelines.conversion.plan import Plan, check_exact
from bwm_pipelines.conversion.text_tokenizer import build_processor, read_tokenizer
from bwm_pipelines.conversion.verify import verify_logits, verify_tokens
from bwm_pipelines.conversion.weights import Weights, weights_of_folder
from bwm_pipelines.conversion.writer import PART_SIZE, copy_model, size_of, unfinished, write_model
from bwm_pipelines.loading import check_folder
from bwm_pipelines.pipelines.base import CheckpointPipeline

COMPONENTS = {"world": "world_model", "dynamics": "dynamics_model", "both": "world_model"}
READABLE = "A door opens, and the light of the morning falls into the room."
NOTICE = """Chameleon is licensed under the Chameleon Research License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.

The weights in this folder are Chameleon's or derive from them, converted by bwm-pipelines to another layout. Whatever a
model card says, the Chameleon Research License holds for them, and for what you derive from them: noncommercial research
only, and a copy of the licence for everyone you give them to. Its text:
https://github.com/facebookresearch/chameleon/blob/main/LICENSE
"""


class Source(NamedTuple):
    """A whole model as it lies, and what is to be made of it."""

    weights: Weights
    tokenizer: PreTrainedTokenizerFast
    config: ChameleonConfig
    plan: Plan
    vqgan: Weights
    vqgan_plan: Plan


def convert(
    source: str | Path,
    dest: str | Path,
    *,
    role: str = "world",
    dynamics: str | Path | None = None,
    base: str | Path | None = None,
    vqgan: str | Path | None = None,
    part_size: int = PART_SIZE,
    **defaults: Any,
) -> dict[str, Any]:
    """Write a pipeline folder from published weights, and prove it against them.

    Interrupted, it goes on where it was when it is called again. Nothing is left at `dest` unless everything is.

    Args:
        source: folder of a whole model in Meta's or transformers' layout, or of a PEFT adapter.
        dest: the folder to make.
        role: what `source` is: "world", "dynamics", or "both" for one whole model that is to play both parts.
        dynamics: folder of a dynamics model that goes beside a world model; an adapter if `source` is one.
        base: folder of the whole model that adapters were trained on; None where there are none.
        vqgan: Meta's `vqgan.ckpt`, with its yaml beside it, for a model without an image decoder.
        part_size: bytes of one safetensors file at most; about so much memory is needed.
        defaults: prompt templates and sampling defaults, as the pipeline's own arguments.

    Returns:
        What was written and measured: `components`, `vqgan_dtype` of the source, `code_agreement` (0-1),
        `reconstruction_psnr` in dB, and for each whole model `max_logit_difference` and `nats_per_token`.

    Raises:
        ImportError: an adapter is to be converted and peft is not installed.
        ValueError: an argument cannot work, or files are missing, damaged, of an unknown kind or not of one checkpoint.
    """
    if torch.__version__ < (2, 10):
        raise ValueError(
            f"`torch` {torch.__version__} cannot safely read checkpoints of others; install 2.10 or newer."
        )
    layouts, adapters = _parts(source, role, dynamics, base)
    models = {component: _read(layout, vqgan) for component, layout in layouts.items()}
    first = next(iter(models.values()))
    if any(model.tokenizer.get_vocab() != first.tokenizer.get_vocab() for model in models.values()):
        raise ValueError("`dynamics` has another vocabulary than `source`; give models of one tokenizer.")
    pipe = _pipeline(
        [*models, "dynamics_model"] if role == "both" else list(models), first.config, first.tokenizer, defaults
    )
    adapter_plans = {ADAPTERS[name]: adapter_plan(adapter, first.config) for name, adapter in adapters.items()}

    plans = [
        first.vqgan_plan,
        *(model.plan for model in models.values()),
        *(plan for plan, _ in adapter_plans.values()),
    ]
    recipe = {"role": role, "defaults": defaults, "part_size": part_size, "files": _stamps(plans)}
    with unfinished(Path(dest), recipe | {"adapters": list(adapter_plans)}) as folder:
        with tqdm(total=size_of(plans), desc="Writing", unit="B", unit_scale=True, disable=None) as bar:
            _write(folder, pipe, models, adapter_plans, part_size, bar)
        report = {
            "dest": str(dest),
            "components": [*models, *(f"adapters/{name}" for name in adapter_plans)],
            "vqgan_dtype": str(first.vqgan.specs[first.vqgan_plan["quantize.embedding.weight"].name].dtype)[6:],
            **verify_tokens(folder, next(iter(models)), pipe.family),
        }
        text, image = _example(pipe)
        for component, model in models.items():
            report[component] = verify_logits(folder / component, model.weights, text, image)
        if role == "both":
            copy_model(folder / "world_model", folder / "dynamics_model")
        check_folder(folder, ["vqgan", *models, *(["dynamics_model"] if role == "both" else [])], [])
    return report


def _write(
    folder: Path,
    pipe: CheckpointPipeline,
    models: dict[str, Source],
    adapters: dict[str, tuple[Plan, dict[str, Any]]],
    part_size: int,
    bar: tqdm,
) -> None:
    pipe.vqgan.save_config(folder / "vqgan")
    vqgan_plan = next(iter(models.values())).vqgan_plan
    write_model(folder / "vqgan", "diffusion_pytorch_model", vqgan_plan, part_size, bar)
    for component, model in models.items():
        model.config.save_pretrained(folder / component)
        write_model(folder / component, "model", model.plan, part_size, bar)
    for name, (plan, config) in adapters.items():
        write_model(folder / "adapters" / name, "adapter_model", plan, sys.maxsize, bar)
        (folder / "adapters" / name / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    pipe.processor.save_pretrained(folder / "processor")
    pipe.save_config(folder)
    (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")


def _parts(
    source: str | Path, role: str, dynamics: str | Path | None, base: str | Path | None
) -> tuple[dict[str, MetaLayout | TransformersLayout], dict[str, AdapterLayout]]:
    """The whole models and the adapters, each by its component."""
    if role not in COMPONENTS:
        raise ValueError(f"`role` must be one of {', '.join(COMPONENTS)}, got {role!r}.")
    if dynamics is not None and role != "world":
        raise ValueError(f"`dynamics` goes beside a world model, but `role` is {role!r}; leave one of them out.")
    found = {COMPONENTS[role]: find_layout(Path(source))}
    if dynamics is not None:
        found["dynamics_model"] = find_layout(Path(dynamics), "dynamics")
    adapters = {component: layout for component, layout in found.items() if isinstance(layout, AdapterLayout)}
    if not adapters:
        if base is not None:
            raise ValueError(f"`base` is for adapters, but {str(source)!r} is a whole model; leave it out.")
        return found, {}
    if len(adapters) < len(found):
        raise ValueError("`dynamics` and `source` must both be adapters of one base, or both whole models.")
    if role == "both":
        raise ValueError(
            f"`role` is 'both', but {str(source)!r} is an adapter, which was trained for one of them; say which."
        )
    if base is None:
        name = next(iter(adapters.values())).config.get("base_model_name_or_path")
        raise ValueError(f"`base` is missing: the adapter was trained on {name!r}; give the folder of that model.")
    whole = find_layout(Path(base), "base")
    if not isinstance(whole, AdapterLayout):
        return {"world_model": whole}, adapters
    raise ValueError(f"`base` {str(base)!r} is an adapter itself; give the folder of a whole model.")


def _read(layout: MetaLayout | TransformersLayout, vqgan: str | Path | None) -> Source:
    tokenizer = read_tokenizer(layout.tokenizer)
    file = Path(vqgan) if vqgan is not None else layout.vqgan if isinstance(layout, MetaLayout) else None
    images = None if file is None else Weights([file])
    vq_config = None if file is None else read_yaml(file.with_suffix(".yaml"))
    if isinstance(layout, MetaLayout):
        weights = MetaWeights([Weights([rank]) for rank in layout.ranks])
        config = meta_config(layout.params, weights, vq_config, tokenizer)
        plan = meta_plan(weights, config) | taming_plan(images)
    else:
        weights = weights_of_folder(layout.folder)
        config = ChameleonConfig.from_pretrained(layout.folder)
        _check_vocabulary(config, tokenizer, layout)
        plan = transformers_plan(weights)
        if images is not None:
            plan = _with_vqgan(plan, taming_plan(images), file)
            config.vq_config = vq_config
    config.architectures = ["ChameleonForConditionalGeneration"]
    prefix = "" if images is not None else VQ_PREFIX
    if not any(name.startswith(f"{prefix}decoder.") for name in (images or weights).specs):
        raise ValueError(
            f"`vqgan` is needed: {(images or weights).files[0]} has no image decoder, which transformers' own checkpoints "
            "such as facebook/chameleon-7b leave out; give the tokenizer/vqgan.ckpt of Meta's download or of "
            "GAIR/Anole-7b-v0.1, with vqgan.yaml beside it."
        )
    with torch.device("meta"):
        model, tokens = ChameleonForConditionalGeneration(config), VQModel(**vq_model_config(config.vq_config))
    check_exact(plan, model.state_dict(), str(layout.folder))
    vqgan_plan = vq_model_plan(images or weights, config.vq_config, prefix)
    check_exact(vqgan_plan, tokens.state_dict(), str((images or weights).files[0]))
    return Source(weights, tokenizer, config, plan, images or weights, vqgan_plan)


def _check_vocabulary(config: ChameleonConfig, tokenizer: PreTrainedTokenizerFast, layout: TransformersLayout) -> None:
    vocabulary = tokenizer.get_vocab()
    if not (config.vocabulary_map or {}).items() <= vocabulary.items():
        raise ValueError(
            f"`source`: {layout.tokenizer} does not have the tokens of config.json beside it; get both again."
        )
    if max(vocabulary.values()) >= config.vocab_size:
        raise ValueError(
            f"`source`: {layout.tokenizer} has more tokens than the {config.vocab_size} of config.json; get both again."
        )
    config.vocabulary_map = vocabulary


def _with_vqgan(plan: Plan, images: Plan, file: Path) -> Plan:
    """The plan with the image encoder of a `vqgan.ckpt`, which must be the same but for rounding."""
    own = {name: origin for name, origin in plan.items() if name.startswith(VQ_PREFIX)}
    for name in own.keys() & images.keys():
        ours, theirs = own[name], images[name]
        with ours.weights.open() as read, theirs.weights.open() as read_file:
            a, b = read(ours.name).float(), read_file(theirs.name).float()
            if a.shape != b.shape or not torch.allclose(a, b, rtol=2**-7, atol=1e-6):
                raise ValueError(
                    f"`vqgan` {str(file)!r} is another image tokenizer than that of `source`: {name} differs."
                )
    return {name: origin for name, origin in plan.items() if name not in own} | images


def _pipeline(
    components: list[str], config: ChameleonConfig, tokenizer: PreTrainedTokenizerFast, defaults: dict[str, Any]
) -> CheckpointPipeline:
    """The pipeline without weights: it checks itself, and knows what `model_index.json` says."""
    pipeline = ChameleonWorldModelPipeline if "world_model" in components else DynamicsVerifierPipeline
    unknown = defaults.keys() - inspect.signature(pipeline.__init__).parameters.keys()
    if unknown:
        raise ValueError(f"`{min(unknown)}` is no default of {pipeline.__name__}; leave it out.")
    with torch.device("meta"):
        model, vqgan = ChameleonForConditionalGeneration(config), VQModel(**vq_model_config(config.vq_config))
    size = config.vq_config.resolution
    grid = size // 2 ** (len(config.vq_config.channel_multiplier) - 1)
    processor = build_processor(tokenizer, size, grid**2)
    return pipeline(**dict.fromkeys(components, model), processor=processor, vqgan=vqgan, image_size=size, **defaults)


def _example(pipe: CheckpointPipeline) -> tuple[Tensor, Tensor]:
    """A sentence, int64 [S], and a few image tokens, int64 [T]."""
    processor, images = pipe.processor, pipe.family.image_token_ids
    text = torch.tensor(pipe.processor.tokenizer(READABLE).input_ids)
    some = images[torch.linspace(0, len(images) - 1, 16).long()].tolist()
    return text, torch.tensor([processor.image_start_token_id, *some, processor.image_end_token_id])


def _stamps(plans: Iterable[Plan]) -> list[list[str | int]]:
    """Which files plans read, and whether they are still the same."""
    files = {file.absolute() for plan in plans for origin in plan.values() for file in origin.weights.files}
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)]
