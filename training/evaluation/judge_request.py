"""What a judge is asked: the rubric, the action and two pictures, as one chat completion; and what it has to answer."""

import base64
import io
import math
from typing import Literal

from PIL import Image
from pydantic import BaseModel

from training.evaluation.samples import Sample

MAX_ANSWER_TOKENS = 300

RUBRIC = """\
You are shown two pictures of one scene and told an action. The first picture was taken before the action. The second is an \
image editor's attempt to show the same scene right after it. Rate the attempt with two whole numbers from 0 to 10.

"success": has the action visibly happened in the second picture?
0: no sign of it, for example because the second picture equals the first.
5: partly, or on the wrong object, in the wrong place or direction, or in the wrong number.
10: exactly what was told, and nothing of it is missing.

"minimal_editing": is everything else as it was? What the action itself has to change does not count, and neither does \
whether it succeeded.
0: another scene, or one that cannot be recognised.
5: the same scene with clear changes that the action does not explain: objects gone, added, moved or of another look.
10: nothing changed beyond what the action requires.

Rate each by itself. Answer with one JSON object and nothing around it:
{"reason": "<what changed between the pictures and what should have, in at most 50 words>", \
"success": <0-10>, "minimal_editing": <0-10>}"""

Score = Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


class Judgement(BaseModel, extra="forbid"):
    """The judge's answer, the reason first so that the scores follow from it."""

    reason: str
    success: Score
    minimal_editing: Score


def build_request(model: str, sample: Sample, before: Image.Image, output: Image.Image) -> dict:
    """The arguments of one chat completion: the rubric, the action and the two pictures, as PNG.

    Raises:
        ValueError: see `check_request`.
    """
    request = {
        "model": model,
        "messages": [
            {"role": "system", "content": RUBRIC},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"The action: {sample.instruction}"},
                    {"type": "text", "text": "Before:"},
                    _picture_part(before),
                    {"type": "text", "text": "After:"},
                    _picture_part(output),
                ],
            },
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "judgement", "strict": True, "schema": Judgement.model_json_schema()},
        },
        "temperature": 0,
        "max_tokens": MAX_ANSWER_TOKENS,
    }
    check_request(request, sample)
    return request


def _picture_part(picture: Image.Image) -> dict:
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def check_request(request: dict, sample: Sample) -> None:
    """Makes sure, on what is really sent, that the judge is told the action: a published judge was not.

    Raises:
        ValueError: the request does not hold the instruction, in words, and exactly two pictures.
    """
    parts = request["messages"][-1]["content"]
    said = [part["text"] for part in parts if part["type"] == "text"]
    if not sample.instruction.strip() or not any(words.endswith(sample.instruction) for words in said):
        raise ValueError(
            f"`instruction` of sample {sample.id!r} is {sample.instruction!r} and the judge would be told {said!r}; "
            "give every sample an action in words."
        )
    if (pictures := sum(part["type"] == "image_url" for part in parts)) != 2:
        raise ValueError(f"`request` for sample {sample.id!r} holds {pictures} pictures; the judge needs two.")


def picture_tokens(picture: Image.Image) -> int:
    """Tokens that gpt-4o counts for a picture in high detail: 85, and 170 for each tile of 512 px after shrinking."""
    scale = min(1, 2048 / max(picture.size), 768 / min(picture.size))
    return 85 + 170 * math.prod(math.ceil(side * scale / 512) for side in picture.size)
