"""The publisher's pages."""

from __future__ import annotations

from everyrun.processor.publisher import pages


def test_a_page_is_limited_in_rows_and_bytes() -> None:
    assert [len(page) for page in pages((str(n), 10) for n in range(2500))] == [1000, 1000, 500]
    sizes = [("small", 1), ("large", 20 << 20), ("next", 5 << 20), ("fits", 3 << 20), ("over", 1)]
    assert list(pages(sizes)) == [["small"], ["large"], ["next", "fits"], ["over"]]
    assert list(pages([])) == []
