"""``everyrun export`` puts an object into a bucket as a whole, or leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import obstore
import pytest
from obstore.store import from_url

from everyrun.cli import exits
from tests.integration.buckets import LocalS3
from tests.unit.test_cli_export import Broken, export

pytestmark = pytest.mark.stack


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    s3 = LocalS3(monkeypatch)
    yield s3
    s3.stop()


def content(key: str) -> bytes:
    return bytes(obstore.get(from_url("s3://invoices"), key).bytes())


def test_an_object_is_replaced_as_a_whole(s3: LocalS3) -> None:
    s3.put("a/b.parquet", b"old")
    done, _ = export("--output", "s3://invoices/a/b.parquet", stream=Broken(), content=None)
    assert done.exit_code == exits.ERROR
    assert content("a/b.parquet") == b"old"
    done, route = export("--output", "s3://invoices/a/b.parquet", content=b"x" * (12 << 20))
    assert done.exit_code == 0, done.output
    assert route.calls[0].request.url.params["format"] == "parquet"
    assert content("a/b.parquet") == b"x" * (12 << 20)
    assert "to s3://invoices/a/b.parquet (12.6 MB)" in done.stderr


def test_a_bucket_that_does_not_exist_is_named(s3: LocalS3) -> None:
    done, _ = export("--output", "s3://nix/b.csv")
    assert done.exit_code == exits.ERROR
    assert "s3://nix/b.csv, which was not changed" in done.stderr
    assert "Traceback" not in done.output
