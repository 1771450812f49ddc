"""Find Everyrun's services (of a running stack, or named by the settings), and call them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from everyrun.cli import exits
from everyrun.cli.console import err, fail

if TYPE_CHECKING:
    import httpx

    from everyrun.settings import Settings

#: Commands that should survive an outage retry an unavailable service for this many seconds.
PATIENCE = 300.0
#: Maximum number of seconds between two tries of a request.
_MOST_PAUSE = 10.0
#: The codes of errors that a command handles itself.
_ANSWERS = ("SUBMITTED_BEFORE", "SYNCED_MEANWHILE")


@dataclass(frozen=True)
class Target:
    """The addresses of the services, and the credentials for them."""

    submission_url: str
    query_url: str
    api_token: str
    extend_base_url: str
    extend_api_key: str
    extend_workspace_id: str
    workflow_id: str
    #: Where the token comes from, for error messages.
    whose_token: str = ""
    #: A note to show before an upload to Extend.
    upload_note: str = ""
    #: Empty if neither the settings nor a stack name the notifier.
    notifier_url: str = ""


def find(data_dir: Path) -> Target:
    """Return the services that the settings name.

    Addresses and credentials that the settings lack are taken from the stack that runs in the folder.

    Ends the command if neither the settings nor a stack name the services.
    """
    found = _find(data_dir)
    if isinstance(found, str):
        fail(found, exits.NOT_FOUND)
    return found


def find_if_any(data_dir: Path) -> Target | None:
    """Return what ``find`` returns, or None if neither the settings nor a stack name the services."""
    found = _find(data_dir)
    return None if isinstance(found, str) else found


def _find(data_dir: Path) -> Target | str:
    from everyrun.cli.chosen import settings_in
    from everyrun.settings import SettingsError

    try:
        settings, stack = settings_in(data_dir)
    except SettingsError as error:
        fail(str(error))
    if stack is None:
        try:
            settings.need("submission_url", "query_url", "api_token")
        except SettingsError as error:
            none = f"no stack runs in {data_dir} (start one with: everyrun up), and the settings name no services"
            return f"{none}:\n{error}"
    token = settings.api_token.get_secret_value()
    is_of_stack = stack is not None and settings.submission_url == stack["submission_url"]
    return Target(
        submission_url=settings.submission_url,
        query_url=settings.query_url,
        api_token=token,
        extend_base_url=settings.extend_base_url,
        extend_api_key=settings.extend_api_key.get_secret_value(),
        extend_workspace_id=settings.extend_workspace_id,
        workflow_id=stack["workflow_id"] if stack is not None and is_of_stack else "",
        whose_token=f"the stack in {data_dir}" if stack and token == stack["api_token"] else "EVERYRUN_API_TOKEN",
        notifier_url=settings.notifier_url,
        upload_note=_NOT_OURS if stack and stack["emulator_url"] and _key_is_unused(settings) else "",
    )


_NOT_OURS = (
    "EXTEND_API_KEY is set and not used: this stack has an emulator in the place of Extend, with a key of its own. "
    "For the real Extend see: everyrun up --extend"
)


def _key_is_unused(settings: Settings) -> bool:
    from everyrun.settings import load

    key = load().extend_api_key.get_secret_value()
    return bool(key) and key != settings.extend_api_key.get_secret_value()


class Client:
    """Call Everyrun's services. A failure ends the command with a message."""

    def __init__(self, target: Target) -> None:
        import httpx

        from everyrun.embedded.state import NO_PROXY

        self.target = target
        headers = {"authorization": f"Bearer {target.api_token}"}
        self._http = httpx.Client(headers=headers, timeout=300, mounts=NO_PROXY)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, url: str, within: float = 0.0, /, **query: Any) -> dict[str, Any]:
        """Send a GET and return the JSON of the answer. For ``within``, see :meth:`answer`."""
        params = {name: value for name, value in query.items() if value is not None}
        return self.answer("GET", url, within=within, params=params)

    def every(self, url: str, name: str, within: float = 0.0, /, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the rows of all pages; each page holds its rows under ``name``. A page is fetched when it is needed."""
        cursor = None
        while True:
            page = self.get(url, within, **query, cursor=cursor)
            yield from page[name]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def answer(
        self, method: str, url: str, *, within: float = 0.0, unanswered: str = "", **more: Any
    ) -> dict[str, Any]:
        """Send a request and return the JSON of the answer.

        Four kinds of answers are returned: a success, a list of bad rows, and the messages that the same rows were
        submitted before, or that another sync was faster. Any other answer ends the command.

        If there is no answer, or if its status is 5xx, the request is retried for ``within`` seconds, and one message
        says so. Give ``within`` only for requests that can safely be repeated. If all retries fail, ``unanswered`` is
        printed.
        """
        return self._body(self._response(method, url, within, unanswered, **more))

    def _response(self, method: str, url: str, within: float, unanswered: str = "", **more: Any) -> httpx.Response:
        import httpx

        until, pause = None, 0.5
        while True:
            response = None
            try:
                response = self._http.request(method, url, **more)
                problem = str(response.status_code)
            except httpx.TransportError as error:
                problem = type(error).__name__
            if response is not None and (not response.is_server_error or _too_slow(response)):
                return response
            # The time starts at the first failure, because the first try may have been a long upload.
            now = time.monotonic()
            if until is None and within:
                text = f"{url} does not answer ({problem}); trying for {within / 60:.0f} minutes"
                err.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
            until = until or now + within
            if now >= until:
                break
            time.sleep(pause)
            pause = min(pause * 2, _MOST_PAUSE)
        if unanswered:
            err.print(escape(unanswered), soft_wrap=True)
        if response is None:
            fail(f"{url} does not answer ({problem}); is the stack up? See: everyrun status", exits.NOT_FOUND)
        return response

    @contextmanager
    def stream(self, url: str, query: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, str], Iterator[bytes]]]:
        """Send a GET, and yield the headers and the parts of the answer. When all parts were read, it is complete.

        An error, or a stream that breaks off, ends the command.
        """
        import httpx

        try:
            with self._http.stream("GET", url, params=dict(query)) as response:
                if not response.is_success:
                    response.read()
                    self._body(response)
                yield response.headers, response.iter_bytes(1 << 20)
        except httpx.TransportError as error:
            fail(f"{url} broke off ({type(error).__name__}); the answer is incomplete. Try again")

    def _body(self, response: httpx.Response) -> dict[str, Any]:
        try:
            body: dict[str, Any] = response.json()
        except ValueError:
            fail(f"{response.url} answered {response.status_code} without JSON: {response.text[:200]}")
        if response.is_success or "bad_rows" in body or body.get("code") in _ANSWERS:
            return body
        code = exits.NOT_FOUND if response.status_code == 404 else exits.ERROR
        if response.status_code in (401, 403):
            whose = self.target.whose_token
            fail(f"{body.get('message', body)} ({response.status_code}; the token is that of {whose})", code)
        fail(f"{body.get('message', body)} ({response.status_code} {body.get('code', '')})", code)

    def report(self, submission_id: str, within: float = 0.0) -> dict[str, Any]:
        """Return the report on a submission. This is expensive: the service counts every row of the submission."""
        return self.get(f"{self.target.query_url}/v1/submissions/{submission_id}/report", within)

    def report_if_quick(self, submission_id: str, within: float = 0.0) -> dict[str, Any] | None:
        """Return the report on a submission, or None if the database needs longer than the service allows."""
        response = self._response("GET", f"{self.target.query_url}/v1/submissions/{submission_id}/report", within)
        return None if _too_slow(response) else self._body(response)

    def progress(self, submission_id: str, within: float = 0.0) -> dict[str, Any]:
        """Return the progress of a submission. This is cheap even for a large submission: the counters are stored."""
        url = f"{self.target.query_url}/v1/submissions/{submission_id}/progress"
        unanswered = f"The submission is kept. Follow it with: everyrun watch {submission_id}" if within else ""
        return self.answer("GET", url, within=within, unanswered=unanswered)

    def check_workflow(self, workflow_id: str, version: str | None, within: float = 0.0) -> str | None:
        """Ask Extend, through the submission service, whether a workflow and its version exist.

        Returns None if both exist. If Extend could not be asked, returns the reason. Ends the command if one of them
        does not exist.

        If the submission service is unavailable, the request is retried for ``within`` seconds, and then the command
        ends. If ``within`` is 0, there is no retry, and the returned reason says that the service is unavailable.
        """
        import httpx

        url = f"{self.target.submission_url}/v1/workflows/check"
        query = {"workflow_id": workflow_id} | ({"workflow_version": version} if version else {})
        if within:
            return self.get(url, within, **query).get("workflow_unchecked")
        try:
            response = self._http.get(url, params=query)
        except httpx.TransportError as error:
            return f"{self.target.submission_url} does not answer: {type(error).__name__}"
        if response.is_server_error:
            return f"{self.target.submission_url} answers {response.status_code}"
        return self._body(response).get("workflow_unchecked")

    def check_object(self, address: str, within: float = 0.0) -> None:
        """Check that the submission service can read and presign an object. Ends the command if it cannot.

        If the service is unavailable, the request is retried for ``within`` seconds.
        """
        self.get(f"{self.target.submission_url}/v1/objects/check", within, object=address)


def _too_slow(response: httpx.Response) -> bool:
    """Return True if the query service answered that the request takes too long. A retry would not help then."""
    return response.status_code == 504 and b'"TOO_SLOW"' in response.content
