"""Options as values: one declaration, and the same checks wherever the value is made."""

import math
import os
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest

from anomalyclip import AnomalyCLIPError, evaluate, train
from anomalyclip.evaluation.settings import EvaluationSettings
from anomalyclip.settings import Settings, chosen, option, options_of
from anomalyclip.training.settings import TrainingSettings


@dataclass(frozen=True)
class Painting(Settings):
    layers: int = option(1, "Layers of paint.", minimum=1)
    colours: tuple[str, ...] = option((), "Colours.", choices=("red", "blue"))
    words: tuple[str, ...] | None = option(None, "Words.")
    tools: tuple[str, ...] | None = option(None, "Tools.", single=False)
    name: str = option("untitled", "Name.")
    framed: bool = option(False, "Whether it has a frame.")
    width: float = option(1.0, "Width.")
    sizes: tuple[float, float] = (1.0, 2.0)
    folder: Path | None = option(None, "Where.")


def test_only_declared_fields_are_options():
    assert list(options_of(Painting)) == [
        *("layers", "colours", "words", "tools", "name", "framed", "width", "folder")
    ]


def test_values_are_brought_into_one_form():
    painting = Painting(colours=["red"], words="flaw", folder="there")
    assert painting == Painting(colours=("red",), words=("flaw",), folder=Path("there"))
    assert Painting(words=[]) == Painting(colours=()) == Painting()
    assert Painting(words=Path("list"), name=Path("a") / "b", width=2) == Painting(
        words=["list"], name=os.path.join("a", "b"), width=2
    )
    with pytest.raises(FrozenInstanceError):
        painting.layers = 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 0}, "layers 0: expected 1 or more"),
        ({"layers": math.nan}, "layers nan: expected 1 or more"),
        ({"layers": "many"}, "layers 'many': expected 1 or more"),
        ({"colours": ["red", "grey"]}, "colours 'grey': expected one of red, blue"),
        ({"layers": 1.5}, "layers 1.5: expected 1 or more"),
        ({"layers": True}, "layers True: expected 1 or more"),
        ({"tools": "brush"}, "tools 'brush': expected a list of texts"),
        ({"tools": ["brush", 3]}, "tools 3: expected text"),
        ({"words": 5}, "words 5: expected a list of texts"),
        ({"name": None}, "name None: expected text"),
        ({"name": b"sea"}, "name b'sea': expected text"),
        ({"framed": 1}, "framed 1: expected True or False"),
        ({"width": "wide"}, "width 'wide': expected a number"),
        ({"width": False}, "width False: expected a number"),
        ({"folder": 3}, "folder 3: expected a path"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(wrong, message):
    with pytest.raises(AnomalyCLIPError, match=f"^{message}$"):
        Painting(**wrong)


def test_single_values_go_before_the_settings_that_they_are_given_with():
    assert chosen(Painting, Painting(layers=3, words="a"), {"layers": 2}) == Painting(layers=2, words="a")
    with pytest.raises(AnomalyCLIPError, match="^size: unknown option; expected some of colours, folder, "):
        chosen(Painting, None, {"size": 2})


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda **wrong: train("nowhere", **wrong), "epochs, feature_dtype"),
        (lambda **wrong: evaluate(None, "nowhere", **wrong), "controls, dataset"),
    ],
)
def test_a_function_refuses_an_option_that_it_does_not_have(call, names):
    with pytest.raises(AnomalyCLIPError, match=f"^speed: unknown option; .*{names}"):
        call(speed=2)


def test_the_published_training_is_the_default():
    assert TrainingSettings() == TrainingSettings(
        epochs=15, batch_size=8, learning_rate=1e-3, local_weight=4.0, seed=111, betas=(0.5, 0.999)
    )
    assert EvaluationSettings().protocol == "paper"
