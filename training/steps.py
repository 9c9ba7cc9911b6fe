"""The steps of a training on pictures, and the checkpoints from which a killed one goes on as if nothing had happened."""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup


def options(*, lr: float) -> argparse.ArgumentParser:
    """The command line's options of every such training, to be a parent of its parser."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and the finished model")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=8, help="pictures a step and process")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument(
        "--bf16", action="store_true", help="mixed precision; slower on a CPU without bf16 instructions"
    )
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even if there is a GPU")
    return parser


def new_accelerator(*, cpu: bool, bf16: bool, seed: int) -> Accelerator:
    """An accelerator whose loaders shuffle by seed and epoch alone, so that a killed run sees what an undisturbed one sees.

    Where there is no GPU, `cpu` is implied: without it, the processes of `torchrun` would each train alone.
    """
    order = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed)
    cpu = cpu or not torch.accelerator.is_available()
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


def learn(
    accelerator: Accelerator,
    args: argparse.Namespace,
    module: torch.nn.Module,
    loader: DataLoader,
    loss_of: Callable[[torch.nn.Module, Any], torch.Tensor],
) -> None:
    """Trains a module by `options`, from the newest complete training state on: AdamW, with a cosine of the learning rate.

    Args:
        accelerator: of `new_accelerator`.
        args: what `options` read.
        module: whose parameters learn.
        loader: of batches, shuffled.
        loss_of: the loss of the module, as `accelerator` prepared it, on a batch; its random numbers follow from seed and step.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    module, optimizer, loader = accelerator.prepare(module, optimizer, loader)
    accelerator.register_for_checkpointing(schedule)
    first = resume(accelerator, args.out)
    bar = tqdm(total=args.steps, initial=first, unit="step", mininterval=10, disable=not accelerator.is_main_process)
    for step, batch in remaining_batches(accelerator, loader, first, args.steps):
        torch.manual_seed(args.seed + step)
        loss = loss_of(module, batch)
        descend(accelerator, loss, module, optimizer, schedule)
        done = step + 1
        bar.update()
        if done % args.log_every == 0 and accelerator.is_main_process:
            log(args.out, done, loss, bar)
        if done % args.save_every == 0 or done == args.steps:
            save(accelerator, args.out, done)


def log(out: Path, step: int, loss: torch.Tensor, bar: tqdm) -> None:
    row = {"step": step, "loss": float(loss.detach())}
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    bar.set_postfix(loss=f"{row['loss']:.4f}")


def descend(
    accelerator: Accelerator,
    loss: torch.Tensor,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """One step of the optimizer and its schedule, with gradients of norm 1 at most."""
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


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
