"""Define what the HTTP APIs have in common: checks of tokens and scopes, limits of bodies, and the form of errors."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer, SecurityScopes
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from everyrun.errors import Conflict, EveryrunError, Invalid, NotFound, Unavailable
from everyrun.openapi import document
from everyrun.settings import Settings
from everyrun.store import tokens
from everyrun.store.pool import POSTGRES_AWAY, is_slow
from everyrun.store.session import ended_by
from everyrun.telemetry import log

_log = log(__name__)


class ApiError(EveryrunError):
    """Ends a request with this status. The response has the code, the message and the fields in ``more``."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self._more = more

    def details(self) -> dict[str, Any]:
        """Return the fields that the response has in addition to the code and the message."""
        return self._more


class InvalidFieldError(Invalid):
    """A parameter or a field of the body is wrong. The response is 422, and its ``field`` names what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field

    def details(self) -> dict[str, Any]:
        """Return the field's name."""
        return {"field": self.field}


#: The HTTP status of the response for each kind of error.
_STATUS = {NotFound: 404, Conflict: 409, Invalid: 422, Unavailable: 503}


def _answer(error: EveryrunError, status: int) -> JSONResponse:
    body = {"code": error.code, "message": str(error), **error.details()}
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, Unavailable) else None
    return JSONResponse(body, status, headers)


_TOKEN = HTTPBearer(auto_error=False, description="A token made with `everyrun token create`, or EVERYRUN_API_TOKEN.")


def _permitted(request: Request, needed: SecurityScopes, _for_openapi: Annotated[Any, Depends(_TOKEN)] = None) -> None:
    for name in needed.scopes:
        if name not in request.state.caller.scopes:
            raise ApiError(403, "FORBIDDEN", f"this token lacks the scope {name}", scope=name)
    _refuse_unknown_parameters(request)


def _refuse_unknown_parameters(request: Request) -> None:
    """Raise InvalidFieldError if the request has a query parameter that the route does not know.

    It must not be ignored, because a misspelled filter would silently have no effect. A parameter that is declared as
    ``name.*`` stands for all names that begin with ``name.``.
    """
    known = _parameters(request.scope["route"].dependant)
    families = tuple(name.removesuffix("*") for name in known if name.endswith(".*"))
    for name in request.query_params:
        if name not in known and not name.startswith(families):
            near = difflib.get_close_matches(name, known, 1, 0.6)
            has = f"the parameters are: {', '.join(known)}" if known else "this call has none"
            hint = f"did you mean {near[0]}?" if near else has
            raise InvalidFieldError(name, f"there is no such parameter; {hint}")


def _parameters(dependant: Any) -> list[str]:
    """Return the names of the query parameters of a route and of what it depends on."""
    return [
        *(parameter.alias for parameter in dependant.query_params),
        *(name for inner in dependant.dependencies for name in _parameters(inner)),
    ]


def scope(name: tokens.Scope) -> Any:
    """Require that the caller's token has a scope. Every route must use this: ``dependencies=[scope("read")]``."""
    return Security(_permitted, scopes=[name])


def caller(request: Request) -> str:
    """Return the name of the token that a request carries. It is recorded with a decision, to show who made it."""
    found: tokens.Caller = request.state.caller
    return found.name


#: Maximum size of a request body in bytes. Routes that stream their body check a limit of their own.
BODY_BYTES = 16 << 20


def _sized(receive: Receive) -> Receive:
    """Wrap ``receive`` so that a body larger than BODY_BYTES is answered with 413."""
    taken = 0

    async def limited() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {BODY_BYTES} bytes")
        return message

    return limited


class _Guard:
    """Requires a valid token for every path but ``/openapi.json``. Each route checks the token's scopes."""

    def __init__(
        self, app: ASGIApp, known: tokens.Tokens, streams: frozenset[str], unavailable: tuple[type[Exception], ...]
    ) -> None:
        self._app = app
        self._streams = streams
        self._known = known
        self._unavailable = unavailable

    async def __call__(self, asgi: AsgiScope, receive: Receive, send: Send) -> None:
        """Call the application if the token is valid. Otherwise answer 401.

        The response is the same for every kind of invalid token, so that it tells an attacker nothing.
        """
        if asgi["type"] != "http" or asgi["path"] == "/openapi.json":
            await self._app(asgi, receive, send)
            return
        try:
            found = await self._caller(asgi)
        except tokens.RevocationsUnknownError as error:
            await _answer(error, _STATUS[Unavailable])(asgi, receive, send)
            return
        except self._unavailable as error:
            await _away(error)(asgi, receive, send)
            return
        if found is None:
            body = {"code": "UNAUTHORIZED", "message": "Authorization: Bearer TOKEN is missing or wrong"}
            await JSONResponse(body, 401, {"www-authenticate": "Bearer"})(asgi, receive, send)
            return
        asgi.setdefault("state", {})["caller"] = found
        await self._app(asgi, receive if asgi["path"].rstrip("/") in self._streams else _sized(receive), send)

    async def _caller(self, asgi: AsgiScope) -> tokens.Caller | None:
        given = [value for name, value in asgi["headers"] if name == b"authorization"]
        if len(given) != 1:
            return None
        kind, _, token = given[0].decode("latin-1").partition(" ")
        return await self._known.caller(token) if kind.lower() == "bearer" and token else None


_CODES = {400: "UNREADABLE", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "TOO_LARGE"}


def _away(error: Exception) -> JSONResponse:
    setting = ended_by(error)
    if setting is not None:
        _log.warning("answering 504", error=f"{type(error).__name__}: {error}")
        message = f"the database ended this request because of its setting {setting}; the operator can raise it"
        return JSONResponse({"code": "TOO_SLOW", "message": message}, 504)
    if is_slow(error):
        _log.warning("answering 504", error=f"{type(error).__name__}: {error}")
        body = {"code": "TOO_SLOW", "message": "the database took too long for this request; retry later"}
        return JSONResponse(body, 504)
    _log.warning("answering 503", error=f"{type(error).__name__}: {error}")
    full = isinstance(error, asyncpg.DiskFullError)
    what = "the database has no room left on its disk" if full else "the database does not answer"
    body = {"code": "UNAVAILABLE", "message": f"{what}; retry later"}
    return JSONResponse(body, 503, {"retry-after": "1"})


def _field_problem(problem: dict[str, Any], request: Request) -> tuple[str, str]:
    """Return the field that a validation error of pydantic is about, and what is wrong with the field."""
    field = ".".join(str(part) for part in problem["loc"][1:]) or str(problem["loc"][0])
    context = problem.get("ctx") or {}
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        field = str(context["discriminator"]).strip("'")
        wrong = f"{context['tag']!r} is unknown" if "tag" in context else "is missing"
        kinds = context.get("expected_tags")
        return field, wrong + (f"; it must be one of: {kinds.replace(chr(39), '')}" if kinds else "")
    if problem["type"] != "missing":
        return field, problem["msg"]
    if problem["loc"] == ("body",):
        # The whole body is missing. Name the first field that the body must have, which says more than "body".
        body = getattr(request.scope.get("route"), "body_field", None)
        fields = getattr(getattr(body, "field_info", None), "annotation", None)
        needed = [name for name, one in getattr(fields, "model_fields", {}).items() if one.is_required()]
        field = needed[0] if needed else field
    return field, "is missing"


def add_error_handlers(app: FastAPI) -> None:
    """Make the app answer errors of Everyrun, FastAPI and Starlette with a body that has ``code`` and ``message``."""

    @app.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> JSONResponse:
        return _answer(error, error.status)

    def of_kind(status: int) -> Any:
        async def answered(_request: Request, error: Exception) -> JSONResponse:
            assert isinstance(error, EveryrunError)
            return _answer(error, status)

        return answered

    for kind, status in _STATUS.items():
        app.add_exception_handler(kind, of_kind(status))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        field, message = _field_problem(error.errors()[0], request)
        return JSONResponse({"code": "INVALID_REQUEST", "message": f"{field}: {message}", "field": field}, 422)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "ERROR")
        return JSONResponse({"code": code, "message": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def incomplete(_request: Request, _error: ClientDisconnect) -> JSONResponse:
        body = {"code": "INCOMPLETE", "message": "the body ended early or came too slowly"}
        return JSONResponse(body, 400, {"connection": "close"})


def api(
    title: str,
    description: str,
    settings: Settings,
    pool: asyncpg.Pool,
    streams: frozenset[str] = frozenset(),
    unavailable: tuple[type[Exception], ...] = POSTGRES_AWAY,
) -> FastAPI:
    """Return a FastAPI application that requires a valid token on every path except ``/openapi.json``.

    The tokens are read from ``pool``. A body larger than BODY_BYTES is refused, except on the paths in ``streams``,
    whose routes check a limit of their own. Errors of the classes in ``unavailable`` mean that the database does not
    answer, or needs too long; the response to them is 503 or 504.
    """
    app = FastAPI(
        title=title, description=description, version="1", docs_url=None, redoc_url=None, redirect_slashes=False
    )
    unknown = app.router.default

    async def same_without_slash(asgi: AsgiScope, receive: Receive, send: Send) -> None:
        """If an unknown path ends with a slash, handle the request as if the slash were not there."""
        path = asgi.get("path", "")
        if asgi["type"] == "http" and path.endswith("/") and path.rstrip("/"):
            await app.router({**asgi, "path": path.rstrip("/")}, receive, send)
        else:
            await unknown(asgi, receive, send)

    app.router.default = same_without_slash
    known = tokens.Tokens(pool, settings.api_token.get_secret_value())
    app.add_middleware(_Guard, known=known, streams=streams, unavailable=unavailable)

    add_error_handlers(app)

    async def away(_request: Request, error: Exception) -> JSONResponse:
        return _away(error)

    for down in unavailable:
        app.add_exception_handler(down, away)

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
    return app
