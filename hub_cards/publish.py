"""Publishes a checkpoint, or the Space, on the Hub in one commit; without `--upload`, shows what it would upload.

    python -m hub_cards.publish bwm_pipelines/checkpoints/playroom --card playroom --to OWNER/playroom \
        --results training/results/twelfth_checkpoint --example sample_scene.png "open the door"
    python -m hub_cards.publish CHECKPOINT --card cwm --to OWNER/NAME --license LICENSE
    python -m hub_cards.publish --space --to OWNER/NAME

A folder is built under `--out`: the checkpoint's files (as hard links where the file system has them), the card,
example pictures that the checkpoint itself made, and, for whole world models, `pipeline.py`, which needs no
bwm-pipelines. The Space's folder is its app with the library, embedded checkpoint included. All is checked before
anything is sent.
"""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, SpaceCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from PIL import Image

import bwm_pipelines
from bwm_pipelines import ChameleonWorldModelPipeline, DynamicsVerifierPipeline
from bwm_pipelines.loading import check_folder
from hub_cards.cards import EXAMPLES, KINDS, make_card
from hub_cards.single_file import single_file

SPACE = Path(__file__).parent / "space"
LIBRARY = Path(bwm_pipelines.__file__).parent
KEPT = {
    "model_index.json",
    "NOTICE",
    "LICENSE",
    "sample_scene.png",
}  # of a checkpoint's own files, beside its components
KINDS_OF_FILES = {".jinja", ".json", ".md", ".png", ".py", ".safetensors", ".txt", ""}
NUM_CANDIDATES = 8


def build(
    checkpoint: Path,
    kind: str,
    repo: str,
    out: Path,
    results: list[Path],
    example: tuple[str, str] | None = None,
    license: Path | None = None,
) -> None:
    """Put the folder together that is to be uploaded; `out` is replaced, as a whole and only in the end.

    Args:
        checkpoint: a pipeline folder.
        kind: which card it gets, one of `hub_cards.cards.KINDS`.
        repo: id on the Hub.
        out: where the folder is built.
        results: folders with the `summary.json` of evaluations of this checkpoint.
        example: an image, in the checkpoint's folder or elsewhere, and an action, from which the checkpoint makes the
            example picture of the card (8 candidates, the best by its dynamics model, seed 0).
        license: text of the licence, to go with the weights.

    Raises:
        ValueError: the checkpoint is not whole, or an argument names what is not there.
    """
    if not (checkpoint / "model_index.json").is_file():
        raise ValueError(f"`checkpoint`: {checkpoint} has no model_index.json; give a pipeline folder.")
    index = json.loads((checkpoint / "model_index.json").read_text(encoding="utf-8"))
    check_folder(checkpoint, [name for name, value in index.items() if _names_class(value)], [])
    folder = out.with_name(out.name + ".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.is_dir() and (path.name == "adapters" or _names_class(index.get(path.name))):
            shutil.copytree(path, folder / path.name, copy_function=_link)
        elif path.name in KEPT:
            _link(path, folder / path.name)
    if license is not None:
        shutil.copyfile(license, folder / "LICENSE")
    index.pop("_name_or_path", None)  # a path on the machine that made it
    _write(folder / "model_index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")
    if index["_class_name"] == "ChameleonWorldModelPipeline" and not (folder / "adapters").is_dir():
        _write(folder / "pipeline.py", single_file())  # which does not load adapters
    if example is not None:
        make_example(folder, index["_class_name"], *example)
    make_card(kind, folder, results, repo).save(folder / "README.md")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(folder, out)


def make_example(folder: Path, class_name: str, image: str, action: str) -> None:
    """Write what the checkpoint in `folder` makes of an image and an action, and `examples/examples.json` about it.

    A world model imagines the image after the action; a dynamics model alone names it, between two images side by
    side.
    """
    source = folder / image if (folder / image).is_file() else Path(image)
    picture = Image.open(source).convert("RGB")
    name = re.sub(r"\W+", "_", action)
    (folder / EXAMPLES).parent.mkdir(exist_ok=True)
    before = f"examples/{name}_before.png"
    picture.save(folder / before)
    if class_name == "ChameleonWorldModelPipeline":
        pipe = ChameleonWorldModelPipeline.from_pretrained(folder)
        output = pipe(picture, action, num_candidates=NUM_CANDIDATES, generator=torch.Generator().manual_seed(0))
        result = {"after": f"examples/{name}_after.png"}
        output.images[0].save(folder / result["after"])
    else:
        width = picture.width // 2
        halves = picture.crop((0, 0, width, picture.height)), picture.crop((width, 0, 2 * width, picture.height))
        result = {"answer": DynamicsVerifierPipeline.from_pretrained(folder).name_action(*halves).action}
    _write(folder / EXAMPLES, json.dumps([{"before": before, "action": action, **result}], indent=2) + "\n")


def check(folder: Path) -> None:
    """Refuse a checkpoint's folder that must not be published.

    Raises:
        ValueError: a file is of no kind that belongs there, or what the licence or the card asks for is missing.
    """
    for path in files_of(folder):
        if path.suffix not in KINDS_OF_FILES:
            raise ValueError(f"`checkpoint`: {path} does not belong into a repository; remove it.")
    data = ModelCard.load(folder / "README.md").data
    if data.license == "other":
        for name in ("LICENSE", "NOTICE"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"`checkpoint`: the {data.license_name} asks for a {name} beside the weights; give the licence's "
                    "text as `license`, and convert the weights with `bwm convert`, which writes the notice."
                )
    for entry in data.get("widget") or []:
        for name in (entry["src"], entry["output"].get("url", entry["src"])):
            if not (folder / name).is_file():
                raise ValueError(f"`checkpoint`: the card shows {name}, which is not there; build it again.")


def build_space(out: Path) -> None:
    """Put the Space's folder together, with the library beside its app; `out` is replaced, as a whole and in the end.

    Raises:
        ValueError: the Space would not start.
    """
    check_space(SPACE)
    folder = out.with_name(out.name + ".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SPACE, folder, ignore=no_cache)
    shutil.copytree(LIBRARY, folder / LIBRARY.name, ignore=no_cache, copy_function=_link)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(folder, out)


def check_space(folder: Path) -> None:
    """Refuse a Space's folder that would not start.

    Raises:
        ValueError: the README.md at its top does not say what starts it, or that file is not there.
    """
    if not (folder / "README.md").is_file():
        raise ValueError(f"`space`: {folder} has no README.md; it must begin with the Space's settings.")
    data = SpaceCard.load(folder / "README.md").data
    if data.sdk != "gradio" or not data.app_file or not (folder / data.app_file).is_file():
        raise ValueError(f"`space`: {folder / 'README.md'} must name sdk: gradio, and an app_file that is there.")
    if not (folder / "requirements.txt").is_file():
        raise ValueError(f"`space`: {folder} has no requirements.txt.")


def files_of(folder: Path) -> list[Path]:
    """The files to upload, without what Python and editors leave behind."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    ]


def upload(folder: Path, repo: str, kind: str, private: bool, message: str) -> str:
    """Upload a folder in one commit, into a new repository or one that is there; the commit's address.

    Args:
        kind: "model" or "space".

    Raises:
        ValueError: the Hub refuses.
    """
    api = HfApi()
    additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files_of(folder)]
    try:
        sdk = {"space_sdk": "gradio"} if kind == "space" else {}
        api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True, **sdk)
        return api.create_commit(repo, additions, commit_message=message, repo_type=kind).commit_url
    except (HFValidationError, HTTPError, OSError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        reason = " ".join(str(error).split())
        hint = "log in with `hf auth login` as someone who may write there" if status in (401, 403) else "try again"
        raise ValueError(f"`to`: {repo!r} was not uploaded ({reason}); {hint}.") from error


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    """Write a file anew, so that a hard link to the checkpoint's own does not change that."""
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def _names_class(value: object) -> bool:
    return isinstance(value, list) and value[0] is not None


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("checkpoint", type=Path, nargs="?", help="a pipeline folder")
    what.add_argument("--space", action="store_true", help="the Space instead")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository on the Hub")
    parser.add_argument("--card", choices=KINDS, help="which card the checkpoint gets")
    parser.add_argument(
        "--results", type=Path, nargs="*", default=[], help="folders with a summary.json of this checkpoint"
    )
    parser.add_argument(
        "--example", nargs=2, metavar=("IMAGE", "ACTION"), help="from which the card's picture is made"
    )
    parser.add_argument("--license", type=Path, help="file with the licence's text, which Chameleon's asks for")
    parser.add_argument("--out", type=Path, help="where the folder is built; not given: runs/hub/NAME")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--upload", action="store_true", help="upload; not given: only show")
    args = parser.parse_args()
    if not args.space and args.card is None:
        parser.error("--card is needed for a checkpoint")
    folder, kind = args.out or Path("runs/hub", args.to.rpartition("/")[2]), "space" if args.space else "model"
    try:
        if args.space:
            build_space(folder)
        else:
            build(args.checkpoint, args.card, args.to, folder, args.results, args.example, args.license)
            check(folder)
        files = files_of(folder)
        for path in files:
            print(f"{_size(path.stat().st_size):>9}  {path.relative_to(folder)}")
        total, where = _size(sum(path.stat().st_size for path in files)), f"{constants.ENDPOINT}/{args.to}"
        print(f"{len(files)} files, {total}, from {folder} to {where}")
        if args.upload:
            print(upload(folder, args.to, kind, args.private, args.message or f"Upload {args.to.rpartition('/')[2]}"))
        else:
            print("Nothing was uploaded; add --upload to do it.")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
