"""Importing this lets torchvision's published build be imported beside a torch without CUDA.

That build registers its operators in a library that needs CUDA, and asks for the schemas of two of them, which are
declared here. ComfyUI calls neither.
"""

import torch

library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
