"""The command `bwm` (or `python -m bwm_pipelines`): imagine, verify and name actions from a terminal.

    bwm edit "open the door"

imagines eight outcomes in the sample scene and writes them, best first, with an overview picture. Every command prints
a report, or one JSON object with `--json`; progress and messages go to stderr. Exit code 2 means wrong input, 130 an
interruption; neither leaves a file behind.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bwm_pipelines import default_checkpoint
from bwm_pipelines.new_files import new_files

if TYPE_CHECKING:  # torch and diffusers take seconds to import, which `bwm --help` should not
    from diffusers import DiffusionPipeline
    from PIL import Image

    from bwm_pipelines.pictures import Frame

SAMPLE = "sample"
RESULT_FILE = "result.json"
Command = Callable[[argparse.Namespace], tuple[dict[str, Any], str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, given as words (by default those of the command line), and return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        result, report = arguments.command(arguments)
        print(json.dumps(result, allow_nan=False) if arguments.json else report, flush=True)
    except (ValueError, OSError, ImportError) as error:
        print(f"bwm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbwm: interrupted", file=sys.stderr)  # the terminal stands in the middle of a progress bar
        return 130
    return 0


# Commands: each returns its result for --json and its report for people


def edit(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Imagine what the image looks like after the action, several times, and rank the candidates."""
    import torch

    from bwm_pipelines import ChameleonWorldModelPipeline
    from bwm_pipelines.images import square
    from bwm_pipelines.pictures import overview

    _check_words(arguments.action)
    image = _open(arguments.image)
    with new_files(arguments.output) as folder:
        pipe = _load(ChameleonWorldModelPipeline, arguments.checkpoint)
        output = pipe(
            image,
            arguments.action,
            num_candidates=arguments.num_candidates,
            generator=torch.Generator().manual_seed(arguments.seed),
        )
        changed = output.changed and output.changed[0]
        before = square(image, pipe.family.image_size)
        files = [f"candidate_{rank}.png" for rank in range(1, len(output.images) + 1)]
        pictures = dict(zip(files, output.images, strict=True)) | {"before.png": before, "best.png": output.images[0]}
        for name, picture in pictures.items():
            picture.save(folder / name)
        picture = overview(before, output.images, arguments.action, output.scores, output.margins, changed)
        picture.save(folder / "overview.png")
        result = {
            "image": arguments.image,
            "action": arguments.action,
            "seed": arguments.seed,
            "checkpoint": arguments.checkpoint,
            "scores": output.scores,
            "margins": output.margins,
            "order": output.order,
            "excluded": output.excluded and output.excluded[0],
            "changed": changed,
            "files": [str(arguments.output / name) for name in files],
            **{name: str(arguments.output / f"{name}.png") for name in ("before", "best", "overview")},
        }
        _write_json(folder / RESULT_FILE, result)
    return result, _edit_report(result)


def verify(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Rank images, from any editor, by how clearly the action happened between the image before and each of them."""
    from bwm_pipelines import DynamicsVerifierPipeline

    _check_words(arguments.action)
    before, candidates = _open(arguments.before), [_open(path) for path in arguments.after]
    output = _load(DynamicsVerifierPipeline, arguments.checkpoint)(before, candidates, arguments.action)
    result = {
        "before": arguments.before,
        "action": arguments.action,
        "candidates": arguments.after,
        "checkpoint": arguments.checkpoint,
        "scores": _numbers(output.scores),
        "margins": _numbers(output.margins),
        "order": output.order,
        "excluded": output.excluded,
        "unchanged_score": output.unchanged_score,
        "changed": output.changed,
    }
    rows = [
        [_cell(result["scores"][i]), _cell(result["margins"][i], "+"), arguments.after[i]]
        for i in output.order + output.excluded
    ]
    return result, f"{_table(['score', 'margin', 'image'], rows)}\n{_verdict(output.changed)}"


def name(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Say in words what happened between two images."""
    from bwm_pipelines import DynamicsVerifierPipeline

    before, after = _open(arguments.before), _open(arguments.after)
    output = _load(DynamicsVerifierPipeline, arguments.checkpoint).name_action(before, after)
    result = {
        "before": arguments.before,
        "after": arguments.after,
        "checkpoint": arguments.checkpoint,
        "action": output.action,
        "score": output.score,
    }
    return result, f"{output.action}  (score {output.score:.3f})"


def rollout(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Let actions follow one another: each starts from the best image of the one before."""
    from bwm_pipelines.pictures import film_strip, save_gif

    for action in arguments.action:
        _check_words(action)
    image = _open(arguments.image)
    with new_files(arguments.output) as folder:
        frames = _roll_out(image, arguments)
        files = [f"step_{number}.png" for number in range(len(frames))]
        for file, frame in zip(files, frames, strict=True):
            frame.image.save(folder / file)
        film_strip(frames).save(folder / "film_strip.png")
        save_gif(frames, folder / "rollout.gif")
        result = {
            "image": arguments.image,
            "actions": arguments.action,
            "seed": arguments.seed,
            "checkpoint": arguments.checkpoint,
            "scores": [frame.score for frame in frames[1:]],
            "margins": [frame.margin for frame in frames[1:]],
            "changed": [frame.changed for frame in frames[1:]],
            "files": [str(arguments.output / file) for file in files],
            "film_strip": str(arguments.output / "film_strip.png"),
            "gif": str(arguments.output / "rollout.gif"),
        }
        _write_json(folder / RESULT_FILE, result)
    return result, _rollout_report(result)


def convert(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Make a checkpoint of published Chameleon weights: Meta's or transformers' layout, or PEFT adapters on these.

    An interrupted conversion goes on where it was. What is written is read back and compared with the source.
    """
    from bwm_pipelines.conversion import convert as convert_weights

    _quiet_loading()
    names = ("forward_prompt", "inverse_prompt", "temperature", "top_p", "guidance_scale")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    result = convert_weights(
        arguments.source,
        arguments.dest,
        role=arguments.role,
        dynamics=arguments.dynamics,
        base=arguments.base,
        vqgan=arguments.vqgan,
        **given,
    )
    return result, _conversion_report(result)


def space(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Serve the page of the Hub Space on this machine, until Ctrl-C. Nothing is fetched from the web or shared."""
    try:
        from bwm_pipelines.space import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("`space` needs Gradio; pip install 'bwm-pipelines[space]'.") from None
    _quiet_loading()
    page = serve(arguments.checkpoint, host=arguments.host, port=arguments.port, block=False)
    print(f"Open {page.local_url} in a browser; Ctrl-C ends it.", file=sys.stderr)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)
    return {"url": page.local_url, "checkpoint": arguments.checkpoint}, "The page is closed."


def _roll_out(image: Image.Image, arguments: argparse.Namespace) -> list[Frame]:
    import torch

    from bwm_pipelines import ChameleonWorldModelPipeline
    from bwm_pipelines.rollout import roll_out

    pipe = _load(ChameleonWorldModelPipeline, arguments.checkpoint)

    def before_step(step: int, action: str) -> None:
        pipe.set_progress_bar_config(disable=None, desc=f"step {step + 1} of {len(arguments.action)}: {action}")

    generator = torch.Generator().manual_seed(arguments.seed)
    count = arguments.num_candidates
    frames = roll_out(
        pipe, image, arguments.action, num_candidates=count, generator=generator, before_step=before_step
    )
    return list(frames)


# Input


def _open(path: str) -> Image.Image:
    from bwm_pipelines.images import open_image

    return open_image(default_checkpoint() / "sample_scene.png" if path == SAMPLE else path)


def _check_words(action: str) -> None:
    if os.path.isfile(action):
        raise ValueError(f"`action` {action!r} is a file; say in words what happens, after the image.")


def _load(pipeline: type[DiffusionPipeline], checkpoint: str) -> DiffusionPipeline:
    import torch

    _quiet_loading()
    pipe = pipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=None)  # shown in a terminal only
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def _quiet_loading() -> None:
    import diffusers
    import transformers

    if not sys.stderr.isatty():
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()


# Output


def _write_json(file: Path, result: dict[str, Any]) -> None:
    file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _numbers(values: Sequence[float]) -> list[float | None]:
    """Numbers as JSON has them: None for what is not finite."""
    return [value if isfinite(value) else None for value in values]


def _edit_report(result: dict[str, Any]) -> str:
    if result["scores"] is None:
        columns = [["-"] * len(result["files"])] * 2
        verdict = "Not verified: this checkpoint has no dynamics model, so the order is that of sampling."
    else:
        columns = [[_cell(score) for score in result["scores"]], [_cell(margin, "+") for margin in result["margins"]]]
        verdict = _verdict(result["changed"])
    ranks = [str(rank) for rank in range(1, len(result["files"]) + 1)]
    table = _table(["rank", "score", "margin", "file"], list(zip(ranks, *columns, result["files"], strict=True)))
    return f"{table}\n{verdict}\nPicture: {result['overview']}"


def _rollout_report(result: dict[str, Any]) -> str:
    rows = [
        [str(step), _cell(score), _cell(margin, "+"), {True: "yes", False: "no", None: "-"}[changed], action]
        for step, (score, margin, changed, action) in enumerate(
            zip(result["scores"], result["margins"], result["changed"], result["actions"], strict=True), start=1
        )
    ]
    table = _table(["step", "score", "margin", "changed", "action"], rows)
    return f"{table}\nFilm strip: {result['film_strip']}\nGIF: {result['gif']}"


def _conversion_report(result: dict[str, Any]) -> str:
    lines = [
        f"{result['dest']}: {', '.join(result['components'])}",
        f"Image tokens equal to those of transformers: {result['code_agreement']:.1%}.",
        f"A picture encoded and decoded: {result['reconstruction_psnr']:.1f} dB.",
    ]
    for component in sorted(result.keys() & {"world_model", "dynamics_model"}):
        found = result[component]
        lines.append(f"Logits of {component}: {found['max_logit_difference']:.1e} from the source at most.")
        lines.append(f"Plain English in {component}: {found['nats_per_token']:.2f} nats a token.")
    if result["vqgan_dtype"] != "float32":
        lines.append(f"The image tokenizer was stored in {result['vqgan_dtype']}: give --vqgan for its exact tokens.")
    lines.append("NOTICE in that folder names the licence: the Chameleon Research License.")
    return "\n".join(lines)


def _verdict(changed: bool) -> str:
    if changed:
        return "Scores are mean log p(action | before, after) in nats, margins the distance to 'nothing changed'."
    return "No candidate beats 'nothing changed': the action probably happened in none of them."


def _cell(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned to the right, but for the last."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]])
        for row in (header, *rows)
    )


# Arguments


def seed(text: str) -> int:  # named for argparse, whose message says "invalid seed value"
    if not 0 <= int(text) < 2**64:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**64 - 1, got {text}")
    return int(text)


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bwm: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="bwm", description="Imagine what an action does to an image, and verify that it happened."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: Command, summary: str, checkpoint: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(command.__name__, help=summary, description=command.__doc__)
        added.set_defaults(command=command)
        if checkpoint:
            added.add_argument(
                "--checkpoint",
                default=str(default_checkpoint()),
                help="a folder or a Hub id (default: the playroom checkpoint of this package)",
            )
        added.add_argument("--json", action="store_true", help="print one JSON object")
        return added

    image_help = f"an image file, or {SAMPLE!r} for the scene that comes with this package"
    one = add(edit, "imagine the image after an action")
    one.add_argument("image", nargs="?", default=SAMPLE, metavar="IMAGE", help=f"{image_help} (default)")
    one.add_argument("action", metavar="ACTION", help='what happens, in words, such as "open the door"')
    _add_sampling(one, Path("out", "edit"))

    one = add(verify, "rank images by whether an action happened")
    one.add_argument("before", metavar="BEFORE", help=image_help)
    one.add_argument("action", metavar="ACTION", help="what was meant to happen, in words")
    one.add_argument("after", nargs="+", metavar="AFTER", help="the images to rank")

    one = add(name, "say what happened between two images")
    one.add_argument("before", metavar="BEFORE", help=image_help)
    one.add_argument("after", metavar="AFTER", help="the image after it")

    one = add(rollout, "let several actions follow one another")
    one.add_argument("image", metavar="IMAGE", help=image_help)
    one.add_argument("action", nargs="+", metavar="ACTION", help="the actions in words, in their order")
    _add_sampling(one, Path("out", "rollout"))

    one = add(space, "open the page of the Hub Space on this machine")
    one.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too (default: %(default)s)")
    one.add_argument("--port", type=int, default=7860, help="default: %(default)s")

    one = add(convert, "make a checkpoint of published Chameleon weights", checkpoint=False)
    _add_conversion(one)
    return parser


def _add_conversion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder of a whole model or of a PEFT adapter")
    parser.add_argument("dest", metavar="DEST", help="the folder to make")
    parser.add_argument(
        "--as",
        dest="role",
        default="world",
        choices=["world", "dynamics", "both"],
        help="what SOURCE is (default: world)",
    )
    parser.add_argument("--dynamics", metavar="DIR", help="dynamics model beside it; an adapter if SOURCE is one")
    parser.add_argument("--base", metavar="DIR", help="the whole model that adapters were trained on")
    parser.add_argument("--vqgan", metavar="FILE", help="Meta's vqgan.ckpt, for a SOURCE without an image decoder")
    parser.add_argument("--forward-prompt", metavar="TEXT", help="world model's template with <image> and {action}")
    parser.add_argument("--inverse-prompt", metavar="TEXT", help="dynamics model's template with <image> twice")
    parser.add_argument("--temperature", type=float, help="the checkpoint's default for sampling")
    parser.add_argument("--top-p", type=float, help="likewise")
    parser.add_argument("--guidance-scale", type=float, help="likewise")


def _add_sampling(parser: argparse.ArgumentParser, output: Path) -> None:
    parser.add_argument(
        "-k", "--num-candidates", type=int, default=8, metavar="K", help="images to imagine (default: 8)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="the same seed gives the same images (default: 0)")
    parser.add_argument("-o", "--output", type=Path, default=output, metavar="DIR", help=f"folder (default: {output})")


if __name__ == "__main__":
    sys.exit(main())
