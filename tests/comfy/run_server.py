"""Run a ComfyUI tree on a CPU: `python run_server.py TREE ARGUMENTS`.

torchvision's published build registers its operators in a library that needs CUDA. Importing it asks for the schemas of
two of them, which are declared here; ComfyUI calls neither.
"""

import runpy
import sys

import torch

library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

tree = sys.argv.pop(1)
sys.path[0] = tree
runpy.run_path(f"{tree}/main.py", run_name="__main__")
