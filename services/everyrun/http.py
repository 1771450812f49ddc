"""What our HTTP APIs have in common: the token, and errors of one form."""

from __future__ import annotations

import hmac
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from everyrun.settings import Settings
from everyrun.telemetry import log

_log = log(__name__)


class ApiError(Exception):
    """An answer that is not a success: ``{"code", "message"}`` and what else is given."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, **more}


def api(title: str, description: str, settings: Settings, unavailable: tuple[type[Exception], ...]) -> FastAPI:
    """A FastAPI application whose every path but the OpenAPI document wants EVERYRUN_API_TOKEN as a bearer token."""
    app = FastAPI(title=title, description=description, version="1", docs_url=None, redoc_url=None)
    expected = b"Bearer " + settings.api_token.get_secret_value().encode()

    @app.middleware("http")
    async def check_token(request: Request, go_on: Any) -> Any:
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if request.url.path != "/openapi.json" and not hmac.compare_digest(given, expected):
            headers = {"www-authenticate": "Bearer"}
            body = {"code": "UNAUTHORIZED", "message": "Authorization: Bearer TOKEN is missing or wrong"}
            return JSONResponse(body, 401, headers)
        return await go_on(request)

    @app.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"][1:]) or str(problem["loc"][0])
        return JSONResponse({"code": "INVALID_REQUEST", "message": f"{field}: {problem['msg']}", "field": field}, 422)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "ERROR")
        return JSONResponse({"code": code, "message": str(error.detail)}, error.status_code, error.headers)

    async def away(_request: Request, error: Exception) -> JSONResponse:
        _log.warning("answering 503", error=f"{type(error).__name__}: {error}")
        body = {"code": "UNAVAILABLE", "message": "the database does not answer; try again"}
        return JSONResponse(body, 503, {"retry-after": "1"})

    for kind in unavailable:
        app.add_exception_handler(kind, away)
    return app


#: For OpenAPI: how a caller authenticates.
BEARER = HTTPBearer(auto_error=False, description="EVERYRUN_API_TOKEN")
