"""Trains the base, and from it the dynamics model (CDM) and the world model (CWM), on coded scenes.

    python -m training.fit base --codes runs/playroom/codes/train --vqgan runs/playroom/tokenizer/vqgan --out runs/playroom/base
    python -m training.fit dynamics --init runs/playroom/base/final ... --out runs/playroom/dynamics
    python -m training.fit world --init runs/playroom/base/final ... --out runs/playroom/world

Token cross-entropy; an image token is predicted among image tokens and a word among words, as in sampling and scoring.
The world model's tokens count by how much their patch changes (Eq. 2); `--floor 1` gives the plain loss.
Runs on one process or under `accelerate launch`. A run that was killed goes on from its newest complete checkpoint;
`log.jsonl` holds the losses.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import get_args

import torch
from diffusers import VQModel
from torch import Tensor
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bwm_pipelines.families.chameleon import ChameleonFamily
from training.playroom.actions import ALL_SENTENCES
from training.recognition import Normalisation, RecognitionWeights, weighted_loss
from training.sequences import IGNORED, OBJECTIVES, SceneCollator, load_codes
from training.text_tokenizer import build_processor, build_tokenizer

# The action stands before the image: every token of the before image is then read in its light, and a token of the after
# image finds its place in the before image at one constant distance. Far easier to learn for a small model.
FORWARD_PROMPT = "{action}<image>"
INVERSE_PROMPT = "<image><image>"
VOCABULARY = 1024
SHARED_PREFIX_MINIMUM = 16  # tokens; below that a second forward pass costs more than it saves


def build_family(vqgan: VQModel, image_size: int = 96) -> ChameleonFamily:
    """Token layout of playroom checkpoints around a trained image tokenizer."""
    tokens = (image_size // 2 ** (len(vqgan.config.block_out_channels) - 1)) ** 2
    tokenizer = build_tokenizer(ALL_SENTENCES, num_codes=vqgan.config.num_vq_embeddings, vocab_size=VOCABULARY)
    processor = build_processor(tokenizer, image_size=image_size, num_image_tokens=tokens)
    return ChameleonFamily(
        processor,
        vqgan,
        forward_prompt=FORWARD_PROMPT,
        inverse_prompt=INVERSE_PROMPT,
        image_size=image_size,
        mask_image_logits=True,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, width: int, layers: int, positions: int
) -> ChameleonForConditionalGeneration:
    """A small stock Chameleon. Its built-in VQ encoder is as small as it can be: codes always come from the `vqgan`."""
    config = ChameleonConfig(
        vocab_size=len(tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "embed_dim": 8, "latent_channels": 8,
                   "num_embeddings": 8, "resolution": 8, "attn_type": "none"},
    )  # fmt: skip
    return ChameleonForConditionalGeneration(config)


def shared_prefix_length(ids: Tensor) -> int:
    """How many leading tokens all sequences of each scene have in common: int64 [scenes, actions, length] -> int."""
    differs = (ids != ids[:, :1]).any(1).any(0)
    return int(differs.int().argmax()) if differs.any() else ids.shape[-1] - 1


def forward_logits(model: ChameleonForConditionalGeneration, ids: Tensor, first: int) -> Tensor:
    """Logits [scenes * actions, length - first, vocabulary] from position `first` on; the head is not computed before it.

    A long prefix that the sequences of each scene have in common is read once a scene.
    """
    prefix, keep = min(shared_prefix_length(ids), first), ids.shape[-1] - first
    with ChameleonFamily.image_logits(unwrap(model)):
        if prefix < SHARED_PREFIX_MINIMUM:
            return model(input_ids=ids.flatten(0, 1), use_cache=False, logits_to_keep=keep).logits
        cache = model(input_ids=ids[:, 0, :prefix], use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(ids.shape[1])
        branches = ids[..., prefix:].flatten(0, 1)
        return model(input_ids=branches, past_key_values=cache, logits_to_keep=keep).logits


def unwrap(model: torch.nn.Module) -> ChameleonForConditionalGeneration:
    return getattr(model, "module", model)


class SceneTrainer(Trainer):
    """Trainer over scenes with several actions each; `is_image_token` [vocabulary] tells the two modalities apart."""

    def __init__(self, *args, is_image_token: Tensor, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.is_image_token = is_image_token
        self.model_accepts_loss_kwargs = True  # the loss is divided by the weight sum of the whole step, as below

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, weights = inputs["labels"].flatten(0, 1), inputs["weights"].flatten(0, 1)
        first = int((labels != IGNORED).any(0).int().argmax()) - 1  # the position that predicts the first label
        logits, labels, weights = (
            forward_logits(model, inputs["input_ids"], first),
            labels[:, first + 1 :],
            weights[:, first + 1 :],
        )
        predicted = labels != IGNORED
        chosen, targets = logits[:, :-1][predicted].float(), labels[predicted]
        is_image = self.is_image_token.to(targets.device)
        chosen = chosen.masked_fill(is_image[targets, None] != is_image, float("-inf"))
        loss = weighted_loss(chosen, targets, weights[predicted], num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over the processes
        return (loss, {"logits": logits}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> Tensor:
        """The weight sum of one step: over its accumulated batches and all processes."""
        weight_sum = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(weight_sum).sum()


class LogLines(TrainerCallback):
    """Appends every log of the trainer to `log.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def newest_complete_checkpoint(out: Path) -> str | None:
    """The newest checkpoint whose last-written file can be read; broken ones are removed."""
    for path in sorted(out.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(path)
        else:
            return str(path)
    return None


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vqgan = VQModel.from_pretrained(args.vqgan)
    family = build_family(vqgan)
    tokenizer = family.processor.tokenizer
    if args.init:
        model = ChameleonForConditionalGeneration.from_pretrained(args.init)
    else:
        model = build_model(tokenizer, args.width, args.layers, positions=512)
    model.model.vqmodel.requires_grad_(False)
    is_image_token = torch.zeros(len(tokenizer), dtype=torch.bool)
    is_image_token[family.image_token_ids] = True
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = SceneTrainer(
        model=model,
        is_image_token=is_image_token,
        train_dataset=load_codes(args.codes),
        data_collator=SceneCollator(
            family,
            args.objective,
            args.actions_per_scene,
            tokenizer.pad_token_id,
            RecognitionWeights(args.normalisation, args.floor if args.objective == "world" else 1.0, args.clip),
            args.action_dropout,
        ),
        callbacks=[LogLines(args.out / "log.jsonl")],
        args=TrainingArguments(
            output_dir=str(args.out),
            max_steps=args.steps,
            per_device_train_batch_size=args.scenes,
            learning_rate=args.lr,
            # The base goes on being trained, as dynamics and world model, so its rate is not brought down.
            lr_scheduler_type="constant_with_warmup" if args.objective == "base" else "cosine",
            warmup_steps=min(100, args.steps // 10),
            weight_decay=0.02,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            logging_steps=args.log_every,
            save_steps=args.save_every,
            save_total_limit=2,
            remove_unused_columns=False,
            use_cpu=args.cpu,
            seed=args.seed,
            report_to=[],
            ddp_find_unused_parameters=False,
        ),
    )
    trainer.train(resume_from_checkpoint=newest_complete_checkpoint(args.out))
    trainer.save_model(str(args.out / "final"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objective", choices=OBJECTIVES)
    parser.add_argument("--codes", type=Path, required=True, help="folder of coded scenes")
    parser.add_argument("--vqgan", type=Path, required=True, help="folder of the trained VQModel")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and final/")
    parser.add_argument("--init", type=Path, help="model to start from; default: random weights")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--scenes", type=int, default=2, help="scenes a step and process")
    parser.add_argument("--actions-per-scene", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--normalisation", choices=get_args(Normalisation), default="picture", help="of Eq. 2's distance"
    )
    parser.add_argument("--floor", type=float, default=0.1, help="weight of an unchanged patch; 1: plain loss")
    parser.add_argument("--clip", type=float, default=1.0, help="upper bound of the normalised distance")
    parser.add_argument("--action-dropout", type=float, default=0.1, help="share of world sequences without words")
    parser.add_argument("--log-every", type=int, default=25)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even if there is a GPU")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
