"""Annotates pairs of pictures with a dynamics model: what happened between them, in words, and how sure it is.

    python -m training.annotate runs/pool/pairs --checkpoint runs/playroom/checkpoint --out runs/pool/annotated

This is the first use of the inverse dynamics model in the paper: unlabelled video becomes synthetic triplets. Each pair
gets the greedy `action`, its `score` (mean token log-probability, eos included, in nats) and the `change` between its pictures
(see `training.filter`). What `action` held before goes to `label`, so that annotations can be compared with the truth; an
`inverse`, which belongs to the words before, is emptied. A pair that cannot be annotated says why in `error`.

An interrupted run goes on with the parts that are missing. With `--engine ray` the workers are spread over the Ray cluster
that RAY_ADDRESS names, or else over this machine.
"""

import argparse
import io
import json
import math
from pathlib import Path
from typing import Any

import torch
from datasets import Features, Value
from PIL import Image

from bwm_pipelines import DynamicsVerifierPipeline
from bwm_pipelines.images import open_image, square
from training import stages
from training.filter import changed_share
from training.triplets import load_triplets, shards_of


class Annotator:
    """The stage: `before`, `after` to `action`, `score`, `change`, `label` and `error`; other columns stay.

    Args:
        checkpoint: pipeline folder or repository on the Hub, see `DynamicsVerifierPipeline.from_pretrained`.
        batch_size: pairs that are annotated at once.
        max_new_tokens: the longest action.
        dtype: of the dynamics model: "float32", "bfloat16".

    It runs on the GPU where there is one.
    """

    features = Features(action=Value("string"), score=Value("float32"), change=Value("float32"), label=Value("string"))

    def __init__(
        self, checkpoint: str | Path, batch_size: int = 16, max_new_tokens: int = 128, dtype: str = "float32"
    ):
        self.pipe = DynamicsVerifierPipeline.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
        self.pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pipe.set_progress_bar_config(disable=True)
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        count = len(batch["before"])
        pairs = list(zip(batch["before"], batch["after"], batch.get("error", [None] * count), strict=True))
        annotations = [
            annotation
            for start in range(0, count, self.batch_size)
            for annotation in self.annotate(pairs[start : start + self.batch_size])
        ]
        kept = batch | {"label": batch.get("action", [None] * count)}
        if "inverse" in batch:
            kept["inverse"] = [None] * count
        return kept | {
            name: [annotation.get(name) for annotation in annotations]
            for name in ("action", "score", "change", "error")
        }

    def annotate(self, pairs: list[tuple[dict, dict, str | None]]) -> list[dict[str, Any]]:
        """Before, after and an earlier stage's error, for each pair -> what there is of action, score, change and error."""
        annotations = [self.open(*pair) for pair in pairs]
        opened = [annotation for annotation in annotations if annotation["error"] is None]
        if opened:
            befores, afters = zip(*(annotation.pop("pair") for annotation in opened), strict=True)
            actions = self.pipe.name_actions(list(befores), list(afters), max_new_tokens=self.max_new_tokens)
            for annotation, named in zip(opened, actions, strict=True):
                if not math.isfinite(named.score):
                    annotation["error"] = "the model's logits are not finite"
                elif not named.action:
                    annotation["error"] = "the model gives no words"
                else:
                    annotation.update(action=named.action, score=named.score)
        return annotations

    def open(self, before: dict, after: dict, error: str | None) -> dict[str, Any]:
        """The pictures of a pair as the model sees them, and the change between them; or an error."""
        if error is not None:
            return {"error": error}
        pair = []
        for name, cell in (("before", before), ("after", after)):
            try:
                pair.append(square(open_cell(cell), self.pipe.config.image_size))
            except ValueError:
                return {"error": f"`{name}` is no picture that can be opened"}
        return {"error": None, "pair": pair, "change": changed_share(*pair)}


def open_cell(cell: dict | None) -> Image.Image:
    """A picture as it is stored, `{"bytes", "path"}` -> RGB.

    Raises:
        ValueError: there is none, or it cannot be opened.
    """
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("`cell` holds no picture.")
    return open_image(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of Parquet shards with before and after")
    parser.add_argument("--checkpoint", required=True, help="pipeline folder with a dynamics model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the annotated shards")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs that are annotated at once")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="the longest action")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the dynamics model")
    parser.add_argument("--engine", choices=("datasets", "ray"), default="datasets")
    parser.add_argument("--workers", type=int, default=1, help="copies of the model that run side by side")
    parser.add_argument("--num-gpus", type=float, default=0, help="what each Ray worker takes of a GPU")
    parser.add_argument("--rows-per-part", type=int, default=256, help="pairs in a shard, the step of resuming")
    args = parser.parse_args()
    checkpoint = Path(args.checkpoint).absolute() if Path(args.checkpoint).exists() else args.checkpoint
    stages.run(
        Annotator,
        {
            "checkpoint": checkpoint,
            "batch_size": args.batch_size,
            "max_new_tokens": args.max_new_tokens,
            "dtype": args.dtype,
        },
        load_triplets(shards_of(args.pairs)),
        args.out,
        engine=args.engine,
        rows_per_part=args.rows_per_part,
        workers=args.workers,
        num_gpus=args.num_gpus,
    )
    errors = load_triplets(shards_of(args.out))["error"][:]
    print(json.dumps({"pairs": len(errors), "errors": sum(error is not None for error in errors)}))


if __name__ == "__main__":
    main()
