"""Example workflows as the frontend saves them, and the prompts it makes of them."""

import json
from pathlib import Path
from typing import Any

from tests.comfy.fetch_server import ROOT

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"MarkdownNote", "Note"}


def as_prompt(workflow: Path, object_info: dict) -> dict[str, Any]:
    """The API prompt of a saved workflow; the browser's test holds it against the frontend's own."""
    saved = json.loads(workflow.read_text(encoding="utf-8"))
    links = {link[0]: [str(link[1]), link[2]] for link in saved["links"]}
    return {
        str(node["id"]): {"class_type": node["type"], "inputs": _inputs(node, links, object_info[node["type"]])}
        for node in saved["nodes"]
        if node["type"] not in NOTES
    }


def nodes_of(prompt: dict, class_type: str) -> list[str]:
    """Ids of the nodes of a class."""
    return [key for key, node in prompt.items() if node["class_type"] == class_type]


def consumers(prompt: dict, source: str, output: int, class_type: str) -> list[str]:
    """Ids of the nodes of a class that are connected to an output of another."""
    return [key for key in nodes_of(prompt, class_type) if [source, output] in prompt[key]["inputs"].values()]


def _inputs(node: dict, links: dict, info: dict) -> dict[str, Any]:
    values = iter(node.get("widgets_values") or [])
    inputs = {}
    for name, options in _widgets(info):
        inputs[name] = next(values)
        if options.get("control_after_generate"):
            next(values)
    inputs |= {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
    return inputs


def _widgets(info: dict) -> list[tuple[str, dict]]:
    """Names and options of the inputs that have a widget, in its order."""
    found = []
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            options = options[0] if options else {}
            if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
                found.append((name, options))
    return found
