"""The table of commands, and the group that imports a command's module only when the command is called.

``everyrun --help``, ``--version`` and the completion of command names need only the table, so they take less than
0.3 s.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer import _completion_classes as completion_classes
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group


class Entry(NamedTuple):
    """Names the place where a command is defined, and holds its line in ``everyrun --help``."""

    #: "module:name". The module is in this package; the name is a function, or a Typer application (a command group).
    target: str
    help: str


PANELS: dict[str, dict[str, Entry]] = {
    "The stack": {
        "up": Entry("stack:up", "Run Kafka, Postgres, the emulator of Extend and every service until Ctrl-C."),
        "down": Entry("stack:down", "Stop a running stack, and keep its data."),
        "status": Entry("stack:status", "Show the parts of a running stack and their states."),
        "logs": Entry("stack:logs", "Show the log of a part of the stack."),
        "doctor": Entry("doctor:doctor", "Check the set-up: find what is wrong and how to fix it."),
        "demo": Entry("demo:demo", "Run inputs through a stack and compare every result with the emulator's record."),
    },
    "Submissions": {
        "submit": Entry("submit:submit", "Submit the rows of a manifest, or the documents in a folder or bucket."),
        "sync": Entry("sync:sync", "Submit what is new or changed in a folder or bucket."),
        "register": Entry("register:register_batch", "Register a batch that another program sent to Extend."),
        "watch": Entry(
            "watch:watch",
            "Follow a submission until every input is settled or needs a person.",
        ),
        "list": Entry("watch:list_submissions", "List submissions, newest first."),
        "report": Entry("watch:report", "Show the counts of a submission and check that they add up."),
        "results": Entry("results:results", "Show the result of every input of a submission."),
        "cancellations": Entry(
            "cancel:cancellations", "Show the cancellations of a submission, newest first, with their outcomes."
        ),
        "tries": Entry("retry:tries", "Show every try of an input, with its attempts and runs, the newest last."),
        "export": Entry("export:export", "Export results of a submission to a file, a bucket or standard output."),
        "overdue": Entry("overdue:overdue", "List inputs that have waited too long, each with the reason."),
        "unmatched": Entry("unmatched:unmatched_app", "List runs at Extend that match no known input."),
    },
    "Deciding": {
        "cancel": Entry("cancel:cancel", "Cancel a submission, a batch or single inputs."),
        "retry": Entry("retry:retry", "Send inputs again that failed or were refused, cancelled or lost."),
        "doubt": Entry("doubt:doubt_app", "List calls with an unknown outcome, and decide about their inputs."),
        "workflow": Entry("pause:workflow_app", "Pause or resume a workflow, or list the paused ones."),
        "submission": Entry("pause:submission_app", "Pause or resume a submission."),
        "quarantine": Entry(
            "quarantine:quarantine_app", "List, retry or discard messages that Everyrun could not process."
        ),
        "decisions": Entry("decisions:decisions", "Show who decided what, when and why, the newest first."),
    },
    "Sending on": {
        "notify": Entry("notify:notify_app", "Send Extend's and Everyrun's events on to other services by HTTP."),
    },
    "Your own Kafka and Postgres": {
        "topics": Entry("provision:topics_app", "Create or check the topics on your own Kafka."),
        "migrate": Entry("provision:migrate", "Create the tables in your own Postgres, or bring them up to date."),
    },
    "Security": {
        "token": Entry("token:token_app", "Create, list or revoke tokens for the HTTP APIs."),
    },
    "The log": {
        "rebuild": Entry("rebuild:rebuild", "Rebuild every result table from the log."),
        "audit": Entry("audit:audit", "Compare the result tables with the log, row by row."),
        "as-of": Entry("as_of:as_of", "Show a report, the results or a row as of an earlier time."),
        "archive": Entry("archive:archive_app", "Copy the log to Parquet files, and verify the copy."),
        "replay": Entry("replay:replay", "Publish selected events again, marked as replays."),
        "history": Entry("history:history", "Show every event that touched an input, a run or a batch."),
    },
}
COMMANDS = {name: entry for commands in PANELS.values() for name, entry in commands.items()}
#: Without this setting, the parser would take an age such as -5m for an option.
_CONTEXT_SETTINGS = {"as-of": {"ignore_unknown_options": True}}


def load(name: str) -> Any:
    """Import the module that defines a command, and return the command."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    target = getattr(import_module(f"everyrun.cli.{module}"), attribute)
    if isinstance(target, typer.Typer):
        target.rich_markup_mode, target.info.cls = None, Group
        for inner in target.registered_commands:
            inner.cls = Command
        command: Any = get_group(target)
        if command.invoke_without_command:
            # Such a group can also be called without a subcommand (everyrun archive). The docstring of the callback
            # describes what the group then does.
            command.help = f"{command.help}\n\n{inspect.getdoc(command.callback)}"
    else:
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(cls=Command, context_settings=_CONTEXT_SETTINGS.get(name))(target)
        command = get_command(app)
    command.name = name
    _keep_examples(command)
    return command


def _keep_examples(command: Any) -> None:
    r"""Mark examples with \b, so that their lines are not re-wrapped to the terminal's width."""
    if command.help:
        command.help = command.help.replace("\n\nExample:", "\n\n\b\nExample:")
    for inner in getattr(command, "commands", {}).values():
        _keep_examples(inner)


class _Commands(Mapping[str, Any]):
    """The commands by name. A command's module is imported when the command is looked up for the first time."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _as_given(_context: Any, value: Any) -> Any:
    return value


def _complete_quickly(context: Any, params: Iterable[Any]) -> None:
    """Do not convert values if a shell asks for completions: completions do not depend on the values.

    To convert a value, even the default of an option that was not given, Typer would import Pydantic.
    """
    if context.resilient_parsing:
        # For zsh and fish, Typer would import Rich's Markdown to remove tags from help texts. Ours contain no tags.
        completion_classes._sanitize_help_text = str  # type: ignore[assignment]
        for param in params:
            param.process_value = _as_given


class Command(TyperCommand):
    """A command whose options a shell can complete quickly, because completion does not import Pydantic."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments and options."""
        _complete_quickly(ctx, self.get_params(ctx))
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A group of commands. Neither completion nor the help of the group's commands imports Pydantic."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option ``--help`` with the default False, so that no default has to be converted."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options of the group itself. If the first argument is a command's name, there are none to parse."""
        _complete_quickly(ctx, self.get_params(ctx))
        own = self.params
        self.params = [] if args and not args[0].startswith("-") else own
        try:
            return super().parse_args(ctx, args)
        finally:
            self.params = own


class LazyGroup(Group):
    """The top-level group ``everyrun``. It contains the commands of the table."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands without importing a command's module."""
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands into the help, with one section per panel."""
        width = max(map(len, COMMANDS))
        for panel, commands in PANELS.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), entry.help) for name, entry in commands.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the names of commands and options that begin with ``incomplete``."""
        from typer._click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]
        # Skip the method of TyperGroup, which would import every command's module to get the command's help.
        return [*found, *super(TyperGroup, self).shell_complete(ctx, incomplete)]
