"""Addresses of objects, and what an error of the client library means."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from obstore.exceptions import GenericError, NotFoundError, PermissionDeniedError, UnauthenticatedError

from everyrun import objects
from everyrun.objects import (
    Bucket,
    ObjectCredentialsError,
    ObjectDeniedError,
    ObjectGoneError,
    ObjectStoreUnavailableError,
    _translated,
)


@pytest.mark.parametrize(
    "text",
    [
        *("s3://bucket", "s3://bucket/", "s3://bucket/a/", "s3://bucket//a", "s3://bucket/a//b", "s3://bucket/../a"),
        *(
            "s3://key:secret@bucket/a",
            "s3://bucket?x/a",
            "ftp://bucket/a",
            "s3:/bucket/a",
            "s3://b/a",
            "s3://bucket/a\tb",
        ),
    ],
)
def test_a_text_that_names_no_object_is_refused(text: str) -> None:
    with pytest.raises(objects.ObjectAddressError):
        objects.parse(text)


@pytest.mark.parametrize("key", ["a.pdf", "in/sp ace.pdf", "per%20cent.pdf", "q?x#y.pdf", "ü/ß.pdf", "a..b"])
def test_a_key_is_kept_exactly(key: str) -> None:
    for scheme in objects.SCHEMES:
        assert objects.parse(f"{scheme}://bucket/{key}") == (f"{scheme}://bucket", key)
        assert str(objects.parse(f"{scheme}://bucket/{key}")) == f"{scheme}://bucket/{key}"


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("s3://bucket", "s3://bucket", ""),
        ("s3://bucket/", "s3://bucket", ""),
        ("s3://bucket/2026/", "s3://bucket", "2026"),
        ("az://container/a/b", "az://container", "a/b"),
    ],
)
def test_a_prefix_may_be_a_bucket_or_end_in_a_slash(text: str, bucket: str, key: str) -> None:
    assert objects.parse_prefix(text) == (bucket, key)


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (FileNotFoundError("Object at location a.pdf not found"), ObjectGoneError),
        (NotFoundError("Object at location a.pdf not found"), ObjectGoneError),
        (PermissionDeniedError("403 Forbidden: AccessDenied"), ObjectDeniedError),
        (PermissionDeniedError("403 Forbidden: InvalidAccessKeyId"), ObjectCredentialsError),
        (PermissionDeniedError("403 Forbidden: SignatureDoesNotMatch"), ObjectCredentialsError),
        (UnauthenticatedError("401"), ObjectCredentialsError),
        (GenericError("Error performing PUT http://169.254.169.254/latest/api/token"), ObjectCredentialsError),
        (GenericError("Generic MicrosoftAzure error: Account must be specified"), ObjectCredentialsError),
        (GenericError("Error performing HEAD https://s3.example: connection refused"), ObjectStoreUnavailableError),
        (GenericError("Server returned non-2xx status code: 503"), ObjectStoreUnavailableError),
    ],
)
def test_an_error_of_the_client_library_is_classified(error: Exception, means: type[Exception]) -> None:
    assert type(_translated(error, "s3://bucket/a.pdf")) is means


def test_an_error_fits_on_a_line_and_shows_no_secret() -> None:
    error = GenericError("HEAD https://s3.example/a.pdf?X-Amz-Signature=secret failed\n\nDebug source:\nGeneric {")
    text = str(_translated(error, "s3://bucket/a.pdf"))
    assert text == "s3://bucket/a.pdf: HEAD https://s3.example/a.pdf?[hidden] failed"


@pytest.mark.parametrize(
    ("given", "etag"), [('"abc"', "abc"), ("0x8D", "0x8D"), ('W/"abc"', "abc"), (None, None), ('""', None)]
)
def test_an_etag_is_the_same_with_and_without_quotes(
    monkeypatch: pytest.MonkeyPatch, given: str | None, etag: str | None
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    meta: dict[str, Any] = {"path": "a", "size": 1, "e_tag": given, "last_modified": datetime(2026, 1, 1, tzinfo=UTC)}
    assert Bucket("s3://bucket")._found(meta).etag == etag
