"""How much an edit looks like its target: L1, PSNR, CLIP-I and DINO. These are no evidence of an edit.

    python -m training.evaluation.similarity runs/aurora_bench --clip openai/clip-vit-base-patch32 --dino facebook/dino-vits16

An unchanged copy of the image before beats every model of the paper on L1, CLIP-I and DINO, although it scores 0 with a
judge (arXiv 2506.06006). So every table has three reference lines beside the output, each compared with the target as well: the
unchanged copy, the image before of another sample of the same task, and the target itself. An output that is not nearer than the copy
has not been shown to do anything.

The folder holds `samples.jsonl`, as `training.evaluation.aurora_bench` writes it; samples without a target are left out. Written beside
it: `similarity.jsonl`, one line a sample, `similarity.json` and the tables `similarity.md`. CLIP-I and DINO are left out where no
model is named.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel

from bwm_pipelines.images import open_image, square
from bwm_pipelines.new_files import new_files
from training.evaluation.intervals import mean, text
from training.evaluation.samples import Sample, read_samples

LINES = ("output", "copy", "random other image", "ground truth")
METRICS = {"l1": "L1 (lower is nearer)", "psnr": "PSNR, dB", "clip_i": "CLIP-I", "dino": "DINO"}
NOTE = (
    "Similarity to the target is no evidence of an edit: an unchanged copy usually comes out near the top. "
    "Read every line against `copy`. Means with 95 % bootstrap intervals."
)
PSNR_LIMIT = 100.0


def l1(image: Image.Image, target: Image.Image) -> float:
    """Mean absolute difference of two RGB images of one size, 0-1."""
    return float(np.abs(_floats(image) - _floats(target)).mean())


def psnr(image: Image.Image, target: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two RGB images of one size; 100 for identical ones, where it is infinite."""
    error = float(np.square(_floats(image) - _floats(target)).mean())
    return min(PSNR_LIMIT, -10 * float(np.log10(error))) if error else PSNR_LIMIT


def _floats(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


class FeatureSimilarity:
    """Cosine similarity of image embeddings, -1 to 1: CLIP's projected one (CLIP-I), or a ViT's class token (DINO).

    Args:
        model: a folder or an id on the Hub of a CLIP, or of a ViT such as DINO's.
    """

    def __init__(self, model: str):
        self.processor = AutoImageProcessor.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.no_grad()
    def embed(self, images: list[Image.Image]) -> torch.Tensor:
        """B RGB images -> unit vectors, float32 [B, D]."""
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device)
        if hasattr(self.model, "get_image_features"):
            embeddings = self.model.get_image_features(**inputs).pooler_output
        else:
            embeddings = self.model(**inputs).last_hidden_state[:, 0]
        return torch.nn.functional.normalize(embeddings.float(), dim=-1)

    def to_target(self, images: list[Image.Image], target: Image.Image) -> list[float]:
        """Similarity of each image to the target."""
        *embedded, towards = self.embed([*images, target])
        return [float(one @ towards) for one in embedded]


def draw_others(samples: list[Sample]) -> list[Sample | None]:
    """For each sample another one of its task, None where there is none. Always the same ones."""
    rng = np.random.default_rng(0)
    others = []
    for sample in samples:
        candidates = [o for o in samples if o.task == sample.task and o.id != sample.id]
        others.append(candidates[rng.integers(len(candidates))] if candidates else None)
    return others


def compare(
    sample: Sample, other: Sample | None, networks: dict[str, FeatureSimilarity]
) -> dict[str, dict[str, float]]:
    """Similarity to the sample's target, metric by metric, for each of `LINES`.

    Args:
        sample: has a target.
        other: gives the random other image, if there is one.
        networks: `clip_i`, `dino`, both or none.

    All images are compared as squares of the output's size.
    """
    output = open_image(sample.output)
    images = {"output": output, "copy": _square_of(sample.before, output)}
    if other is not None:
        images["random other image"] = _square_of(other.before, output)
    images["ground truth"] = target = _square_of(sample.target, output)
    similarities = {
        "l1": [l1(image, target) for image in images.values()],
        "psnr": [psnr(image, target) for image in images.values()],
        **{name: network.to_target(list(images.values()), target) for name, network in networks.items()},
    }
    return {name: dict(zip(images, values, strict=True)) for name, values in similarities.items()}


def _square_of(path: Path, output: Image.Image) -> Image.Image:
    return square(open_image(path), min(output.size))


def measure_folder(folder: Path, networks: dict[str, FeatureSimilarity]) -> dict:
    """Compares all samples of a folder that have a target, writes the three files and returns the summary.

    Raises:
        ValueError: the folder holds no samples, see `read_samples`.
    """
    samples = [sample for sample in read_samples(folder) if sample.target]
    pairs = list(zip(samples, draw_others(samples), strict=True))
    rows = [
        {"id": sample.id, "task": sample.task, **compare(sample, other, networks)}
        for sample, other in tqdm(pairs, unit="sample", mininterval=1)
    ]
    summary = summarise(rows)
    with new_files(folder) as new:
        (new / "similarity.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (new / "similarity.json").write_text(json.dumps(summary, indent=1) + "\n")
        (new / "similarity.md").write_text(tables(summary))
    return summary


def summarise(rows: list[dict]) -> dict:
    """Task, and "all tasks" -> line -> metric -> mean with interval."""
    by_task = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    return {
        "note": NOTE,
        "tasks": {
            task: {
                line: {
                    metric: mean(row[metric][line] for row in part if line in row[metric])
                    for metric in METRICS
                    if metric in part[0]
                }
                for line in LINES
            }
            for task, part in {**by_task, "all tasks": rows}.items()
            if part
        },
    }


def tables(summary: dict) -> str:
    """One Markdown table a task: the output and its three reference lines."""
    parts = [NOTE]
    for task, lines in summary["tasks"].items():
        metrics = list(lines["output"])
        parts.append(
            f"**{task}**, n = {lines['output'][metrics[0]]['n']}\n\n"
            f"| compared with the target | {' | '.join(METRICS[metric] for metric in metrics)} |\n"
            f"|---|{'---|' * len(metrics)}\n"
            + "\n".join(
                f"| {line} | {' | '.join(text(cells[metric]) for metric in metrics)} |"
                for line, cells in lines.items()
            )
        )
    return "\n\n".join(parts) + "\n"


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clip", help="model of CLIP-I, a folder or a Hub id; default: CLIP-I is left out")
    parser.add_argument("--dino", help="model of DINO, a folder or a Hub id; default: DINO is left out")


def load_networks(args: argparse.Namespace) -> dict[str, FeatureSimilarity]:
    named = {"clip_i": args.clip, "dino": args.dino}
    return {name: FeatureSimilarity(model) for name, model in named.items() if model}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with samples.jsonl")
    add_network_arguments(parser)
    args = parser.parse_args()
    print(tables(measure_folder(args.folder, load_networks(args))))


if __name__ == "__main__":
    main()
