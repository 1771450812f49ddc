"""JSON whose numbers are kept exactly, or refused. Pure."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from everyrun.submission.intake.rows import QuickRow


class InexactError(Exception):
    """A number has more digits than can be kept, or is too large."""


def _exact(text: str) -> float:
    value = float(text)
    try:
        same = Decimal(text) == Decimal(repr(value))
    except ArithmeticError:
        same = False
    if not same:
        raise InexactError(
            f"the number {text[:40]} cannot be kept exactly (17 digits, up to 1.8e308); write it as a text"
        )
    return value


decode = msgspec.json.Decoder(float_hook=_exact).decode
decode_quick = msgspec.json.Decoder(QuickRow, float_hook=_exact).decode
