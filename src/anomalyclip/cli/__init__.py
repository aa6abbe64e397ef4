"""The command line: one short module a command, each of which parses, calls the library and prints.

Nothing heavy is imported before a command runs, so that ``anomalyclip --help`` is instant.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from anomalyclip.cli import pipes, unforeseen
from anomalyclip.cli.benchmark import benchmark
from anomalyclip.cli.calibrate import calibrate
from anomalyclip.cli.compare import compare
from anomalyclip.cli.console import fail, warnings_shown
from anomalyclip.cli.datasets import datasets
from anomalyclip.cli.demo import demo
from anomalyclip.cli.export import export
from anomalyclip.cli.fit import fit
from anomalyclip.cli.merge import merge
from anomalyclip.cli.models import models
from anomalyclip.cli.predict import predict
from anomalyclip.cli.prepare import prepare
from anomalyclip.cli.serve import serve
from anomalyclip.cli.summarize import summarize
from anomalyclip.cli.synth import synth
from anomalyclip.cli.test import test
from anomalyclip.cli.train import train
from anomalyclip.cli.watch import watch
from anomalyclip.cli.words import words
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.machine import keep_memory, let_threads_rest

app = typer.Typer(
    name="anomalyclip",
    help="Find what is wrong in images of things for which there is no training data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# What a container for exported files may leave out: module, and what pip calls it.
_LEFT_OUT = {"torch": "torch", "safetensors": "safetensors", "tokenizers": "tokenizers", "certifi": "certifi"}
_LEFT_OUT |= {"huggingface_hub": "huggingface-hub"}


def _print_version(wanted: bool) -> None:
    if wanted:
        from anomalyclip import __version__

        typer.echo(f"anomalyclip {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Find what is wrong in images of things for which there is no training data."""


def _paragraphs(command: Callable[..., None]) -> str:
    """Return a docstring whose lines are as long as the screen is wide: only empty lines end a paragraph."""
    text = inspect.getdoc(command) or ""
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in text.split("\n\n"))


for verb in (
    demo,
    predict,
    watch,
    merge,
    summarize,
    serve,
    fit,
    calibrate,
    test,
    compare,
    train,
    models,
    datasets,
    prepare,
    synth,
    words,
    export,
    benchmark,
):
    app.command(help=_paragraphs(verb))(unforeseen.carried(verb))


def main() -> None:
    """Run the command line; an error that a user can mend is one message and exit code 2, any other is exit code 70."""
    pipes.prepare()
    let_threads_rest()
    keep_memory()
    try:
        with warnings_shown():
            app()
    except AnomalyCLIPError as error:
        fail(str(error))
        sys.exit(2)
    except unforeseen.UnforeseenError as error:
        unforeseen.end(error.__cause__ or error)
    except ModuleNotFoundError as error:
        package = _LEFT_OUT.get((error.name or "").partition(".")[0])
        if package is None:
            unforeseen.end(error)
        exported = {"predict", "watch", "calibrate", "test"}.intersection(sys.argv[1:2])
        fail(
            f"this needs {package}: pip install {package}{', or give --model FILE, an export' * bool(exported)}"
        )
        sys.exit(2)
    except Exception as error:  # outside of a command
        unforeseen.end(error)
