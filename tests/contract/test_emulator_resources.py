"""Workflows, files and single runs, as Extend's SDK and command line use them."""

from __future__ import annotations

import io

import httpx
import pytest
from extend_ai import Extend
from extend_ai.errors import BadRequestError, NotFoundError
from extend_ai.types import (
    File,
    FileSummary,
    Workflow,
    WorkflowStepDefinition_Extract,
    WorkflowStepDefinition_Parse,
    WorkflowStepDefinition_Trigger,
    WorkflowStepDefinition_WebhookResponse,
    WorkflowSummary,
    WorkflowVersion,
    WorkflowVersionSummary,
)

from tests.conftest import eventually
from tests.contract.calls import headers, inputs, sdk
from tests.contract.conftest import WORKFLOW

STEPS = [
    WorkflowStepDefinition_Trigger,
    WorkflowStepDefinition_Parse,
    WorkflowStepDefinition_Extract,
    WorkflowStepDefinition_WebhookResponse,
]


def uploaded(client: Extend, name: str, content: bytes = b"%PDF-1.4", **more) -> File:
    return client.files.upload(file=(name, io.BytesIO(content), "application/octet-stream"), **more)


def every_file(client: Extend, **query) -> list[FileSummary]:
    found, token = [], None
    while True:
        page = client.files.list(next_page_token=token, **query)
        found += page.data
        token = page.next_page_token
        if not token:
            return found


async def ended(client: Extend, run_id: str):
    def done():
        run = client.workflow_runs.retrieve(run_id)
        return run if run.status.value in ("PROCESSED", "NEEDS_REVIEW", "FAILED") else None

    return await eventually(done, "the run ended")


def test_workflows_are_listed_and_retrieved_with_their_steps(emulator):
    client = sdk(emulator.url)
    (summary,) = client.workflows.list(max_page_size=20).data
    assert isinstance(summary, WorkflowSummary)
    assert (summary.object, summary.id) == ("workflow", WORKFLOW)
    assert summary.name
    assert summary.created_at
    whole = client.workflows.retrieve(WORKFLOW)
    assert isinstance(whole, Workflow)
    assert isinstance(whole.draft_version, WorkflowVersion)
    assert whole.draft_version.id.startswith("workflow_version_")
    assert whole.draft_version.version == "draft"
    assert [type(step) for step in whole.draft_version.steps] == STEPS
    names = [step.name for step in whole.draft_version.steps]
    leads_to = [[entry.step for entry in getattr(step, "next", None) or []] for step in whole.draft_version.steps]
    assert leads_to == [[name] for name in names[1:]] + [[]]


def test_versions_of_a_workflow_are_listed_and_retrieved(emulator):
    client = sdk(emulator.url)
    versions = client.workflow_versions.list(WORKFLOW, max_page_size=2)
    assert [version.version for version in versions.data] == ["draft", "2"]
    rest = client.workflow_versions.list(WORKFLOW, max_page_size=2, next_page_token=versions.next_page_token)
    assert [version.version for version in rest.data] == ["1"]
    assert isinstance(rest.data[0], WorkflowVersionSummary)
    for name, version in (("draft", "draft"), ("latest", "2"), ("1", "1"), (rest.data[0].id, "1")):
        found = client.workflow_versions.retrieve(WORKFLOW, name)
        assert found.version == version
        assert [type(step) for step in found.steps] == STEPS
    with pytest.raises(NotFoundError):
        client.workflow_versions.retrieve(WORKFLOW, "9")


def test_an_unknown_workflow_answers_404_in_extends_form(emulator):
    client = sdk(emulator.url)
    calls = [
        lambda: client.workflows.retrieve("workflow_typo"),
        lambda: client.workflow_versions.list("workflow_typo"),
        lambda: client.workflow_runs.create_batch(workflow={"id": "workflow_typo"}, inputs=inputs(2)),
        lambda: client.workflow_runs.create(workflow={"id": "workflow_typo"}, file={"text": "x"}),
    ]
    for call in calls:
        with pytest.raises(NotFoundError) as raised:
            call()
        assert raised.value.body["code"] == "NOT_FOUND"
        assert "workflow_typo" in raised.value.body["message"]
        assert raised.value.body["retryable"] is False
        assert raised.value.body["requestId"] == raised.value.headers["x-extend-request-id"]


def test_an_upload_has_a_type_if_known_and_no_link(emulator):
    client = sdk(emulator.url)
    types = {
        "a.pdf": "PDF",
        "a.txt": "TXT",
        "a.tiff": "IMG",
        "a.xls": "EXCEL",
        "letter.docx": "PDF",
        "scan0001": None,
    }
    for name, kind in types.items():
        file = uploaded(client, name)
        assert isinstance(file, File)
        assert (file.object, file.name, file.type) == ("file", name, kind)
        assert "presigned_url" not in file.model_fields_set
    assert uploaded(client, "a.png", convert_to_pdf=True).type == "PDF"
    assert uploaded(client, "locked.pdf", password="open sesame").name == "locked.pdf"
    raw = httpx.post(emulator.url + "/files/upload", headers=headers(), files={"file": ("scan0002", b"x")}).json()
    assert "type" not in raw
    assert "presignedUrl" not in raw
    assert raw["contents"] is None


def test_a_file_is_retrieved_with_a_link_to_its_content(emulator):
    client = sdk(emulator.url)
    file = uploaded(client, "note.txt", b"what was written")
    found = client.files.retrieve(file.id)
    assert (found.id, found.name, found.type, found.contents) == (file.id, "note.txt", "TXT", None)
    assert httpx.get(found.presigned_url).content == b"what was written"
    assert httpx.get(found.presigned_url[:-1] + ("0" if found.presigned_url[-1] != "0" else "1")).status_code == 403
    # A link to a file is not valid as a link to a payload.
    assert httpx.get(found.presigned_url.replace("/_files/", "/_signed/")).status_code == 403
    with pytest.raises(NotFoundError):
        client.files.retrieve("file_unknown")


async def test_contents_are_shown_after_a_parse_and_only_on_request(emulator):
    client = sdk(emulator.url)
    file = uploaded(client, "note.txt", b"what was written")
    assert client.files.retrieve(file.id, raw_text=True).contents is None
    run = client.workflow_runs.create(workflow={"id": WORKFLOW}, file={"id": file.id})
    await ended(client, run.id)
    assert client.files.retrieve(file.id).contents is None
    assert client.files.retrieve(file.id, raw_text=True).contents.raw_text == "what was written"
    pdf = uploaded(client, "a.pdf")
    run = client.workflow_runs.create(workflow={"id": WORKFLOW}, file={"id": pdf.id})
    await ended(client, run.id)
    contents = client.files.retrieve(pdf.id, markdown=True).contents
    assert contents.raw_text is None
    assert contents.pages[0].markdown


def test_files_are_listed_page_by_page(emulator_with):
    client = sdk(emulator_with("--run-seconds", "30").url)
    names = [f"invoice-{number}.pdf" for number in range(5)]
    ids = [uploaded(client, name).id for name in names]
    client.workflow_runs.create_batch(workflow={"id": WORKFLOW}, inputs=inputs(5))
    other = uploaded(client, "letter.txt").id
    everything = every_file(client, sort_dir="asc", max_page_size=3)
    assert all(isinstance(file, FileSummary) for file in everything)
    assert [file.id for file in everything][:5] == ids
    assert [file.name for file in everything][5:-1] == [f"{number}.pdf" for number in range(5)]
    assert everything[-1].id == other
    newest_first = every_file(client, max_page_size=4)
    assert [file.id for file in newest_first] == [file.id for file in reversed(everything)]
    assert [file.name for file in every_file(client, name_contains="invoice", max_page_size=2)] == names[::-1]
    page = client.files.list(max_page_size=1)
    with pytest.raises(BadRequestError):
        client.files.list(max_page_size=1, name_contains="x", next_page_token=page.next_page_token)


async def test_a_deleted_file_is_refused(emulator_with):
    emulator = emulator_with("--run-seconds", "0")
    client = sdk(emulator.url)
    gone, kept = uploaded(client, "gone.pdf"), uploaded(client, "kept.pdf")
    link = client.files.retrieve(gone.id).presigned_url
    assert client.files.delete(gone.id).id == gone.id
    # The file of a run can be given to another run until it is deleted.
    run = await ended(client, client.workflow_runs.create(workflow={"id": WORKFLOW}, file={"text": "x"}).id)
    (own,) = run.files
    again = client.workflow_runs.create(workflow={"id": WORKFLOW}, file={"id": own.id})
    assert again.files[0].name == own.name
    client.files.delete(own.id)
    emulator.kill()
    emulator.start()
    assert [file.id for file in client.files.list().data] == [kept.id]
    assert httpx.get(link).status_code == 403
    for deleted in (gone.id, own.id):
        for call in (client.files.retrieve, client.files.delete):
            with pytest.raises(NotFoundError):
                call(deleted)
        with pytest.raises(BadRequestError) as raised:
            client.workflow_runs.create_batch(
                workflow={"id": WORKFLOW}, inputs=[{"file": {"id": kept.id}}, {"file": {"id": deleted}}]
            )
        assert raised.value.body["code"] == "INVALID_REQUEST"
        assert deleted in raised.value.body["message"]
        with pytest.raises(BadRequestError):
            client.workflow_runs.create(workflow={"id": WORKFLOW}, file={"id": deleted})


async def test_a_single_run_is_processed(emulator):
    client = sdk(emulator.url)
    run = client.workflow_runs.create(workflow={"id": WORKFLOW}, file={"text": "one, two"}, metadata={"row": 1})
    assert run.status.value in ("PENDING", "PROCESSING")
    assert run.batch_id is None
    assert run.workflow_version.object == "workflow_version"
    assert run.workflow_version.created_at
    whole = await ended(client, run.id)
    assert whole.status.value == "PROCESSED"
    assert whole.metadata == {"row": 1}
    assert len(whole.step_runs) == 2
    assert client.files.retrieve(whole.files[0].id).type == "TXT"
    listed = client.workflow_runs.list(workflow_id=WORKFLOW, max_page_size=100)
    assert run.id in [one.id for one in listed.data]
    with pytest.raises(BadRequestError):
        client.workflow_runs.create(workflow={"id": WORKFLOW}, file={"text": "x"}, secrets="not an object")
