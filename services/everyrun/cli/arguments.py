"""Define the arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar="EVERYRUN_DATA_DIR",
        help="Folder of the running stack. Environment variables override its settings.",
    ),
]
SubmissionId = Annotated[str, typer.Argument(metavar="ID", help="A submission id (sub_...).")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Why = Annotated[str, typer.Option("--reason", help="Reason for your decision, stored with it.")]

# --- for the commands that read manifests: submit and register
Workflow = Annotated[str | None, typer.Option(help="Workflow id at Extend. Not needed with the emulator.")]
IdColumn = Annotated[str | None, typer.Option(help="CSV column that holds the input's id. Default: id.")]
UrlColumn = Annotated[str | None, typer.Option(help="CSV column that holds the file's URL. Default: url.")]
MetadataColumns = Annotated[
    list[str] | None,
    typer.Option(help="CSV columns that hold metadata: a,b or '*' (all others)."),
]
Delimiter = Annotated[str | None, typer.Option(help="CSV delimiter, if it is not a comma, semicolon or tab.")]
Encoding = Annotated[str | None, typer.Option(help="Encoding of the manifest, if not UTF-8. Example: windows-1252.")]
Wait = Annotated[
    bool,
    typer.Option("--wait", help="Afterwards, follow the inputs as everyrun watch does, with its exit codes."),
]
