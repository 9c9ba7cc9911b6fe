"""Conversions that end early go on, and those of large models fit into little memory."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bwm_pipelines.conversion import convert, writer
from tests.conversion.checkpoints import meta_params, meta_ranks, write_meta
from tests.conversion.conftest import PART_SIZE


def files_of(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_conversion_goes_on(meta, tmp_path, monkeypatch, error, converted):
    saved, count = writer.save_file, 0

    def break_off(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 5:
            raise error
        saved(*args, **kwargs)

    monkeypatch.setattr(writer, "save_file", break_off)
    with pytest.raises(error):
        convert(meta.folder, tmp_path / "out", part_size=PART_SIZE)
    unfinished = tmp_path / ".out.unfinished"
    before = files_of(unfinished)
    assert len(before) == 4 and not (tmp_path / "out").exists()
    damaged = next(unfinished.rglob("*00001*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])

    convert(meta.folder, tmp_path / "out", part_size=PART_SIZE)
    after = files_of(tmp_path / "out")
    assert [name for name in before if after[name] != before[name]] == [damaged.name]
    assert not unfinished.exists()
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert file.read_bytes() == (converted / file.relative_to(tmp_path / "out")).read_bytes()


def test_conversion_of_something_else_begins_again(meta, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "save_file", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert(meta.folder, tmp_path / "out")
    stale = tmp_path / ".out.unfinished" / "stale"
    stale.touch()
    with pytest.raises(KeyboardInterrupt):
        convert(meta.folder, tmp_path / "out")
    assert stale.exists()
    with pytest.raises(KeyboardInterrupt):
        convert(meta.folder, tmp_path / "out", temperature=0.5)
    assert not stale.exists()


def test_killed_conversion_goes_on(meta, tmp_path):
    program = f"""
import sys, time
from bwm_pipelines.conversion import convert, writer
save = writer.save_file
def slowly(*args, **kwargs):
    save(*args, **kwargs)
    print("saved", flush=True)
    time.sleep(60 if len(sys.argv) > 1 else 0)
writer.save_file = slowly
convert({str(meta.folder)!r}, {str(tmp_path / "out")!r}, part_size={PART_SIZE})
"""
    with subprocess.Popen([sys.executable, "-c", program, "slowly"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"saved\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not list((tmp_path / "out").rglob(".*")) and done.stdout.count("saved") > 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_is_that_of_a_part_not_of_the_model(meta, tmp_path):
    """200 MB in bfloat16 need little more in parts of 20 MB, and all of it in one part."""
    params = meta_params(dim=512, n_layers=40)
    vocab_size = len(meta.ranks[0]["output.weight"])
    folder = write_meta(tmp_path / "large", params, meta_ranks(params, vocab_size), meta.vqgan)
    program = f"""
import torch
from pathlib import Path
from bwm_pipelines.conversion import convert
torch.set_num_threads(1)
def memory(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind)) // 1024
convert({str(meta.folder)!r}, {str(tmp_path / "small")!r})  # what libraries need is not counted
for part_size in (20_000_000, 1_000_000_000):
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    convert({str(folder)!r}, f"{tmp_path}/out{{part_size}}", part_size=part_size)
    print(memory("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    in_parts, at_once = map(int, done.stdout.split())
    assert in_parts < 100
    assert at_once > 200
