"""Trains a base, a dynamics model (CDM) or a world model (CWM) on coded scenes, by a recipe.

    python -m training.fit training/recipes/playroom_cwm.yaml --checkpoint runs/playroom/new \
        --init runs/playroom/base/final --codes runs/playroom/codes/train --out runs/playroom/world

Token cross-entropy; an image token is predicted among image tokens and a word among words, as in sampling and scoring.
Several folders of codes are trained on as one (Eq. 1 of the paper). Runs on one process or under `accelerate launch`. A run
that was killed goes on from its newest whole checkpoint as if nothing had happened; `log.jsonl` holds the losses.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import concatenate_datasets
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

from bwm_pipelines import ChameleonWorldModelPipeline
from bwm_pipelines.families.chameleon import ChameleonFamily
from training.checkpoints import newest_sealed, seal
from training.recipe import Recipe
from training.recognition import weighted_loss
from training.scheduled_sampling import draw_answers
from training.sequences import IGNORED, SceneCollator, load_codes

SHARED_PREFIX_MINIMUM = 16  # tokens; below that a second forward pass costs more than it saves


def shared_prefix_length(ids: Tensor) -> int:
    """How many leading tokens all sequences of each scene have in common: int64 [scenes, actions, length] -> int."""
    if ids.shape[1] == 1:
        return 0
    differs = (ids != ids[:, :1]).any(1).any(0)
    return int(differs.int().argmax()) if differs.any() else ids.shape[-1] - 1


def forward_logits(
    model: torch.nn.Module, chameleon: ChameleonForConditionalGeneration, ids: Tensor, prefix: int, first: int
) -> Tensor:
    """Logits [scenes * actions, length - first, vocabulary] from position `first` on; the head is not computed before it.

    Args:
        model: what is called: `chameleon` itself, or what adapters and distribution wrapped around it.
        chameleon: the model whose image logits are switched on.
        ids: int64 [scenes, actions, length].
        prefix: how many tokens are read once a scene, all its sequences having them in common; at most `first`.
        first: the position that predicts the first label.
    """
    keep = ids.shape[-1] - first
    with ChameleonFamily.image_logits(chameleon):
        if prefix == 0:
            return model(input_ids=ids.flatten(0, 1), use_cache=False, logits_to_keep=keep).logits
        cache = model(input_ids=ids[:, 0, :prefix], use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(ids.shape[1])
        branches = ids[..., prefix:].flatten(0, 1)
        return model(input_ids=branches, past_key_values=cache, logits_to_keep=keep).logits


class SceneTrainer(Trainer):
    """Trainer over scenes with several actions each.

    Args:
        is_image_token: bool [vocabulary], tells the two modalities apart.
        own_draws: see `Recipe`.
    """

    def __init__(self, *args, is_image_token: Tensor, own_draws: float, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.is_image_token, self.own_draws = is_image_token, own_draws
        self.model_accepts_loss_kwargs = True  # the loss is divided by the weight sum of the whole step, as below

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, weights = inputs["labels"].flatten(0, 1), inputs["weights"].flatten(0, 1)
        first = int((labels != IGNORED).any(0).int().argmax()) - 1  # the position that predicts the first label
        labels, weights = labels[:, first + 1 :], weights[:, first + 1 :]
        ids, is_image = inputs["input_ids"], self.is_image_token.to(labels.device)
        prefix = self._shared_prefix(ids, first)

        def predict(ids: Tensor) -> Tensor:
            return forward_logits(model, self._chameleon(model), ids, prefix, first)[:, :-1]

        if self.own_draws:
            ids = draw_answers(
                lambda ids: predict(ids).masked_fill(~is_image, float("-inf")), ids, labels, self.own_draws
            )
        logits, predicted = predict(ids), labels != IGNORED
        chosen, targets = logits[predicted].float(), labels[predicted]
        chosen = chosen.masked_fill(is_image[targets, None] != is_image, float("-inf"))
        loss = weighted_loss(chosen, targets, weights[predicted], num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over the processes
        return (loss, {"logits": logits}) if return_outputs else loss

    def _shared_prefix(self, ids: Tensor, first: int) -> int:
        """What to read once a scene; nothing in several processes, as shards cannot run twice before a backward pass."""
        prefix = min(shared_prefix_length(ids), first)
        return prefix if prefix >= SHARED_PREFIX_MINIMUM and self.accelerator.num_processes == 1 else 0

    def _chameleon(self, model: torch.nn.Module) -> ChameleonForConditionalGeneration:
        model = self.accelerator.unwrap_model(model)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> Tensor:
        """The weight sum of one step: over its accumulated batches and all processes."""
        weight_sum = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(weight_sum).sum()


class Run(TrainerCallback):
    """Tells the collator the epoch, appends every log of the trainer to `log.jsonl`, and seals every checkpoint."""

    def __init__(self, out: Path, collator: SceneCollator) -> None:
        self.out, self.collator = out, collator

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.collator.epoch = int(state.epoch)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero:
            with (self.out / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")

    def on_save(self, args, state, control, **kwargs) -> None:
        PartialState().wait_for_everyone()  # every process saves files of its own
        if state.is_world_process_zero:
            seal(self.out / f"checkpoint-{state.global_step}")


def starting_model(recipe: Recipe, pipe: ChameleonWorldModelPipeline, init: str | None) -> torch.nn.Module:
    """What the recipe trains: `init` or the checkpoint's world model, its VQ encoder frozen, with LoRA if asked for."""
    model = pipe.world_model
    if init is not None:
        model = ChameleonForConditionalGeneration.from_pretrained(init, dtype=model.dtype)
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")  # a CPU's SDPA is slower in its backward pass
    model.model.vqmodel.requires_grad_(False)
    return get_peft_model(model, LoraConfig(**recipe.lora)) if recipe.lora else model


def train(
    recipe: Recipe, pipe: ChameleonWorldModelPipeline, model: torch.nn.Module, codes: list[str], out: Path
) -> None:
    """Trains `model` in place; `out` receives checkpoints, `log.jsonl` and in the end `final`."""
    family = pipe.family
    is_image_token = torch.zeros(len(family.tokenizer), dtype=torch.bool)
    is_image_token[family.image_token_ids] = True
    out.mkdir(parents=True, exist_ok=True)
    collator = SceneCollator(family, recipe, seed=recipe.trainer.get("seed", 0))
    trainer = SceneTrainer(
        model=model,
        is_image_token=is_image_token,
        own_draws=recipe.own_draws,
        train_dataset=concatenate_datasets([load_codes(folder) for folder in codes]),
        data_collator=collator,
        callbacks=[Run(out, collator)],
        args=TrainingArguments(
            output_dir=str(out),
            remove_unused_columns=False,
            report_to=[],
            ddp_find_unused_parameters=False,
            **{"save_total_limit": 2, "use_cpu": not torch.cuda.is_available(), **recipe.trainer},
        ),
    )
    with trainer.accelerator.main_process_first():  # it removes what is broken
        newest = newest_sealed(out)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    trainer.save_model(str(out / "final"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a YAML file, see training/recipe.py")
    parser.add_argument("--checkpoint", required=True, help="pipeline folder or Hub id: token layout, prompts, model")
    parser.add_argument("--init", help="folder of a model to start from instead of the world model")
    parser.add_argument("--codes", nargs="+", required=True, help="folders of coded scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log.jsonl and final")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="entries that replace the recipe's")
    parser.add_argument("--steps", type=int, help="instead of the recipe's number of steps or epochs")
    args = parser.parse_args()
    recipe = Recipe.read(args.recipe, args.set)
    recipe.trainer["seed"] = args.seed
    if args.steps is not None:
        recipe.trainer["max_steps"] = args.steps
    frozen_in_bf16 = recipe.lora is not None and recipe.trainer.get("bf16", False)
    dtype = torch.bfloat16 if frozen_in_bf16 else torch.float32
    pipe = ChameleonWorldModelPipeline.from_pretrained(args.checkpoint, dynamics_model=None, dtype=dtype)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # softmax makes such numbers, and CPUs are slow with them
    try:
        train(recipe, pipe, starting_model(recipe, pipe, args.init), args.codes, args.out)
    finally:
        torch.set_flush_denormal(False)


if __name__ == "__main__":
    main()
