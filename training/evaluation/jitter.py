"""How much of what changes between two pictures is the image tokenizer's jitter, and what `still` of a recipe removes.

    python -m training.evaluation.jitter runs/playroom/triplets/validation --vqgan runs/playroom/tokenizer/vqgan \
        --limit 240 --out runs/jitter

For each threshold, patches whose features move by less (squared L2 distance) keep the code they had before. Counted are the
codes that change then, the PSNR of the decoded picture against the true one, and its error around the true change, relative to that
change (`training.evaluation.over_editing.misdrawn`): 0 shows the outcome perfectly, 1 is about as far off as no change. `rows.jsonl` takes one line a triplet;
`summary.json` holds means with 95 % bootstrap intervals.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel

from training.encode import decode_codes, encode_pictures
from training.evaluation.intervals import mean
from training.evaluation.over_editing import misdrawn
from training.evaluation.rows import claim, describe_run, resume_rows, write_json
from training.triplets import load_triplets, shards_of, to_pixels

THRESHOLDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


@torch.inference_mode()
def measure(vqgan: VQModel, triplet: dict) -> dict:
    """For each of `THRESHOLDS` how many codes change, the decoded picture's PSNR in dB, and its error around the change."""
    codes, features = encode_pictures(vqgan, [triplet["before"], triplet["after"]])
    distance = (features[1] - features[0]).square().sum(-1)
    kept = torch.stack([torch.where(distance < threshold, codes[0], codes[1]) for threshold in THRESHOLDS])
    decoded = decode_codes(vqgan, kept)
    error = (decoded - to_pixels([triplet["after"]])).square().mean((1, 2, 3)) / 4  # of a range of 2
    before, after = (np.asarray(triplet[name]) for name in ("before", "after"))
    images = (decoded.permute(0, 2, 3, 1).numpy() + 1) / 2
    return {
        "id": triplet["id"],
        "codes": len(distance),
        "changed": (kept != codes[0]).sum(-1).tolist(),
        "psnr": (-10 * torch.log10(error)).tolist(),
        "misdrawn": [misdrawn(image, after.astype(np.float32) / 255, before, after) for image in images],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("triplets", type=Path, help="folder of Parquet shards")
    parser.add_argument("--vqgan", type=Path, required=True, help="folder of the trained VQModel")
    parser.add_argument("--limit", type=int, default=240, help="how many triplets")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl and summary.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    claim(args.out, {"triplets": str(args.triplets), "vqgan": str(args.vqgan)})
    vqgan, triplets = VQModel.from_pretrained(args.vqgan), load_triplets(shards_of(args.triplets))
    rows = resume_rows(
        args.out / "rows.jsonl",
        range(min(args.limit, len(triplets))),
        lambda some: [measure(vqgan, triplets[index]) for index in some],
        unit="triplet",
    )
    columns = enumerate(THRESHOLDS)
    summary = {
        f"still {threshold:g}": {key: mean(row[key][i] for row in rows) for key in ("changed", "psnr", "misdrawn")}
        for i, threshold in columns
    }
    write_json(args.out, "summary.json", describe_run("training.evaluation.jitter") | summary)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
