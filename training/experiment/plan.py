"""The jobs of the experiment, each a command of `training` with what it needs."""

from dataclasses import dataclass
from pathlib import Path

from training.experiment.jobs import Job

RECIPES = Path("training/recipes/experiment")
SAMPLING = ["--temperature", "0.7", "--guidance-scale", "2"]
WEIGHTED = "weights={floor: 0.1}"
CURVE_POINTS = 4  # the learning curve is measured at so many equal parts of the training


@dataclass(frozen=True)
class Size:
    """How large the experiment is; stated beside every result."""

    picture: int = 64
    width: int = 128
    labelled_scenes: int = 400
    pool_scenes: int = 3600
    tokenizer_steps: int = 2000
    base_steps: int = 300
    steps: int = 600
    episodes: int = 100
    rollouts: int = 25
    probed_scenes: int = 30


@dataclass(frozen=True)
class Variant:
    """A world model: trained on the labelled triplets and, of the synthetic ones, on `synthetic`, a share of the pool's
    pairs by score (0: none). `changes` are those of the recipe.
    """

    synthetic: float = 0.0
    changes: tuple[str, ...] = ()


# The paper's comparison, for every seed; C-FT is the same recipe with two switches off.
VARIANTS = {
    "c_ft": Variant(),
    "no_synthetic": Variant(changes=(WEIGHTED,)),
    "no_weighting": Variant(synthetic=0.5),
    "cwm": Variant(synthetic=0.5, changes=(WEIGHTED,)),
}
# What the paper leaves open, for the first seed: the score threshold and the strength of the weights.
QUESTIONS = {
    "all_pairs": Variant(synthetic=1.0, changes=(WEIGHTED,)),
    "eighth_of_pairs": Variant(synthetic=0.125, changes=(WEIGHTED,)),
    "weights_half": Variant(synthetic=0.5, changes=("weights={floor: 0.5}",)),
    "weights_full": Variant(synthetic=0.5, changes=("weights={floor: 0.0}",)),
}
ROLLED_OUT = ("c_ft", "cwm")  # by the first and the last of the method
NO_NEGATIVES = ("copies=0", "reversals=0")


class Plan:
    """All jobs by name; what a job makes lies in the folder of that name under `out`, results under `results`."""

    def __init__(self, size: Size, seeds: list[int], out: Path, results: Path):
        self.size, self.seeds, self.out, self.results = size, seeds, out, results
        self.jobs: dict[str, Job] = {}
        self._add_pictures()
        self._add_models()
        for seed in seeds:
            self._add_evaluation(f"base-{seed}", "base", f"dynamics-{seed}")
            for name, variant in VARIANTS.items():
                self._add_world_model(name, variant, seed)
        for seed in seeds:
            self._add_learning_curve(seed)
        self._add_probes()
        for seed in seeds:
            for name in ROLLED_OUT:
                self._add_suite("rollouts", f"{name}-{seed}", size.rollouts)
        for name, variant in QUESTIONS.items():
            self._add_world_model(name, variant, seeds[0])

    def _add(self, name: str, *command: object, needs: tuple[str, ...] = ()) -> None:
        self.jobs[name] = Job([str(part) for part in command], needs)

    def _add_pictures(self) -> None:
        size, play = self.size, ["training.playroom.triplets", "--split", "train", "--workers", 1]
        self._add(
            "labelled", *play, "--size", size.picture, "--scenes", size.labelled_scenes, "--out", self.out / "labelled"
        )
        self._add("pool", *play, "--size", size.picture, "--first", size.labelled_scenes, "--scenes", size.pool_scenes,
                  "--out", self.out / "pool")  # fmt: skip
        self._add("tokenizer", "training.image_tokenizer", "--triplets", self.out / "labelled", "--steps", size.tokenizer_steps,
                  "--out", self.out / "tokenizer", needs=("labelled",))  # fmt: skip
        self._add_codes("codes-labelled", "labelled")

    def _add_codes(self, name: str, triplets: str) -> None:
        self._add(name, "training.encode", "--vqgan", self.out / "tokenizer/vqgan", "--workers", 1,
                  "--triplets", self.out / triplets, "--out", self.out / name, needs=("tokenizer", triplets))  # fmt: skip

    def _add_models(self) -> None:
        size = self.size
        self._add("new", "training.new_checkpoint", "--vqgan", self.out / "tokenizer/vqgan", "--image-size", size.picture,
                  "--width", size.width, "--out", self.out / "new", needs=("tokenizer",))  # fmt: skip
        self._add("base", *self._fit("base", ["codes-labelled"]), "--steps", size.base_steps, "--out", self.out / "base",
                  needs=("new", "codes-labelled"))  # fmt: skip
        for seed in self.seeds:
            self._add(f"dynamics-{seed}", *self._fit_from_base("dynamics", ["codes-labelled"], seed),
                      "--out", self.out / f"dynamics-{seed}", needs=("base",))  # fmt: skip
            self._add_checkpoint(f"annotator-{seed}", "base/final", f"dynamics-{seed}/final", (f"dynamics-{seed}",))
            self._add(f"annotated-{seed}", "training.annotate", self.out / "pool", "--checkpoint", self.out / f"annotator-{seed}",
                      "--out", self.out / f"annotated-{seed}", needs=("pool", f"annotator-{seed}"))  # fmt: skip

    def _fit(self, recipe: str, codes: list[str]) -> list[object]:
        folders = [self.out / name for name in codes]
        return ["training.fit", RECIPES / f"{recipe}.yaml", "--checkpoint", self.out / "new", "--codes", *folders]

    def _fit_from_base(self, recipe: str, codes: list[str], seed: int) -> list[object]:
        return [
            *self._fit(recipe, codes),
            "--init",
            self.out / "base/final",
            "--steps",
            self.size.steps,
            "--seed",
            seed,
        ]

    def _add_world_model(self, variant_name: str, variant: Variant, seed: int) -> None:
        name, codes = f"{variant_name}-{seed}", ["codes-labelled"]
        if variant.synthetic:
            codes.append(self._add_synthetic(variant.synthetic, seed))
        changes = ["--set", *variant.changes] if variant.changes else []
        fit = self._fit_from_base("world", codes, seed)
        self._add(name, *fit, *changes, "--out", self.out / name, needs=("base", *codes))
        self._add_evaluation(name, name, f"dynamics-{seed}")

    def _add_synthetic(self, share: float, seed: int) -> str:
        """The best of the pool's annotated pairs, balanced over verbs, as codes; returns their name."""
        name, annotated = f"synthetic-{share:g}-{seed}", f"annotated-{seed}"
        top_k = round(share * self.size.pool_scenes * 6)
        self._add(
            name,
            "training.filter",
            self.out / annotated,
            "--top-k",
            top_k,
            "--out",
            self.out / name,
            needs=(annotated,),
        )
        self._add_codes(f"codes-{name}", name)
        return f"codes-{name}"

    def _add_checkpoint(self, name: str, world: str, dynamics: str, needs: tuple[str, ...]) -> None:
        self._add(name, "training.export", "--checkpoint", self.out / "new", "--world", self.out / world,
                  "--dynamics", self.out / dynamics, *SAMPLING, "--out", self.out / name, needs=needs)  # fmt: skip

    def _add_evaluation(self, name: str, world: str, dynamics: str, part: str = "final") -> None:
        checkpoint, world_part = f"checkpoint-{name}", "final" if world == "base" else part
        self._add_checkpoint(checkpoint, f"{world}/{world_part}", f"{dynamics}/{part}", (world, dynamics))
        self._add_suite("outcomes", name, self.size.episodes)

    def _add_suite(self, suite: str, name: str, episodes: int) -> None:
        self._add(f"{suite}-{name}", f"training.evaluation.{suite}", "--checkpoint", self.out / f"checkpoint-{name}",
                  "--episodes", episodes, "--out", self.results / suite / name, needs=(f"checkpoint-{name}",))  # fmt: skip

    def _add_probes(self) -> None:
        """The dynamics model with and without hard negatives, on scenes that no model saw."""
        size, folder = self.size, self.out / "validation"
        self._add("validation", "training.playroom.triplets", "--split", "validation", "--workers", 1, "--size", size.picture,
                  "--scenes", size.probed_scenes, "--out", folder)  # fmt: skip
        for seed in self.seeds:
            plain, with_negatives = f"no_negatives-{seed}", f"dynamics-{seed}"
            fit = self._fit_from_base("dynamics", ["codes-labelled"], seed)
            self._add(plain, *fit, "--set", *NO_NEGATIVES, "--out", self.out / plain, needs=("base",))
            for name in (plain, with_negatives):
                self._add_checkpoint(f"checkpoint-{name}", "base/final", f"{name}/final", (name,))
                self._add(f"probe-{name}", "training.evaluation.probe", folder, "--tasks", "idp",
                          "--checkpoint", self.out / f"checkpoint-{name}", "--out", self.results / "probe" / name,
                          needs=("validation", f"checkpoint-{name}"))  # fmt: skip

    def _add_learning_curve(self, seed: int) -> None:
        """CDM against CWM at equal training: both at the same steps, on labelled triplets only."""
        for point in range(1, CURVE_POINTS):
            step = self.size.steps * point // CURVE_POINTS
            self._add_evaluation(f"c_ft-{seed}-step-{step}", f"c_ft-{seed}", f"dynamics-{seed}", f"checkpoint-{step}")
