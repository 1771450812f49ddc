"""Call every route of the APIs with values that its OpenAPI document allows, and with values that it does not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from everyrun import schemas
from tests.fuzz.conftest import TOKEN, World, fuzz

pytestmark = pytest.mark.stack


def _cases(document: dict[str, Any], mode: GenerationMode) -> st.SearchStrategy[Any]:
    schema = schemathesis.openapi.from_dict(document)
    found = [result.ok().as_strategy(generation_mode=mode) for result in schema.get_all_operations()]
    return st.one_of(found)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
@pytest.mark.parametrize("name", ["submission", "query"])
def test_no_call_crashes_an_api(world: World, name: str, mode: GenerationMode) -> None:
    def try_out(case: Any) -> None:
        headers = {"authorization": f"Bearer {TOKEN}"}
        try:
            answer = case.call(base_url=world.url(name), headers=headers, timeout=60)
        except (ValueError, UnicodeError):
            return  # this client cannot send it
        world.check(answer.status_code, answer.text)
        if answer.status_code >= 400 and answer.headers.get("content-type") == "application/json":
            assert {"code", "message"} <= set(answer.json()), answer.text

    fuzz(_cases(schemas.openapis()[name], mode), try_out, 15)
    world.check_logs()


def test_without_a_token_every_call_is_refused(world: World, http: httpx.Client) -> None:
    for name in ("submission", "query"):
        for path, methods in schemas.openapis()[name]["paths"].items():
            for method in methods:
                answer = httpx.request(method, world.url(name) + path.replace("{", "").replace("}", ""))
                assert answer.status_code == 401, (method, path)
