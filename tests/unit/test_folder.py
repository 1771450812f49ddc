"""The documents in a folder: what is sent, and what is left out and why."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from everyrun.cli import folder, patterns
from everyrun.cli.contents import EXTENSIONS, kind_of
from everyrun.cli.folder import Found, find, id_of_path, same_content
from everyrun.cli.patterns import PatternError
from tests.unit.permissions import held_to


def put(path: Path, content: bytes = b"%PDF-1.7") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sent(found: Found) -> list[str]:
    return [document.shown for document in found.documents]


def test_what_is_left_out_is_counted_by_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for name in ("a.pdf", "sub/B.PDF", "scan0001"):
        put(root / name)
    for name in (".Trash-1000/files/old.pdf", "$RECYCLE.BIN/x.pdf", ".git/deep/y.pdf"):
        put(root / name)
    for name in ("~$x.docx", ".DS_Store", "Thumbs.db", "e.docm", "notes", "archive.zip"):
        put(root / name, b"?")
    os.mkfifo(root / "pipe.pdf")
    found = find(root)
    assert sent(found) == ["a.pdf", "scan0001", "sub/B.PDF"]
    assert found.skipped == {
        patterns.HIDDEN_FOLDER: ["$RECYCLE.BIN/x.pdf", ".Trash-1000/files/old.pdf", ".git/deep/y.pdf"],
        patterns.HIDDEN: [".DS_Store", "Thumbs.db", "~$x.docx"],
        patterns.OTHER_TYPE: ["archive.zip", "e.docm"],
        folder.NO_TYPE: ["notes"],
        folder.NOT_REGULAR: ["pipe.pdf"],
    }
    assert found.broken == []
    assert [document.name for document in found.documents] == ["a.pdf", "scan0001.pdf", "B.PDF"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = tmp_path / "d"
    put(root / "a.pdf")
    put(root / "locked" / "b.pdf")
    put(root / "empty.pdf", b"")
    put(root / "secret.pdf")
    put(root / ".hidden" / "locked" / "c.pdf")
    (root / "gone.pdf").symlink_to(root / "nowhere.pdf")
    (root / "round").symlink_to(root / "round")
    for name in ("locked", "secret.pdf", ".hidden/locked"):
        (root / name).chmod(0)
    try:
        with held_to():
            found = find(root)
    finally:
        for name in ("locked", "secret.pdf", ".hidden/locked"):
            (root / name).chmod(0o700)
    assert sent(found) == ["a.pdf"]
    assert dict(found.broken) == {
        "locked": "Permission denied",
        "secret.pdf": "Permission denied",
        "empty.pdf": "the file is empty",
        "gone.pdf": "No such file or directory",
        "round": "Too many levels of symbolic links",
    }
    found.leave_out_broken()
    assert (len(found.skipped[folder.UNREADABLE]), found.broken) == (5, [])


def test_linked_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = tmp_path / "d"
    put(root / "a.pdf")
    put(root / "sub" / "b.pdf")
    put(tmp_path / "other" / "c.pdf")
    put(tmp_path / "beside.pdf")
    (tmp_path / "other" / "back").symlink_to(root)
    (tmp_path / "other" / "self").symlink_to(tmp_path / "other")
    (root / "0link").symlink_to(Path("..") / "other")
    (root / "1link").symlink_to(tmp_path / "other")
    (root / "0sub").symlink_to(root / "sub")
    (root / "up").symlink_to("..")
    found = find(root)
    assert sent(found) == ["0link/c.pdf", "a.pdf", "sub/b.pdf"]
    assert found.skipped == {
        folder.LINKED_TWICE: ["0link/self", "0sub", "1link"],
        folder.LINKED_ABOVE: ["0link/back", "up"],
    }


def test_globs_choose_by_name_and_by_path(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.png", "drafts/c.pdf", "in/drafts/d.PDF", "in/e.pdf"):
        put(tmp_path / name)
    assert sent(find(tmp_path, include=["*.pdf"])) == ["a.pdf", "drafts/c.pdf", "in/drafts/d.PDF", "in/e.pdf"]
    assert sent(find(tmp_path, include=["in/*"])) == ["in/drafts/d.PDF", "in/e.pdf"]
    found = find(tmp_path, include=["*.pdf"], exclude=["drafts", "e.*"])
    assert sent(found) == ["a.pdf"]
    assert found.skipped == {
        patterns.EXCLUDED: ["drafts/c.pdf", "in/drafts/d.PDF", "in/e.pdf"],
        patterns.NOT_INCLUDED: ["b.png"],
    }


EXCLUDED_SPELLINGS = [
    *("rechnungen", "rechnungen/", "RECHNUNGEN", "rechnungen/*", "rechnungen/**", "**/rechnungen", "rech*"),
    *("/rechnungen", "/rechnungen/", "./rechnungen", "./rechnungen/", "{folder}/rechnungen", "{folder}/rechnungen/"),
    *("{parent}/./d/rechnungen", "d/rechnungen", "rechnungen/../rechnungen"),
]


@pytest.mark.parametrize("spelling", EXCLUDED_SPELLINGS)
def test_a_folder_may_be_spelled_with_slashes_and_with_the_path_of_the_command(tmp_path: Path, spelling: str) -> None:
    root = tmp_path / "d"
    for name in ("a.pdf", "rechnungen/b.pdf", "rechnungen/alt/c.pdf"):
        put(root / name)
    pattern = spelling.format(folder=root, parent=tmp_path)
    assert sent(find(root, exclude=[pattern])) == ["a.pdf"]
    assert sent(find(root, include=[pattern])) == ["rechnungen/alt/c.pdf", "rechnungen/b.pdf"]


def test_a_folder_below_is_excluded_by_its_name_and_not_by_a_path_from_the_top(tmp_path: Path) -> None:
    for name in ("alt/a.pdf", "b/alt/c.pdf"):
        put(tmp_path / name)
    assert sent(find(tmp_path, exclude=["/alt"])) == ["b/alt/c.pdf"]
    assert sent(find(tmp_path, exclude=["b/alt"])) == ["alt/a.pdf"]
    with pytest.raises(PatternError, match="matches no file or folder"):
        find(tmp_path, exclude=["alt"], include=["*.pdf", "nothing"])


def test_an_exact_name_is_matched_as_it_stands(tmp_path: Path) -> None:
    odd = "a [1] {x} (2).pdf"
    for name in (odd, f"b/{odd}", "a 2 {x} (2).pdf", "u\u0308ber.pdf"):
        put(tmp_path / name)
    assert sent(find(tmp_path, include=[odd])) == [odd, f"b/{odd}"]
    assert sent(find(tmp_path, include=[f"/{odd}"])) == [odd]
    # The same name as macOS decomposes it, and as people type it.
    assert sent(find(tmp_path, include=["\u00fcber.pdf"])) == ["u\u0308ber.pdf"]


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["nothing", "*.docx", "a.pdf/", "", "sub\\a.pdf", "../x", "/sub/x"])
def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path, option: str, pattern: str) -> None:
    put(tmp_path / "sub" / "a.pdf")
    if pattern == "a.pdf/":
        pattern = "b.pdf/"
    with pytest.raises(PatternError) as error:
        find(tmp_path, **{option: [pattern]})
    assert f"--{option} {pattern!r} matches no file or folder" in str(error.value)


def test_a_pattern_is_used_if_all_that_it_matches_is_left_out_already(tmp_path: Path) -> None:
    for name in ("a.pdf", "drafts/b.pdf", "c.tmp", ".hidden/d.log"):
        put(tmp_path / name)
    assert sent(find(tmp_path, exclude=["drafts", "drafts/b.pdf", "*.tmp", "*.log"])) == ["a.pdf"]


def test_what_is_excluded_is_not_sent_by_a_link_that_leads_to_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "d", tmp_path / "outside"
    for path in (
        root / "a.pdf",
        root / "drafts/b.pdf",
        root / "drafts/sub/c.pdf",
        outside / "x.pdf",
        outside / "in/y.pdf",
    ):
        put(path)
    put(root / "drafts/empty.pdf", b"")
    (root / "0drafts").symlink_to(root / "drafts")
    (root / "0sub").symlink_to(root / "drafts/sub")
    (root / "0b.pdf").symlink_to(root / "drafts/b.pdf")
    (root / "0empty.pdf").symlink_to(root / "drafts/empty.pdf")
    (root / "again.pdf").symlink_to(root / "a.pdf")
    (root / "other").symlink_to(outside)
    (root / "secret").symlink_to(outside / "in")
    found = find(root, exclude=["drafts", "secret"])
    assert (sent(found), found.broken) == (["a.pdf", "again.pdf", "other/x.pdf"], [])
    assert {"0b.pdf", "0drafts/b.pdf", "0sub/c.pdf", "other/in/y.pdf"} <= set(found.skipped[patterns.EXCLUDED])
    assert found.skipped_count + len(found.documents) == 12


def test_excluding_a_link_to_the_folder_itself_excludes_only_the_link(tmp_path: Path) -> None:
    put(tmp_path / "a.docx")
    (tmp_path / "self.pdf").symlink_to(tmp_path)
    found = find(tmp_path, exclude=["*.pdf"])
    assert (sent(found), found.skipped) == (["a.docx"], {patterns.EXCLUDED: ["self.pdf"]})


def test_documents_of_the_same_content_are_found(tmp_path: Path) -> None:
    for name, content in {"a.pdf": b"1", "b.pdf": b"1", "c.pdf": b"2", "d.pdf": b"22", "e/f.png": b"1"}.items():
        put(tmp_path / name, content)
    groups = same_content(find(tmp_path).documents)
    assert [[document.shown for document in group] for group in groups] == [["a.pdf", "b.pdf", "e/f.png"]]


@pytest.mark.parametrize(
    "name",
    [
        "a.pdf~",
        "notes~",
        ".a.pdf.swp",
        "a.pdf.swp",
        "#a.pdf#",
        "a.pdf.part",
        "a.pdf.crdownload",
        "A.PDF.PART",
        "~$a.docx",
    ],
)
def test_backups_and_unfinished_downloads_are_left_out(tmp_path: Path, name: str) -> None:
    put(tmp_path / "a.pdf")
    put(tmp_path / name)
    found = find(tmp_path)
    assert (sent(found), found.skipped) == (["a.pdf"], {patterns.HIDDEN: [name]})


def test_the_documentation_lists_the_accepted_extensions() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/manifests.md").read_text()
    listed = page.partition("**Accepted extensions:** ")[2].partition(".")[0]
    assert sorted(listed.replace("\n", " ").split(", ")) == sorted(EXTENSIONS)


def test_names_that_are_not_utf8_are_sent_under_ids_of_their_own(tmp_path: Path) -> None:
    for name in (b"Rechnung_\374.pdf", b"Rechnung_\366.pdf", b"scan\377"):
        put(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))))
    found = find(tmp_path)
    assert sent(found) == ["Rechnung_\\xf6.pdf", "Rechnung_\\xfc.pdf", "scan\\xff"]
    assert len({document.id for document in found.documents}) == 3
    for document in found.documents:
        assert document.id.isprintable()
        assert document.name.isascii()
        assert document.path.read_bytes()


def test_folders_nested_deeper_than_calls_may_be(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        Path("a.pdf").write_bytes(b"%PDF-")
    finally:
        os.chdir(here)
    try:
        found = find(tmp_path)
    finally:
        # pytest's own way to remove folders calls itself once a level.
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    assert len(found.documents) == 1
    assert len(found.documents[0].id) <= 255
    assert found.broken == []


def test_an_id_for_every_path() -> None:
    assert id_of_path("a/b c.pdf") == "a/b c.pdf"
    assert len(id_of_path("x" * 300)) == 255
    assert id_of_path("a\nb").endswith("-a_b")
    assert id_of_path("a\udcffb") != id_of_path("a\udcfeb")


def zipped(path: Path, **parts: bytes) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), content)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.7", "pdf"),
        (b"junk\n%PDF-1.4", "pdf"),
        (b"\x89PNG\r\n\x1a\n0000", "png"),
        (b"\xff\xd8\xff\xe0", "jpg"),
        (b"II*\x00", "tiff"),
        (b"RIFF0000WEBPVP8 ", "webp"),
        (b"\x00\x00\x00\x18ftypheic", "heic"),
        (b"{\\rtf1", "rtf"),
        (b"PK\x03\x04 not a zip", None),
        (b"PK\x03\x04\x14\x00\x00\x00a.pdf%PDF-1.7", None),
        (b"\x1f\x8b\x08\x00a.pdf\x00%PDF-1.7", None),
        (b"a.pdf".ljust(257, b"\x00") + b"ustar\x0000".ljust(255, b"\x00") + b"%PDF-1.7", None),
        (b"7z\xbc\xaf\x27\x1c%PDF-1.7", None),
        (b"plain text", None),
        (b"", None),
    ],
)
def test_files_without_an_extension_are_recognised_by_their_content(
    tmp_path: Path, content: bytes, kind: str | None
) -> None:
    assert kind_of(put(tmp_path / "x", content), content) == kind


def test_office_documents_are_recognised_by_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert kind_of(path, zipped(path, word__document_DOT_xml=b"")) == "docx"
    assert kind_of(path, zipped(path, xl__workbook_DOT_xml=b"")) == "xlsx"
    assert kind_of(path, zipped(path, mimetype=b"application/vnd.oasis.opendocument.text")) == "odt"
    assert kind_of(path, zipped(path, readme=b"")) is None
    # A zip that is not compressed holds a PDF as it is.
    assert kind_of(path, zipped(path, a_DOT_pdf=b"%PDF-1.7")) is None
