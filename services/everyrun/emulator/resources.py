"""Serve Extend's endpoints for workflows, their versions, and files.

They follow the SDK 1.20.0: the packages workflows, workflow_versions and files.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from everyrun.emulator import render
from everyrun.emulator.engine import DRAFT, VERSIONS, Engine
from everyrun.emulator.listing import make_cursor, page_size, read_cursor
from everyrun.emulator.validate import invalid, not_found

RouteOf = tuple[str, str, Callable[[Request], Awaitable[Any]]]
#: Extend converts Word and PowerPoint files to PDF even without convertToPdf (SDK 1.20.0, files/client.py upload).
_TO_PDF = (".doc", ".docx", ".ppt", ".pptx")


def resource_routes(engine: Engine) -> list[RouteOf]:
    """Return (method, path, handler) of each endpoint."""
    api = _Resources(engine)
    return [
        ("GET", "/workflows", api.list_workflows),
        ("GET", "/workflows/{id}", api.get_workflow),
        ("GET", "/workflows/{id}/versions", api.list_versions),
        ("GET", "/workflows/{id}/versions/{version}", api.get_version),
        ("POST", "/files/upload", api.upload),
        ("GET", "/files", api.list_files),
        ("GET", "/files/{id}", api.get_file),
        ("DELETE", "/files/{id}", api.delete_file),
    ]


def paged(items: list[dict[str, Any]], request: Request, filters: tuple[str, ...]) -> dict[str, Any]:
    """Return a page of a short list. Raises ApiProblem if the page size or the cursor is wrong."""
    query = request.query_params
    size = page_size(query.get("maxPageSize"))
    after = read_cursor(query, filters)
    start = 0 if after is None else after[1]
    page: dict[str, Any] = {"object": "list", "data": items[start : start + size]}
    if start + size < len(items):
        page["nextPageToken"] = make_cursor(query, filters, (0.0, start + size))
    return page


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false").lower()
    if text not in ("true", "false"):
        raise invalid(f"{name}: true or false")
    return text == "true"


def _direction(request: Request) -> str:
    direction = request.query_params.get("sortDir", "desc")
    if direction not in ("asc", "desc"):
        raise invalid("sortDir: asc or desc")
    return direction


class _Resources:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def _workflow_made_at(self) -> float:
        return self._engine.workflow_made_at + self._engine.dice.clock_offset

    async def list_workflows(self, request: Request) -> Any:
        """Answer GET /workflows: the only workflow."""
        _direction(request)
        if request.query_params.get("sortBy", "updatedAt") not in ("updatedAt", "createdAt"):
            raise invalid("sortBy: updatedAt or createdAt")
        return paged(
            [render.workflow(self._engine.workflow_id, self._workflow_made_at)], request, ("sortBy", "sortDir")
        )

    async def get_workflow(self, request: Request) -> Any:
        """Answer GET /workflows/{id}: the workflow with its draft and the steps of the draft."""
        workflow_id = request.path_params["id"]
        self._engine.resolve_version(workflow_id, None)
        draft = render.version_with_steps(workflow_id, DRAFT, self._workflow_made_at)
        return {**render.workflow(workflow_id, self._workflow_made_at), "draftVersion": draft}

    async def list_versions(self, request: Request) -> Any:
        """Answer GET /workflows/{id}/versions: all versions and the draft, by default the newest first."""
        workflow_id = request.path_params["id"]
        self._engine.resolve_version(workflow_id, None)
        found = [render.version(workflow_id, name, self._workflow_made_at) for name in (*VERSIONS, DRAFT)]
        return paged(found if _direction(request) == "asc" else found[::-1], request, ("sortDir",))

    async def get_version(self, request: Request) -> Any:
        """Answer GET /workflows/{id}/versions/{version}: draft, latest, a number, or a version's id."""
        workflow_id, name_or_id = request.path_params["id"], request.path_params["version"]
        self._engine.resolve_version(workflow_id, None)
        known = {render.version_id(workflow_id, name): name for name in (*VERSIONS, DRAFT)}
        name = VERSIONS[-1] if name_or_id == "latest" else known.get(name_or_id, name_or_id)
        if name not in known.values():
            raise not_found(f"version {name_or_id} of workflow {workflow_id}")
        return render.version_with_steps(workflow_id, name, self._workflow_made_at)

    async def upload(self, request: Request) -> Any:
        """Answer POST /files/upload."""
        converted = _flag(request, "convertToPdf")
        async with request.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise invalid("file: is required")
            if not isinstance(form.get("password", ""), str):
                raise invalid("password: must be a string")
            name = file.filename or "file"
            kind = "PDF" if converted or name.lower().endswith(_TO_PDF) else None
            file_id = f"file_{secrets.token_hex(10)}"
            return await self._engine.files.upload(file_id, name, kind, file.file, self._engine.dice.clock_offset)

    async def list_files(self, request: Request) -> Any:
        """Answer GET /files."""
        return self._engine.files.page(request.query_params, self._engine.dice.clock_offset)

    async def get_file(self, request: Request) -> Any:
        """Answer GET /files/{id}: the file with a link to its content, and with its parsed contents if requested."""
        shown = frozenset(name for name in ("rawText", "markdown", "html") if _flag(request, name))
        return self._engine.files.get(request.path_params["id"], shown, self._engine.dice.clock_offset)

    async def delete_file(self, request: Request) -> Any:
        """Answer DELETE /files/{id}: delete the file. Later calls that name the file are refused."""
        file_id = request.path_params["id"]
        await self._engine.files.delete(file_id)
        return {"id": file_id}
