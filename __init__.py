"""What ComfyUI imports where this repository stands in its folder `custom_nodes`. For Python, see `bwm_pipelines`."""

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The extension with the nodes, for ComfyUI."""
    from .comfy_nodes.extension import WorldModelExtension

    return WorldModelExtension()
