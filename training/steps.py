"""The steps of a training on pictures, and the checkpoints from which a killed one goes on as if nothing had happened."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader


def new_accelerator(*, cpu: bool, bf16: bool, seed: int) -> Accelerator:
    """An accelerator whose loaders shuffle by seed and epoch alone, so that a killed run sees what an undisturbed one sees."""
    order = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed)
    return Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no", dataloader_config=order)


def remaining_batches(
    accelerator: Accelerator, loader: DataLoader, done: int, steps: int
) -> Iterator[tuple[int, Any]]:
    """The number of each step from `done` up to `steps`, counted from 0, and its batch, over as many epochs as it takes."""
    while done < steps:
        epoch, skipped = divmod(done, len(loader))
        loader.set_epoch(epoch)
        for batch in accelerator.skip_first_batches(loader, skipped) if skipped else loader:
            yield done, batch
            done += 1
            if done == steps:
                return


def save(accelerator: Accelerator, out: Path, step: int) -> None:
    """Writes the whole training state under a temporary name, renames it, then drops older ones."""
    temporary, final = out / "checkpoint.tmp", out / f"checkpoint-{step}"
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    os.replace(temporary, final)
    for old in out.glob("checkpoint-*"):
        if old != final:
            shutil.rmtree(old)


def resume(accelerator: Accelerator, out: Path) -> int:
    """Loads the newest complete training state; returns how many steps it has done, 0 if there is none."""
    steps = sorted(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))
    shutil.rmtree(out / "checkpoint.tmp", ignore_errors=True)
    if not steps:
        return 0
    accelerator.load_state(str(out / f"checkpoint-{steps[-1]}"))
    return steps[-1]
