"""Prompts in API format, as short as they can be written."""

from typing import Any

EMBEDDED = "playroom (embedded)"
TINY = "tiny"  # that of tests.tiny: all is quick with it, and nothing makes sense
Link = list[str | int]


class Graph(dict):
    """A prompt under construction: `graph.add("Class", input=value)` gives the id of the new node."""

    def add(self, class_type: str, **inputs: Any) -> str:
        key = str(len(self) + 1)
        self[key] = {"class_type": class_type, "inputs": inputs}
        return key

    def load(self, checkpoint: str = TINY) -> tuple[Link, Link]:
        """A loaded model and its sample scene."""
        key = self.add("BWMLoadWorldModel", checkpoint=checkpoint, dtype="as saved")
        return [key, 0], [key, 1]

    def imagine(self, model: Link, before: Link, action: str = "open the door", **settings: Any) -> tuple[Link, Link]:
        """Imagined images and their latents."""
        defaults = {"candidates": 2, "seed": 0, "temperature": -1, "top_p": -1, "guidance": -1, "batch_size": 0}
        settings = defaults | settings
        key = self.add("BWMImagineNextImage", model=model, before=before, action=action, **settings)
        return [key, 0], [key, 1]

    def verify(self, model: Link, before: Link, candidates: Link, action: str = "open the door") -> str:
        return self.add(
            "BWMVerifyNextImages", model=model, before=before, candidates=candidates, action=action, batch_size=4
        )

    def select(self, ranking: Link, **settings: Any) -> str:
        settings = {"top_k": 1, "must_change": False, "min_score": -1000.0} | settings
        return self.add("BWMSelectTopCandidates", ranking=ranking, **settings)

    def text(self, source: Link) -> str:
        """Show a value as text."""
        return self.add("PreviewAny", source=source)

    def show(self, images: Link) -> str:
        return self.add("PreviewImage", images=images)
