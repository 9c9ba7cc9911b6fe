"""The extension that ComfyUI loads: prepares what the nodes need and lists them."""

import importlib.util
import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

from . import checkpoints


class WorldModelExtension(ComfyExtension):
    async def on_load(self) -> None:
        _provide_library()
        checkpoints.register_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .explain import ExplainScore
        from .imagine import ImagineNextImage
        from .load import LoadWorldModel
        from .name import NameTheAction
        from .select import SelectTopCandidates
        from .verify import VerifyNextImages

        return [
            LoadWorldModel,
            ImagineNextImage,
            VerifyNextImages,
            SelectTopCandidates,
            ExplainScore,
            NameTheAction,
        ]


def _provide_library() -> None:
    """Make `import bwm_pipelines` find the copy beside this folder.

    ComfyUI clones a pack and installs its requirements, not the pack itself; `sys.path` belongs to all packs.
    """
    if "bwm_pipelines" in sys.modules:
        return
    folder = Path(__file__).parent.parent / "bwm_pipelines"
    spec = importlib.util.spec_from_file_location(folder.name, folder / "__init__.py")
    sys.modules[folder.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[folder.name])
