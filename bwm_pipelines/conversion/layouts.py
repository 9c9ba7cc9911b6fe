"""The layouts in which Chameleon weights exist, and how a folder shows which one it has.

Meta (also GAIR's Anole)    models/7b/{params.json, consolidate_params.json, consolidated.pth or .00.pth, .01.pth ...}
                            tokenizer/{text_tokenizer.json, vqgan.ckpt, vqgan.yaml}
transformers                config.json, tokenizer.json, model.safetensors or its parts or pytorch_model.bin
PEFT                        adapter_config.json, adapter_model.safetensors or .bin
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

RANK_FILE = re.compile(r"consolidated\.(\d\d)\.pth")
KNOWN = "Meta's (params.json and consolidated.pth), transformers' (config.json) and PEFT's (adapter_config.json)"


class MetaLayout(NamedTuple):
    """`ranks` are the files of the model-parallel ranks in their order, `params` their merged parameters."""

    folder: Path
    params: dict[str, Any]
    ranks: list[Path]
    tokenizer: Path
    vqgan: Path


class TransformersLayout(NamedTuple):
    folder: Path
    tokenizer: Path


class AdapterLayout(NamedTuple):
    folder: Path
    config: dict[str, Any]
    weights: Path


Layout = MetaLayout | TransformersLayout | AdapterLayout


def find_layout(source: Path, argument: str = "source") -> Layout:
    """Which layout a folder has, and where its parts lie.

    Args:
        source: the folder of the weights; of Meta's layout also the folder above `models` and `tokenizer`.
        argument: the name that errors give it.

    Raises:
        ValueError: no folder, no known layout, or one with a part missing.
    """
    if not source.is_dir():
        raise ValueError(
            f"`{argument}` {str(source)!r} is no folder here; download the checkpoint and give its folder."
        )
    if (source / "adapter_config.json").is_file():
        return _adapter(source)
    if (source / "model_index.json").is_file():
        raise ValueError(f"`{argument}` {str(source)!r} is a pipeline folder already; load it with from_pretrained.")
    if (source / "config.json").is_file():
        model_type = read_json(source / "config.json").get("model_type")
        if model_type != "chameleon":
            raise ValueError(f"`{argument}` {str(source)!r} holds a {model_type} model; give a Chameleon.")
        return TransformersLayout(source, _part(source / "tokenizer.json"))
    return _meta(source, argument)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_part(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"`source`: {path} is damaged; get it again.") from None


def _meta(source: Path, argument: str) -> MetaLayout:
    models = [
        path.parent
        for path in (source / "params.json", *sorted(source.glob("models/*/params.json")))
        if path.is_file()
    ]
    if not models:
        raise ValueError(f"`{argument}` {str(source)!r} has none of the known layouts: {KNOWN}.")
    if len(models) > 1:
        names = ", ".join(str(folder) for folder in models)
        raise ValueError(f"`{argument}` {str(source)!r} holds several models; give one of {names}.")
    folder = models[0]
    consolidated = folder / "consolidate_params.json"
    params, parallel = read_json(folder / "params.json"), read_json(consolidated) if consolidated.is_file() else {}
    tokenizer = next(
        (above / "tokenizer" for above in (folder, *folder.absolute().parents[:2]) if (above / "tokenizer").is_dir()),
        None,
    )
    if tokenizer is None:
        raise ValueError(
            f"`{argument}`: there is no folder tokenizer beside {folder} or above; get the whole checkpoint."
        )
    return MetaLayout(
        folder,
        params | params.get("model", {}) | parallel,
        _ranks(folder, parallel.get("model_parallel_size")),
        _part(tokenizer / "text_tokenizer.json"),
        tokenizer / "vqgan.ckpt",
    )


def _ranks(folder: Path, expected: int | None) -> list[Path]:
    if (folder / "consolidated.pth").is_file():
        found = [folder / "consolidated.pth"]
    else:
        found = sorted(path for path in folder.iterdir() if RANK_FILE.fullmatch(path.name))
    numbers = [int(name[1]) for path in found if (name := RANK_FILE.fullmatch(path.name))]
    count = max([expected or 1, *(number + 1 for number in numbers)])
    if len(found) != count:
        names = "consolidated.pth" if count == 1 else f"consolidated.00.pth to consolidated.{count - 1:02d}.pth"
        raise ValueError(
            f"`source`: {folder} has {len(found)} of the {count} files {names}; get the whole checkpoint."
        )
    return found


def _adapter(source: Path) -> AdapterLayout:
    config = read_json(source / "adapter_config.json")
    weights = next(
        (source / name for name in ("adapter_model.safetensors", "adapter_model.bin") if (source / name).is_file()),
        None,
    )
    if weights is None:
        raise ValueError(f"`source`: {source} has no adapter_model.safetensors; get the whole adapter.")
    return AdapterLayout(source, config, weights)


def _part(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"`source`: {path} is missing; get the whole checkpoint.")
    return path
