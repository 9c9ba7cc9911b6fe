"""What a user who clones the pack gets to see, before anything runs."""

import json
import os
import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.comfy.fetch_server import CLI, NEWEST, PYTHON, ROOT, server_folder
from tests.comfy.server import PACK
from tests.comfy.workflows import EXAMPLES

NODES = {
    "BWMLoadWorldModel",
    "BWMImagineNextImage",
    "BWMVerifyNextImages",
    "BWMSelectTopCandidates",
    "BWMExplainScore",
    "BWMNameTheAction",
}
LANGUAGES = ["en", "fr", "zh"]


@pytest.fixture(scope="session")
def infos(server):
    return {name: info for name, info in server.get("/object_info").items() if name.startswith("BWM")}


def each_input(info):
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            yield name, kind, options[0] if options else {}


def test_server_is_of_the_version_that_is_meant(server):
    assert server.get("/system_stats")["system"]["comfyui_version"] == server.version


def test_every_node_is_there(infos, server):
    assert set(infos) == NODES
    assert {info["category"] for info in infos.values()} == {"world model"}
    assert f"Cannot import {server.folder}" not in server.log.read_text()


def test_every_input_and_output_has_a_tooltip(infos):
    for name, info in infos.items():
        assert info["display_name"] and info["description"] and info["search_aliases"]
        assert all(options["tooltip"] for _, _, options in each_input(info)), name
        assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"]), name


def test_words_are_the_only_free_text(infos):
    """A text widget that reached the file system would be a hole: `/prompt` takes graphs from anywhere."""
    texts = {(name, slot) for name, info in infos.items() for slot, kind, _ in each_input(info) if kind == "STRING"}
    assert {slot for _, slot in texts} == {"action", "prompts"}


def test_drop_downs_are_closed_lists(infos):
    combos = {slot: options for info in infos.values() for slot, kind, options in each_input(info) if kind == "COMBO"}
    assert combos["checkpoint"]["options"] == ["playroom (embedded)", "tiny"]
    assert combos["dtype"]["options"] == ["as saved", "float32", "bfloat16"]
    assert set(combos) == {"checkpoint", "dtype"}


def test_seed_can_change_after_each_run(infos):
    seed = {name: options for name, _, options in each_input(infos["BWMImagineNextImage"])}["seed"]
    assert seed["control_after_generate"] and seed["max"] == 2**64 - 1


def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs(infos, server):
    for name, info in infos.items():
        page = server.download(f"/extensions/{PACK}/docs/{name}.md").decode()
        assert page.startswith(f"# {info['display_name']}\n")
        named = re.findall(r"\*\*(.+?)\*\*", page)
        assert {slot for slot, _, _ in each_input(info)} | set(info["output_name"]) <= set(named), name


def test_example_workflows_are_offered_with_pictures(server):
    names = [path.stem for path in EXAMPLES]
    assert len(names) == 5
    assert sorted(server.get("/workflow_templates")[PACK]) == names
    for name in names:
        assert server.download(f"/api/workflow_templates/{PACK}/{name}.jpg")[:2] == b"\xff\xd8"


def definitions(infos):
    """What a locale holds for the nodes, in the words of their schemas."""
    return {
        node: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                slot: {"name": options.get("display_name", slot), "tooltip": options["tooltip"]}
                for slot, _, options in each_input(info)
            },
            "outputs": {
                str(i): {"name": name, "tooltip": tooltip}
                for i, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
            },
        }
        for node, info in infos.items()
    }


def read_locale(language):
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_english_locale_is_the_schemas_own_words(infos):
    assert read_locale("en") == definitions(infos)


@pytest.mark.parametrize("language", LANGUAGES)
def test_locale_is_served_and_has_every_entry(infos, server, language):
    def shape(entry):
        return {key: shape(value) for key, value in entry.items()} if isinstance(entry, dict) else bool(entry)

    served = server.get("/i18n")[language]["nodeDefs"]
    assert {name: served[name] for name in NODES} == read_locale(language)
    assert shape(read_locale(language)) == shape(definitions(infos))


LOAD_THE_PACK = """
import asyncio, importlib.util, sys

tree, pack = sys.argv[1:]
sys.path[:0] = [tree, f"{pack}/tests/comfy"]
import torchvision_schemas
from comfy.cli_args import args
args.cpu = True
import comfy.model_patcher, comfy_api.latest, comfy_execution.graph  # what ComfyUI itself has loaded by then

modules, path = set(sys.modules), list(sys.path)
spec = importlib.util.spec_from_file_location("pack", f"{pack}/__init__.py")
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
assert set(sys.modules) - modules == {"pack"}, "the import itself loads something"

async def load():
    extension = await sys.modules["pack"].comfy_entrypoint()
    await extension.on_load()
    return await extension.get_node_list()

assert len(asyncio.run(load())) == 6
assert sys.path == path, "the pack changes sys.path"
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - modules}))
"""


def test_loading_the_pack_imports_no_heavy_library(fetched):
    words = [PYTHON, "-c", LOAD_THE_PACK, server_folder(NEWEST), ROOT]
    loaded = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    assert "bwm_pipelines" in loaded
    assert not {"diffusers", "transformers", "accelerate", "huggingface_hub"} & set(loaded)


def test_requirements_are_the_packages_own_without_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert lines == [line for line in project["dependencies"] if Requirement(line).name != "torch"]
    operators = {specifier.operator for line in lines for specifier in Requirement(line).specifier}
    assert operators == {">="}


def test_comfy_cli_finds_the_pack_valid(fetched, tmp_path):
    words = [CLI, "--skip-prompt", "node", "validate"]
    environment = os.environ | {"PATH": f"{CLI.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    assert result.returncode == 0 and "error" not in said.lower(), said
