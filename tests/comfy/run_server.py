"""Run a ComfyUI tree on a CPU: `python run_server.py TREE ARGUMENTS`."""

import runpy
import sys

import torchvision_schemas  # noqa: F401 (it stands beside this script)

tree = sys.argv.pop(1)
sys.path[0] = tree
runpy.run_path(f"{tree}/main.py", run_name="__main__")
