"""`import bwm_pipelines` is fast: it brings neither torch nor diffusers."""

import subprocess
import sys

import pytest

import bwm_pipelines


def test_import_brings_no_heavy_library():
    program = (
        "import sys, bwm_pipelines; bwm_pipelines.default_checkpoint(); dir(bwm_pipelines); "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in bwm_pipelines.__all__:
        assert getattr(bwm_pipelines, name).__name__ == name
        assert name in dir(bwm_pipelines)


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = bwm_pipelines.Nothing
