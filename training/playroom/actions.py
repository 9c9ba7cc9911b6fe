"""What can be done in the room, in words: verbs, paraphrases, and folding a sentence back to its action."""

from dataclasses import dataclass, replace

import numpy as np

PARAPHRASES = {
    "open door": ("open the door", "swing the door open", "pull the door open"),
    "close door": ("close the door", "shut the door", "push the door shut"),
    "open drawer": ("open the drawer", "pull out the drawer", "slide the drawer open"),
    "close drawer": ("close the drawer", "push in the drawer", "slide the drawer shut"),
    "lamp on": ("turn the lamp on", "switch on the lamp", "press the button to light the lamp"),
    "lamp off": ("turn the lamp off", "switch off the lamp", "press the button to darken the lamp"),
    "push left": ("push the {x} left", "move the {x} to the left", "slide the {x} left"),
    "push right": ("push the {x} right", "move the {x} to the right", "slide the {x} right"),
    "push away": ("push the {x} away", "move the {x} back", "slide the {x} further away"),
    "push closer": ("push the {x} closer", "move the {x} forward", "slide the {x} nearer"),
    "put in bowl": ("put the {x} in the bowl", "drop the {x} into the bowl", "place the {x} in the bowl"),
    "put in drawer": ("put the {x} in the drawer", "drop the {x} into the drawer", "place the {x} in the drawer"),
    "stack": ("stack the {x} on the {y}", "put the {x} on top of the {y}", "place the {x} onto the {y}"),
    "knock over": ("knock the {x} over", "tip over the {x}", "topple the {x}"),
}
VERBS = tuple(PARAPHRASES)
_OPPOSITES = [("open door", "close door"), ("open drawer", "close drawer"), ("lamp on", "lamp off"),
              ("push left", "push right"), ("push away", "push closer")]  # fmt: skip
_INVERSE = dict(_OPPOSITES) | {b: a for a, b in _OPPOSITES}


@dataclass(frozen=True)
class Action:
    """A verb with the nouns it names: `x` is what is moved, `y` what it is stacked on (both like "red cube")."""

    verb: str
    x: str | None = None
    y: str | None = None

    def phrase(self, index: int = 0) -> str:
        """The action in words; `index` chooses the paraphrase, 0 is the plain one."""
        return PARAPHRASES[self.verb][index].format(x=self.x, y=self.y)

    def say(self, rng: np.random.Generator) -> str:
        """One paraphrase, drawn at random."""
        return self.phrase(int(rng.integers(len(PARAPHRASES[self.verb]))))

    @property
    def inverse(self) -> "Action | None":
        """The action that takes its outcome back to the state before, where the verbs hold one."""
        return replace(self, verb=_INVERSE[self.verb]) if self.verb in _INVERSE else None

    @property
    def family(self) -> str:
        """The verb with push directions joined: what held-out combinations and per-verb tables speak of."""
        return "push" if self.verb.startswith("push") else self.verb


def fold(sentence: str) -> str:
    """Any paraphrase -> the plain wording of the same action; a sentence that is no paraphrase comes back as it is."""
    words = " ".join(sentence.lower().strip().rstrip(".").split())
    return _FOLDED.get(words, words)


def _all_actions() -> list[Action]:
    from training.playroom.scenes import COLOURS, SHAPES

    nouns = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    actions = []
    for verb, phrases in PARAPHRASES.items():
        if "{y}" in phrases[0]:
            actions += [Action(verb, x, y) for x in nouns for y in nouns if x != y]
        elif "{x}" in phrases[0]:
            actions += [Action(verb, x) for x in nouns]
        else:
            actions.append(Action(verb))
    return actions


ALL_ACTIONS = tuple(_all_actions())
_FOLDED = {action.phrase(i): action.phrase() for action in ALL_ACTIONS for i in range(len(PARAPHRASES[action.verb]))}
ALL_SENTENCES = tuple(_FOLDED)
