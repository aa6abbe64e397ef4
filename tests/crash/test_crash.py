"""Commands that are killed: what they leave is whole, and repeating them gives what an undisturbed run gives."""

import json
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.crash.commands import COMMANDS, Command, Files, files_of, make_inputs, matches
from tests.crash.server import Outcome, Server

KILLS = 20
CHAINS = 4
"""Folders in which a command is killed again and again, before it may come to its end there."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("crash") / "inputs")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two of them, for two cores."""
    running = [Server(tmp_path_factory.mktemp("server") / "scratch") for _ in range(2)]
    yield running
    for server in running:
        server.close()


@pytest.mark.parametrize("command", COMMANDS, ids=[command.name for command in COMMANDS])
def test_a_command_that_is_killed_at_any_moment_goes_on_to_the_same_bytes(command, inputs, servers, tmp_path):
    words = command.words.format(**inputs).split()
    (tmp_path / "whole").mkdir()
    usual = servers[0].run(words, tmp_path / "whole")
    assert usual.code in (0, 1), usual.printed
    whole = files_of(tmp_path / "whole")

    def chains(number: int) -> int:
        chance = random.Random(f"{command.name} {number}")
        mine = range(number, CHAINS, len(servers))
        return sum(
            chain(command, words, usual, whole, tmp_path / str(n), servers[number], chance) for n in mine
        )

    with ThreadPoolExecutor(len(servers)) as pool:
        assert sum(pool.map(chains, range(len(servers)))) >= KILLS


def chain(
    command: Command,
    words: list[str],
    usual: Outcome,
    whole: Files,
    parent: Path,
    server: Server,
    chance: random.Random,
) -> int:
    """Kill a command again and again, in a new folder each time that it came to its end; return how often."""
    kills = folders = 0
    while kills < KILLS / CHAINS:
        folders += 1
        folder = parent / str(folders)
        folder.mkdir(parents=True)
        while kills < KILLS / CHAINS and killed(server, words, folder, usual, chance):
            kills += 1
            check_what_is_there(command, folder, whole)
        if not is_final(command, folder):
            end = server.run(words, folder)
            assert end.code == usual.code, end.printed
        left = files_of(folder)
        assert left.keys() == whole.keys()
        assert [name for name in whole if left[name] != whole[name]] == []
        assert folders_of(folder) == {str(Path(name).parent) for name in whole} | folders_above(whole)
    return kills


def killed(server: Server, words: list[str], folder: Path, usual: Outcome, chance: random.Random) -> bool:
    """Kill it just before a change of the file system, or after some time; return whether it came to that."""
    if chance.random() < 0.5:
        outcome = server.run(words, folder, at_change=chance.randint(1, usual.changes))
    else:
        outcome = server.run(words, folder, after=chance.uniform(0.0, usual.seconds))
    assert outcome.code in (-9, 0, 1, 2), outcome.printed
    return outcome.code == -9


def check_what_is_there(command: Command, folder: Path, whole: Files) -> None:
    """Nothing is half-written under its final name."""
    for name, content in files_of(folder).items():
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if matches(name, command.growing):
            assert whole.get(name, content).startswith(content), name
        elif name in whole and not matches(name, command.moving):
            assert content == whole[name], name
        else:
            assert is_whole(folder / name), name


def is_whole(path: Path) -> bool:
    """Read a file that is not there, or not the same, in the end."""
    if path.suffix == ".npy":
        return bool(np.load(path).size)
    if path.suffix in (".png", ".jpg"):
        return Image.open(path).load() is not None
    if path.suffix == ".html":
        return path.read_bytes().endswith(b"</html>\n")
    if path.suffix == ".pt":
        return zipfile.ZipFile(path).testzip() is None
    return bool(json.loads(path.read_bytes()))


def is_final(command: Command, folder: Path) -> bool:
    return any(matches(path.name, command.final) for path in (folder / "out").glob("[!.]*"))


def folders_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()} | {"."}


def folders_above(whole: Files) -> set[str]:
    return {str(parent) for name in whole for parent in Path(name).parents}
