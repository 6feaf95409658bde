"""What a station says no to. Each kind has a word for machines; the text is one sentence for people.

Problem
 |- Malformed     what came is not what was agreed on
 |- Missing       there is nothing under this name or number
 |- Conflict      not now: something else stands in the way
 |- TooLarge      more than the limits allow
 |- NotAnImage    the bytes are no image of a kind that is read
 |- Unusable      well formed, but the value cannot be used
 `- Unready       the station cannot do it at the moment: no line, no room, a full disk
"""

from __future__ import annotations

from ..errors import MoleFlowError


class Problem(MoleFlowError):
    """Base of what a station refuses.

    Args:
        text: one sentence.
        code: a word in snake_case, by which a program tells it from others; that of the kind by default.
    """

    code = "problem"

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text)
        self.code = code or type(self).code


class Malformed(Problem):
    """What came is not what was agreed on."""

    code = "malformed"


class Missing(Problem):
    """There is nothing under this name or number."""

    code = "not_found"


class Conflict(Problem):
    """Something else stands in the way."""

    code = "conflict"


class TooLarge(Problem):
    """More than the limits allow."""

    code = "too_large"


class NotAnImage(Problem):
    """The bytes are no image of a kind that is read, or that the line reads."""

    code = "not_an_image"


class Unusable(Problem):
    """Well formed, but the value cannot be used."""

    code = "unusable"


class Unready(Problem):
    """The station cannot do it at the moment."""

    code = "not_ready"
