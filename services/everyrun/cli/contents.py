"""What kind of document a file without an extension is, by its first bytes. Only kinds that Extend takes."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

#: Extensions that Extend takes (docs.extend.ai, general/supported-file-types).
# fmt: off
EXTENSIONS = frozenset({
    "pdf", "png", "jpg", "jpeg", "tiff", "tif", "svg", "heic", "heif", "bmp", "gif", "webp", "psd", "xls", "xlsx",
    "xltm", "xltx", "ods", "docx", "doc", "wpd", "dotx", "odt", "pptx", "ppt", "ppm", "csv", "txt", "html", "xml",
    "rtf", "lis", "md", "eml", "pcx",
})
_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"II*\x00", "tiff"), (b"MM\x00*", "tiff"),
    (b"GIF87a", "gif"), (b"GIF89a", "gif"), (b"8BPS\x00\x01", "psd"), (b"{\\rtf", "rtf"), (b"\xffWPC", "wpd"),
)
# fmt: on
#: Of an Office document, which is a zip: what it holds.
_PARTS = (("word/document.xml", "docx"), ("xl/workbook.xml", "xlsx"), ("ppt/presentation.xml", "pptx"))
_OPEN_DOCUMENTS = {
    b"application/vnd.oasis.opendocument.text": "odt",
    b"application/vnd.oasis.opendocument.spreadsheet": "ods",
}
#: Readers of PDF look this far for its beginning.
BEGINNING = 1024


def kind_of(path: Path, beginning: bytes) -> str | None:
    """Return the extension that the file should have; None if it is none that is recognised. ``path`` can be read."""
    if b"%PDF-" in beginning[:BEGINNING]:
        return "pdf"
    for start, extension in _BEGINNINGS:
        if beginning.startswith(start):
            return extension
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return "webp"
    if beginning[4:8] == b"ftyp" and beginning[8:12] in (b"heic", b"heix", b"mif1", b"heim", b"heis"):
        return "heic"
    if beginning[:2] == b"BM" and beginning[6:10] == bytes(4):
        return "bmp"
    return _office(path) if beginning.startswith(b"PK\x03\x04") else None


def _office(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if "mimetype" in names:
                with archive.open("mimetype") as mimetype:
                    return _OPEN_DOCUMENTS.get(mimetype.read(100).strip())
            return next((extension for name, extension in _PARTS if name in names), None)
    except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
