"""Answers of the server: predictions and refusals as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from lit_ft.console import dump_json
from lit_ft.model.prediction import Prediction


@dataclass(frozen=True)
class Refusal:
    """Why an upload has no prediction.

    Args:
        status: The status code of HTTP.
        reason: What is wrong, in a line.
    """

    status: int
    reason: str


@dataclass(frozen=True)
class Explained:
    """A prediction, and where in the photo its evidence is.

    Args:
        prediction: The prediction.
        method: How the evidence was found.
        target: The class, label or number that it speaks for; ``None`` where the method knows none.
        picture: The photo with the evidence in colours, as JPEG in base 64; ``None`` where nothing speaks for it.
    """

    prediction: Prediction
    method: str
    target: str | None
    picture: str | None


Answer = Prediction | Explained | Refusal
"""What an upload gets."""


def describe(found: Prediction) -> dict[str, Any]:
    """A prediction as plain values; what is not known of it is ``None``."""
    top_k = [{"label": valid_text(label), "probability": probability} for label, probability in found.top_k]
    if found.values:
        answer: dict[str, Any] = {"values": {valid_text(name): value for name, value in found.values.items()}}
    elif found.label:
        label_set = [valid_text(label) for label in found.label_set] or None
        answer = {
            "label": valid_text(found.label),
            "probability": found.probability,
            "top_k": top_k,
            "label_set": label_set,
        }
    else:
        answer = {"labels": [valid_text(label) for label in found.labels], "top_k": top_k}
    return answer | {"unsure": found.unsure, "unlike_training": found.unlike_training}


def describe_map(found: Explained) -> dict[str, Any]:
    """The evidence for a prediction as plain values; the picture is a URL of its own content."""
    return {
        "method": found.method,
        "target": None if found.target is None else valid_text(found.target),
        "picture": None if found.picture is None else f"data:image/jpeg;base64,{found.picture}",
    }


def respond(answer: Answer) -> Response:
    """The response to a request, in JSON."""
    status = 200
    if isinstance(answer, Refusal):
        status, content = answer.status, {"detail": answer.reason}
    elif isinstance(answer, Explained):
        content = describe(answer.prediction) | {"explanation": describe_map(answer)}
    else:
        content = describe(answer)
    return Response(dump_json(content, indent=1), status, media_type="application/json")


def valid_text(name: str) -> str:
    """The name of a class as text that UTF-8 has; a folder may be named by any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()
