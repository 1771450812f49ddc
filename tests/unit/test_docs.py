"""The docs name only files, settings, commands, flags and paths that exist, and name every fault, topic and event."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from everyrun import failpoints, schemas
from everyrun.cli.app import app
from everyrun.emulator.faults import DEFAULTS, FAULTS
from everyrun.log.topics import declared
from everyrun.settings import Settings, variable

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGES = [*TOP.glob("*.md"), *DOCS.rglob("*.md")]
PAGE_NAMES = [page.relative_to(TOP).as_posix() for page in PAGES]
pages = pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)


@pages
def test_every_link_points_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pages
def test_every_named_setting_exists(page: Path) -> None:
    known = {variable(name) for name in Settings.model_fields} | {failpoints.VARIABLE}
    named = set(re.findall(r"\bEVERYRUN_[A-Z][A-Z_]*[A-Z]\b", page.read_text()))
    assert named <= known


def _commands(page: Path) -> list[list[str]]:
    """Return the everyrun commands in the shell examples of a page, as lists of words."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    # Settings given before the command, as in NAME=value everyrun up, are not part of it.
    words = [shlex.split(re.sub(r"^(\w+=\S+ )+", "", line), comments=True) for line in lines]
    return [call[1:] for call in words if call[:1] == ["everyrun"]]


@pages
def test_every_command_and_flag_in_an_example_exists(page: Path) -> None:
    for words in _commands(page):
        command: Any = typer.main.get_command(app)
        rest = words
        while hasattr(command, "commands"):
            if command.invoke_without_command and rest[:1] != [] and rest[0].startswith("--"):
                break
            assert rest[:1], words
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, words


def test_the_search_for_examples_finds_some() -> None:
    assert ["up", "--extend", "--plan", "payg"] in _commands(TOP / "README.md")
    assert ["topics", "create"] in _commands(DOCS / "reference" / "cli.md")


def test_the_page_of_the_emulator_names_every_fault_and_the_defaults() -> None:
    text = (DOCS / "reference" / "emulator.md").read_text()
    named = {name for cell in re.findall(r"^\| ([a-z_0-9, ]+) \|", text, re.MULTILINE) for name in cell.split(", ")}
    assert named == set(FAULTS)
    assert ",".join(f"{name}={value}" for name, value in DEFAULTS.items()) in text


def test_the_page_of_events_names_every_topic_and_every_event() -> None:
    text = (DOCS / "reference" / "events.md").read_text()
    assert set(re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)) == {topic.name for topic in declared()}
    assert [tag for tag in schemas.event_schemas() if tag not in text] == []


def test_the_page_of_the_http_apis_names_every_path() -> None:
    text = (DOCS / "reference" / "http-api.md").read_text()
    named = {re.sub(r"\{\w+\}", "{}", path) for path in re.findall(r"/[\w/{}]+", text)}
    paths = {re.sub(r"\{\w+\}", "{}", path) for api in schemas.openapis().values() for path in api["paths"]}
    assert paths <= named


def test_the_page_of_metrics_names_every_metric() -> None:
    text = (DOCS / "reference" / "metrics.md").read_text()
    code = "".join(path.read_text() for path in (TOP / "services").rglob("*.py"))
    made = set(re.findall(r'(?:Gauge|Counter|GaugeMetricFamily|CounterMetricFamily)\(\s*"(everyrun_\w+)"', code))
    assert len(made) > 9
    named = {name.removesuffix("_total") for name in re.findall(r"`(everyrun_\w+)", text)}
    assert named == made


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, open_pages = set(), [TOP / "README.md"]
    while open_pages:
        page = open_pages.pop()
        links = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())
        found = {(page.parent / link).resolve() for link in links if "://" not in link} - reached
        reached |= found
        open_pages += found
    assert {page.resolve() for page in DOCS.rglob("*.md")} <= reached


def test_alerts_sum_no_installation_metric_and_notice_a_hung_process() -> None:
    text = (DOCS / "reference" / "metrics.md").read_text()
    alerts = text[text.index("## Alerts") :]
    # A process that hangs answers no scrape, so it has no everyrun_ready.
    assert "up == 0 or everyrun_ready == 0" in alerts
    of_everything = re.findall(r"^\| `(\w+)[`{].*\*\*in the whole", text, re.MULTILINE)
    assert {"everyrun_queue_chunks", "everyrun_queue_paused_workflows", "everyrun_quarantine_open"} <= set(
        of_everything
    )
    for name in of_everything:
        assert re.findall(rf"(?<!max\(){name}", alerts) == [], name


def test_the_docs_are_right_about_rates_indexes_rights_and_failover() -> None:
    readme, real = (TOP / "README.md").read_text(), (DOCS / "how-to" / "real-extend.md").read_text()
    assert "each process below" not in real
    assert "adr/0008-shared-budget.md" in real
    # The index results_not_processed begins with submission_id.
    assert "`submission_id` has no index" not in readme
    assert "on `submission_id, status, input_id`, of rows where" in (DOCS / "reference" / "tables.md").read_text()
    assert "## Rights" in (DOCS / "how-to" / "rebuild.md").read_text()
    for page in (
        readme,
        (DOCS / "how-to" / "operate.md").read_text(),
        (DOCS / "explanation" / "design.md").read_text(),
    ):
        assert re.search(r"failover", page)
        assert re.search(r"asynchronous", page)


def test_examples_that_read_extracted_values_read_only_processed_inputs() -> None:
    """The view also has values of runs that wait for review: nobody has approved them."""
    statements = [
        statement
        for page in PAGES
        for block in re.findall(r"```sql\n(.*?)```", page.read_text(), re.DOTALL)
        for statement in block.split(";\n")
        if "everyrun.extractions" in statement
    ]
    assert len(statements) >= 2
    assert all("status = 'PROCESSED'" in statement for statement in statements)
