"""Where in a text its tokens end, in bytes."""

import itertools
from collections.abc import Sequence

SPACE = b" "


def exact_ends(pieces: Sequence[bytes | None], text: bytes) -> list[int] | None:
    """Ends of pieces that are the text, or the text with one space before it; otherwise None."""
    if None in pieces:
        return None
    known = [piece for piece in pieces if piece is not None]
    joined = b"".join(known)
    extra = int(joined == SPACE + text)
    if not extra and joined != text:
        return None
    return [max(0, end - extra) for end in itertools.accumulate(map(len, known))]


def ends_by_spans(
    pieces: Sequence[bytes | None],
    spans: Sequence[tuple[int, int]],
    text: bytes,
    *,
    added_space: bool,
) -> list[int]:
    """Ends of the pieces of a text that was changed before it was cut.

    Args:
        pieces: bytes of each token, None where they are not known.
        spans: [start, stop) in bytes of the text that each token was made from. Tokens of one
            character all have its span, or are empty up to the last, which has it.
        added_space: the first piece begins with a space that is not the text's.
    """
    sizes = [
        stop - start if piece is None else len(piece)
        for piece, (start, stop) in zip(pieces, spans, strict=True)
    ]
    if added_space and pieces and (pieces[0] or b"").startswith(SPACE):
        sizes[0] -= 1
    ends: list[int] = []
    for first, last in _groups(spans, sizes):
        start = max([spans[first][0], *ends[-1:]])
        stop = max([start, *(span[1] for span in spans[first:last])])
        if last < len(spans):
            stop += _composed(text[stop : spans[last][0]])
        total = sum(sizes[first:last])
        shares = itertools.accumulate(sizes[first:last])
        ends += [start + (stop - start) * share // total if total else stop for share in shares]
    if ends:
        ends[-1] = len(text)
    return ends


def _groups(spans: Sequence[tuple[int, int]], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """[first, last) of tokens whose spans overlap, or that have bytes and an empty span."""
    groups = []
    first = 0
    while first < len(spans):
        start, stop = spans[first]
        last, size = first + 1, sizes[first]
        while last < len(spans) and (spans[last][0] < stop or (stop <= start and size)):
            stop = max(stop, spans[last][1])
            size += sizes[last]
            last += 1
        groups.append((first, last))
        first = last
    return groups


def _composed(gap: bytes) -> int:
    """How much of what no token names belongs to the token before it.

    An accent that was joined with its letter does; white space that was dropped belongs to the
    token after it.
    """
    length = 0
    for letter in gap.decode(errors="replace"):
        if letter.isspace():
            break
        length += len(letter.encode())
    return min(length, len(gap))
