"""Published Chameleon weights, in any layout in which they exist, become a folder that `from_pretrained` reads.

convert("Anole-7b-v0.1", "anole")
"""

from bwm_pipelines.conversion.pipeline import convert

__all__ = ["convert"]
