"""Does int8 rank as full precision does? The same candidates, scored by the same dynamics model with both kinds of weights.

    python -m tests.benchmarks.ranking_agreement runs/playroom/triplets/validation --scenes 50

Each scene is a triplet: its image before and its action, and K candidates that the world model samples in full precision.
Agreement is Kendall's tau-b of the two orders, and how often both put the same candidate first; each with its 95 % interval
over the scenes (bootstrap, Wilson). Beside them stands how far the scores moved, in nats a token. The last line is JSON.

Needs `pip install torchao`.
"""

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch
import torchao
from scipy.stats import kendalltau
from torchao.quantization import Int8WeightOnlyConfig
from tqdm import tqdm
from transformers import ChameleonForConditionalGeneration, TorchAoConfig

from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline, default_checkpoint
from training.evaluation.intervals import mean, proportion, text
from training.triplets import load_triplets, shards_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("triplets", type=Path, help="folder of Parquet shards with before and action")
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="default: the embedded one")
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = ChameleonWorldModelPipeline.from_pretrained(args.checkpoint, dynamics_model=None).to(device)
    full = DynamicsVerifierPipeline.from_pretrained(args.checkpoint).to(device)
    int8 = DynamicsVerifierPipeline.from_pretrained(args.checkpoint, dynamics_model=quantized(args.checkpoint)).to(
        device
    )
    for pipe in (world, full, int8):
        pipe.set_progress_bar_config(disable=True)

    rows = load_triplets(shards_of(args.triplets))
    labelled = [index for index, action in enumerate(rows["action"]) if action is not None]
    chosen = np.random.default_rng(args.seed).permutation(labelled)[: args.scenes].tolist()
    generator = torch.Generator().manual_seed(args.seed)
    taus, same_best, moved = [], [], []
    for index in tqdm(chosen, unit="scene"):
        before, action = rows[index]["before"], rows[index]["action"]
        codes = world(before, action, num_candidates=args.candidates, generator=generator, output_type="latent").codes
        exact, rounded = full(before, codes, action), int8(before, codes, action)
        tau = kendalltau(exact.scores, rounded.scores).statistic
        if np.isfinite(tau):  # it is not where all candidates of a scene are the same picture
            taus.append(tau)
        same_best.append(exact.best == rounded.best)
        moved += [abs(a - b) for a, b in zip(exact.scores, rounded.scores, strict=True)]

    agreement = {"kendall_tau_b": mean(taus), "same_best": proportion(same_best), "score_moved_nats": mean(moved)}
    print("\n".join(f"{name}: {text(cell)}, n = {cell['n']}" for name, cell in agreement.items()))
    about = {
        "scenes": len(chosen),
        "candidates": args.candidates,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU",
        "full_precision": str(full.dynamics_model.dtype),
        "torch": torch.__version__,
        "torchao": torchao.__version__,
    }
    print(json.dumps(about | agreement))


def quantized(checkpoint: str) -> ChameleonForConditionalGeneration:
    """The dynamics model of a checkpoint folder with int8 weights in its linear layers, the head apart."""
    return ChameleonForConditionalGeneration.from_pretrained(
        checkpoint, subfolder="dynamics_model", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )


if __name__ == "__main__":
    main()
