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
        help="Folder of the running stack. Settings in the environment take precedence.",
    ),
]
SubmissionId = Annotated[str, typer.Argument(metavar="ID", help="A submission id (sub_...).")]
Json = Annotated[bool, typer.Option("--json", help="JSON output.")]
Why = Annotated[str, typer.Option("--reason", help="Reason, kept with the decision.")]

# --- manifests
Workflow = Annotated[str | None, typer.Option(help="Extend's workflow id; the emulator's own by default.")]
IdColumn = Annotated[str | None, typer.Option(help="CSV column of the input's id; `id` by default.")]
UrlColumn = Annotated[str | None, typer.Option(help="CSV column of the file's link; `url` by default.")]
MetadataColumns = Annotated[
    list[str] | None,
    typer.Option(help="CSV columns for the metadata, such as a,b; '*' for all others."),
]
Delimiter = Annotated[str | None, typer.Option(help="Delimiter of the CSV, if not comma, semicolon or tab.")]
Encoding = Annotated[str | None, typer.Option(help="Encoding of the manifest, if not UTF-8: windows-1252, …")]
Wait = Annotated[
    bool,
    typer.Option("--wait", help="Wait until every input is settled; exit with 3 or 6 if not all went well."),
]
