"""If a file has no extension, recognise its type by its content. Only types that Extend accepts are recognised."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

#: Extensions that Extend accepts (docs.extend.ai, general/supported-file-types).
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
#: First bytes of archives and compressed files. Such a file is never a PDF, even if it contains one near its beginning.
_ARCHIVES = (
    *(b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"),
    *(b"\xfd7zXZ\x00", b"BZh", b"\x28\xb5\x2f\xfd", b"MSCF", b"!<arch>\n", b"070701", b"070707"),
)
_TAR, _TAR_AT = b"ustar", 257
#: An Office document is a zip archive. If the archive contains one of these files, the document has the type beside it.
_PARTS = (("word/document.xml", "docx"), ("xl/workbook.xml", "xlsx"), ("ppt/presentation.xml", "pptx"))
_OPEN_DOCUMENTS = {
    b"application/vnd.oasis.opendocument.text": "odt",
    b"application/vnd.oasis.opendocument.spreadsheet": "ods",
}
#: Number of bytes to read from the beginning. In a PDF, other bytes may precede %PDF-, and PDF readers search for
#: it in this many bytes.
BEGINNING = 1024


def kind_of(path: Path, beginning: bytes) -> str | None:
    """Return the extension for the content of a file, or None if its type is not recognised.

    ``beginning`` holds the first BEGINNING bytes. A zip archive is also read from ``path``.
    """
    if beginning.startswith(b"%PDF-"):
        return "pdf"
    if beginning.startswith(b"PK\x03\x04"):
        return _office(path)
    if beginning.startswith(_ARCHIVES) or beginning[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return None
    for start, extension in _BEGINNINGS:
        if beginning.startswith(start):
            return extension
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return "webp"
    if beginning[4:8] == b"ftyp" and beginning[8:12] in (b"heic", b"heix", b"mif1", b"heim", b"heis"):
        return "heic"
    if beginning[:2] == b"BM" and beginning[6:10] == bytes(4):
        return "bmp"
    return "pdf" if b"%PDF-" in beginning[:BEGINNING] else None


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
