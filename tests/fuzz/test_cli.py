"""Run the command line with malformed files, folders and arguments: no traceback, and no partial submission."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import respx
import typer
from hypothesis import strategies as st

from everyrun.cli import exits
from everyrun.cli.app import app
from tests.fuzz.conftest import KEY, TOKEN, fuzz
from tests.fuzz.test_bytes import damaged
from tests.unit.cli import EXTEND, QUERY, SUBMISSION, everyrun

_CODES = {exits.OK, exits.ERROR, exits.USAGE, exits.INPUTS_FAILED, exits.NOT_FOUND, exits.SUBMITTED_BEFORE}
_ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1", "cp437", "utf-7", "shift_jis"]


@pytest.fixture
def services() -> Iterator[list[bytes]]:
    """Fake Extend and the services so that they accept everything; return the bodies of the submissions."""
    bodies: list[bytes] = []

    def accept(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        count = bodies[-1].count(b"\n")
        return httpx.Response(202, json={"submission_id": "sub_1", "expected": count, "batches": 1})

    with respx.mock(assert_all_called=False) as router:
        router.post(f"{SUBMISSION}/v1/submissions").mock(side_effect=accept)
        router.post(f"{EXTEND}/files/upload").respond(json={"id": "file_1"})
        router.get(url__startswith=EXTEND).respond(404)
        router.route(url__startswith=SUBMISSION).respond(404, json={"code": "NOT_FOUND", "message": "nothing"})
        router.route(url__startswith=QUERY).respond(404, json={"code": "NOT_FOUND", "message": "nothing"})
        yield bodies


def run(*command: str, folder: str) -> Any:
    """Run a command until it ends, and check that it ends with a documented exit code and shows no secret."""
    env = {"EVERYRUN_DATA_DIR": os.path.join(folder, "data"), "EVERYRUN_API_TOKEN": TOKEN, "EXTEND_API_KEY": KEY}
    done = everyrun(*command, **env)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError((command, done.output)) from done.exception
    assert done.exit_code in _CODES, (command, done.output)
    assert "Traceback" not in done.output
    assert TOKEN not in done.output
    assert KEY not in done.output
    return done


def in_folder(try_out: Callable[[str], None]) -> None:
    folder = tempfile.mkdtemp()
    try:
        try_out(folder)
    finally:
        shutil.rmtree(os.fsencode(folder))


# --- manifests

_ROWS = [
    {
        "id": "a",
        "file": {"url": "https://e.com/a.pdf", "name": "M\u00fcller"},
        "metadata": {"n": 1.5, "t": 'a "b"\n;,\t'},
    },
    {"id": "b", "file": {"path": "a.pdf", "settings": {"password": "p"}}},
    {"file": {"text": "x" * 200_000}, "metadata": {"a": {"b": [1, None, True]}}},
]
_CSV = 'ID;url;path;password;metadata;Supplier\n1;https://e.com/a.pdf;;;"{""n"":1}";M\u00fcller\n2;;a.pdf;p;;"x\ny"\n'
_TEXTS = [
    "\n".join(map(json.dumps, _ROWS)),
    json.dumps({"inputs": _ROWS}),
    _CSV,
    _CSV.replace(";", ","),
    "sep=\t\n" + _CSV.replace(";", "\t"),
    "",
    "\n\n",
    "url",
    '"',
]
_BODIES = damaged(
    st.builds(
        lambda text, encoding: text.encode(encoding, "replace"), st.sampled_from(_TEXTS), st.sampled_from(_ENCODINGS)
    )
) | st.binary(max_size=200)
_NAMES = st.binary(min_size=1, max_size=12).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
_WORDS = st.sampled_from(
    (
        *(
            "",
            "id",
            "URL",
            "supplier",
            "*",
            ",",
            ";",
            "tab",
            "\t",
            '"',
            "\n",
            "utf-16",
            "hex",
            "rot13",
            "[/b]",
            "-",
            "--",
        ),
        *("\udcff", "\u00e9", "\u202e", "a" * 5000, "../x", "~", "%s", "{}", "\x1b[31m", "sub_1:a/b?c#d", "workflow_1"),
    )
) | st.text(max_size=8)
_MANIFEST_OPTIONS = ["--id-column", "--url-column", "--metadata-columns", "--delimiter", "--encoding"]
_OPTIONS = st.lists(st.tuples(st.sampled_from(_MANIFEST_OPTIONS), _WORDS), max_size=2).map(
    lambda pairs: [part for pair in pairs for part in pair]
)


def test_no_manifest_ends_in_a_traceback(services: list[bytes]) -> None:
    def try_out(given: tuple[bytes, str, bytes, list[str], str]) -> None:
        name, suffix, content, options, command = given

        def shot(folder: str) -> None:
            services.clear()
            Path(folder, "a.pdf").write_bytes(b"%PDF-")
            path = os.path.join(os.fsencode(folder), name + suffix.encode())
            try:
                Path(os.fsdecode(path)).write_bytes(content)
            except OSError:
                return
            more = ["--batch", "batch_1"] if command == "register" else []
            done = run(command, os.fsdecode(path), "--workflow", "workflow_1", *more, *options, folder=folder)
            if done.exit_code == exits.OK:
                # All rows were submitted, in a form that the service accepts.
                rows = [json.loads(line) for line in services[0].splitlines()]
                assert all("path" not in row["file"] for row in rows)
                assert f"{len(rows)} rows" in done.output
            else:
                assert services == []

        in_folder(shot)

    suffixes = st.sampled_from([".csv", ".tsv", ".ndjson", ".jsonl", ".json", ".CSV", "", ".xlsx"])
    commands = st.sampled_from(["submit", "submit", "submit", "register"])
    fuzz(st.tuples(_NAMES, suffixes, _BODIES, _OPTIONS, commands), try_out, 60)


# --- folders

_ENTRIES = st.lists(
    st.tuples(
        st.lists(_NAMES, min_size=1, max_size=3),
        st.sampled_from([b".pdf", b".PDF", b"", b".docm", b".", b".tar.gz"]),
        st.sampled_from(["file", "file", "file", "empty", "folder", "link", "up", "round", "pipe", "zip"]),
    ),
    max_size=6,
)
_FOLDER_OPTIONS = st.lists(
    st.sampled_from(["--skip-unreadable", "--list-skipped", "--dry-run", "--again"])
    | st.tuples(st.sampled_from(["--include", "--exclude"]), _WORDS | st.sampled_from(["*.pdf", "[", "[z-a]", "**"])),
    max_size=3,
)


def _put(folder: bytes, names: list[bytes], suffix: bytes, kind: str) -> None:
    path = os.path.join(folder, *names) + suffix
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "folder":
            os.mkdir(path)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind in ("link", "up", "round"):
            os.symlink({"link": folder, "up": b"..", "round": path}[kind], path)
        else:
            with open(path, "xb") as file:
                file.write({"file": b"%PDF-", "empty": b"", "zip": b"PK\x03\x04" + path}[kind])
    except OSError:
        pass  # the name exists already, or is not valid


def test_no_folder_ends_in_a_traceback_and_every_file_is_counted(services: list[bytes]) -> None:
    def try_out(given: tuple[list[tuple[list[bytes], bytes, str]], list[Any]]) -> None:
        entries, options = given

        def shot(folder: str) -> None:
            services.clear()
            root = os.path.join(os.fsencode(folder), b"d")
            os.mkdir(root)
            for names, suffix, kind in entries:
                _put(root, names, suffix, kind)
            words = [word for option in options for word in ([option] if isinstance(option, str) else option)]
            done = run("submit", os.fsdecode(root), "--workflow", "workflow_1", *words, folder=folder)
            files = sum(len(names) for _, _, names in os.walk(root))
            if "Found" in done.output:
                found = int(done.output.split("Found ")[1].split()[0])
                # A link to a folder counts once, and its contents are not counted again.
                links = sum(os.path.islink(os.path.join(at, name)) for at, names, _ in os.walk(root) for name in names)
                assert found == files + links
            if services:
                (body,) = services
                ids = [json.loads(line)["id"] for line in body.splitlines()]
                assert len(set(ids)) == len(ids) > 0

        in_folder(shot)

    fuzz(st.tuples(_ENTRIES, _FOLDER_OPTIONS), try_out, 60)


# --- arguments

#: Commands that are not run: they start or end something, or run until they are stopped.
_NOT_RUN = {"up", "down", "demo", "logs"}


def _commands() -> list[tuple[list[str], click.Command]]:
    found: list[tuple[list[str], click.Command]] = []

    def walk(path: list[str], command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                walk([*path, name], inner)
        elif not _NOT_RUN & set(path):
            found.append((path, command))

    walk([], typer.main.get_command(app))
    return found


@st.composite
def _calls(draw: st.DrawFn) -> list[str]:
    path, command = draw(st.sampled_from(_commands()))
    words = list(path)
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            words.append(draw(_WORDS))
        elif parameter.name not in ("help", "data_dir") and draw(st.integers(0, 3)) == 0:
            words.append(parameter.opts[0])
            if not getattr(parameter, "is_flag", False):
                words.append(draw(_WORDS))
    return words


def test_no_argument_ends_in_a_traceback(services: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def try_out(words: list[str]) -> None:
        def shot(folder: str) -> None:
            monkeypatch.chdir(folder)
            monkeypatch.setattr("sys.stdin", io.StringIO())
            try:
                run(*words, folder=folder)
            finally:
                monkeypatch.chdir("/")

        in_folder(shot)

    fuzz(_calls(), try_out, 150)
