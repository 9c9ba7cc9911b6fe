"""Model cards: what a checkpoint is, what it can and cannot do, and how well, for people and as the Hub's metadata.

    python -m hub_cards.cards playroom bwm_pipelines/checkpoints/playroom --results training/results/twelfth_checkpoint

writes the README.md of that folder. The words are in `cards/*.md`; every figure is read from a file: results from the
`summary.json` that an evaluation in `training/evaluation` wrote, sizes from the weights, defaults from
`model_index.json`.
"""

import argparse
import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from bwm_pipelines.new_files import new_files

TEMPLATES = Path(__file__).parent / "cards"
CHAMELEON = {
    "license": "other",
    "license_name": "chameleon-research-license",
    "license_link": "https://ai.meta.com/resources/models-and-libraries/chameleon-license",
    "base_model": "leloy/Anole-7b-v0.1-hf",
}
KINDS = {
    "playroom": {"license": "apache-2.0", "pipeline_tag": "image-to-image"},
    "cwm": {**CHAMELEON, "pipeline_tag": "image-to-image"},
    "cdm": {**CHAMELEON, "pipeline_tag": "image-to-text"},
}
TAGS = ["world-model", "inverse-dynamics", "image-editing", "chameleon", "bwm-pipelines", "arxiv:2506.06006"]
EXAMPLES = "examples/examples.json"
TOO_FINE = {"per_verb", "paired_k1_k8"}  # parts of a summary with too few cases, or none, to stand alone


class Figure(NamedTuple):
    """A share in percent or a mean with its 95 % interval over n cases; `part` says of which cases, "all" for all."""

    part: str
    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str

    def __str__(self) -> str:
        if self.unit:
            return f"{self.value:.1f} {self.unit} ({self.low:.1f}-{self.high:.1f})"
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


class Evaluation(NamedTuple):
    """What one run of an evaluation measured; `data` is what it ran on."""

    name: str
    data: str
    command: str
    figures: list[Figure]

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """
        Args:
            folder: where a module of `training.evaluation` wrote its `summary.json`.

        Raises:
            ValueError: there is none, or it holds no figures.
        """
        path = folder / "summary.json"
        if not path.is_file():
            raise ValueError(f"`results`: {folder} has no summary.json; give a folder that an evaluation wrote.")
        summary = json.loads(path.read_text(encoding="utf-8"))
        figures = list(_figures(summary))
        if not figures or "command" not in summary:
            raise ValueError(f"`results`: {path} holds no figures or no command; give one that an evaluation wrote.")
        _, _, module, *words = shlex.split(summary["command"])
        name = module.rpartition(".")[2]
        data = "playroom test scenes" if name == "outcomes" else Path(words[0]).name
        return cls(name, data, summary["command"], figures)

    def table(self) -> list[list[str]]:
        """Rows of text: what was measured, by the cases it was measured on."""
        parts = list(dict.fromkeys(figure.part for figure in self.figures))
        cells = {(figure.name, figure.part): f"{figure}, n = {figure.n}" for figure in self.figures}
        names = dict.fromkeys(figure.name for figure in self.figures)
        rows = [[_words(name), *(cells.get((name, part), "-") for part in parts)] for name in names]
        return [["", *map(_words, parts)], *rows]

    def results(self) -> Iterator[EvalResult]:
        """The figures as the Hub's metadata has them."""
        for figure in self.figures:
            yield EvalResult(
                task_type="image-to-text" if self.name == "naming" else "image-to-image",
                task_name=_words(self.name),
                dataset_type=self.data.replace(" ", "-"),
                dataset_name=self.data,
                dataset_config=figure.part,
                dataset_args={"command": self.command},
                metric_type="percent" if figure.unit else "mean",
                metric_name=_words(figure.name),
                metric_value=figure.value,
                metric_args={"low": figure.low, "high": figure.high, "n": figure.n},
            )


def _figures(block: dict, path: tuple[str, ...] = ()) -> Iterator[Figure]:
    for key, value in block.items():
        if not isinstance(value, dict) or key in TOO_FINE:
            continue
        unit = "%" if "percent" in value else ""
        number = value.get("percent", value.get("mean"))
        if isinstance(number, int | float) and {"low", "high", "n"} <= value.keys():
            yield Figure("/".join(path) or "all", key, number, value["low"], value["high"], value["n"], unit)
        else:
            yield from _figures(value, (*path, key))


def _words(name: str) -> str:
    return name.replace("_", " ")


def parameters(folder: Path) -> dict[str, int]:
    """Number of parameters of every part of a pipeline folder, from the headers of its weights."""
    counts = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        part = str(path.parent.relative_to(folder))
        counts[part] = counts.get(part, 0) + count
    return counts


def make_card(kind: str, folder: Path, results: list[Path], repo: str | None = None) -> ModelCard:
    """The card of a checkpoint.

    Args:
        kind: one of `KINDS`.
        folder: the pipeline folder, with `examples/examples.json` if there are example pictures.
        results: folders with a `summary.json` of an evaluation of this checkpoint; none are made up.
        repo: id on the Hub, for the code that loads it; None for the checkpoint in the package.

    Raises:
        ValueError: results without figures.
    """
    evaluations = [Evaluation.read(path) for path in results]
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    examples = json.loads((folder / EXAMPLES).read_text(encoding="utf-8")) if (folder / EXAMPLES).is_file() else []
    data = ModelCardData(
        **KINDS[kind],
        language="en",
        library_name="diffusers",
        tags=TAGS,
        widget=[_widget(example) for example in examples] or None,
        **_model_index(kind if repo is None else repo.partition("/")[2], evaluations),
    )
    return ModelCard.from_template(
        data,
        template_str="\n".join((TEMPLATES / file).read_text(encoding="utf-8") for file in (f"{kind}.md", "end.md")),
        repo=repo,
        index=index,
        parts={part: f"{count / 1e6:,.1f} M" for part, count in parameters(folder).items()},
        adapters=(folder / "adapters").is_dir(),
        single_file=(folder / "pipeline.py").is_file(),
        examples=examples,
        evaluations=evaluations,
    )


def _model_index(name: str, evaluations: list[Evaluation]) -> dict:
    """What `ModelCardData` makes the Hub's `model-index` of; nothing where nothing was measured."""
    results = [result for evaluation in evaluations for result in evaluation.results()]
    return {"model_name": name, "eval_results": results} if results else {}


def _widget(example: dict) -> dict:
    output = {"url": example["after"]} if "after" in example else {"text": example["answer"]}
    return {"src": example["before"], "text": example["action"], "output": output}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path, help="the pipeline folder whose README.md is written")
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="folders with a summary.json")
    parser.add_argument("--repo", help="id on the Hub, owner/name; not given: the checkpoint in the package")
    args = parser.parse_args()
    try:
        card = make_card(args.kind, args.folder, args.results, args.repo)
    except ValueError as error:
        parser.error(str(error))
    with new_files(args.folder) as folder:
        card.save(folder / "README.md")


if __name__ == "__main__":
    main()
