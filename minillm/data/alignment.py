"""Two tokenizers' cuts of one text, laid over each other by the bytes at which tokens end.

A span is a stretch of text between two successive offsets at which both tokenizers end a token.
Offsets count bytes of UTF-8, so that tokens that are parts of a character align as well.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from minillm.data.tokenizer_protocol import Tokenizer, beginning

Ends = Sequence[int] | Int[np.ndarray, " n"]


class Spans(NamedTuple):
    """Stretches of one text as [start, stop) of a student's tokens and of a teacher's."""

    student_start: Int[np.ndarray, " S"]
    student_stop: Int[np.ndarray, " S"]
    teacher_start: Int[np.ndarray, " S"]
    teacher_stop: Int[np.ndarray, " S"]

    def where(self, chosen: Bool[np.ndarray, " S"]) -> "Spans":
        """Some of the spans."""
        return Spans(*(part[chosen] for part in self))

    def shifted(self, student: int, teacher: int) -> "Spans":
        """The same spans where both sequences of tokens stand further right."""
        return Spans(
            self.student_start + student,
            self.student_stop + student,
            self.teacher_start + teacher,
            self.teacher_stop + teacher,
        )


class AlignedTokens(NamedTuple):
    """A teacher's tokens for the text of a segment or of a row, and the spans that count.

    Attributes:
        tokens, segment_ids, positions: the teacher's, as a model reads packed documents.
        spans: those whose student tokens are all targets that count. A span's tokens have tokens
            of the same segment before them, in both, so that its likelihood is defined.
    """

    tokens: Int32[np.ndarray, " n"]
    segment_ids: Int32[np.ndarray, " n"]
    positions: Int32[np.ndarray, " n"]
    spans: Spans


def align_ends(student_ends: Ends, teacher_ends: Ends) -> Spans:
    """The spans of one text, in order.

    Args:
        student_ends, teacher_ends: the byte offset at which each token ends, never falling.

    Returns:
        Spans from the first tokens on, each beginning where the one before it ended; where both
        sequences end at one offset they hold every token. A token without text belongs to the
        span of what follows it at the text's beginning, and of what precedes it elsewhere.
    """
    student_offsets, student_stops = _last_at_each_offset(student_ends)
    teacher_offsets, teacher_stops = _last_at_each_offset(teacher_ends)
    _, ours, theirs = np.intersect1d(
        student_offsets, teacher_offsets, assume_unique=True, return_indices=True
    )
    student_stop, teacher_stop = student_stops[ours], teacher_stops[theirs]
    student_start, teacher_start = (
        np.append(0, stops)[: len(stops)] for stops in (student_stop, teacher_stop)
    )
    return Spans(student_start, student_stop, teacher_start, teacher_stop)


def align_segment(
    tokens: Int[np.ndarray, " n"],
    counts: Bool[np.ndarray, " n"],
    student: Tokenizer,
    teacher: Tokenizer,
    *,
    segment_id: int = 1,
    max_length: int | None = None,
) -> AlignedTokens:
    """One document of a row, or a piece of one, in the teacher's tokens.

    The teacher reads the document's whole characters as one text, with the beginning that it
    expects and, where the document ends here, its own end: the two ends are a span too. Where the
    row cuts a document, the teacher would have cut the text around that place in another way, so
    the span next to the cut does not count.

    Args:
        counts: which tokens are targets that count.
        max_length: tokens that the teacher reads at most; the rest is in no span.
    """
    ids = [int(token) for token in tokens]
    first = len(beginning(student)) if ids[:1] == beginning(student) else 0
    ended = ids[-1] == student.eos_id
    parts = [student.token_bytes(token) or b"" for token in ids]
    data = b"".join(parts)
    added = 1 if first and data.startswith(b" ") and _puts_space(student) else 0
    text, skipped = whole_characters(data[added:])
    ends = np.cumsum([len(part) for part in parts]) - (added + skipped)
    teacher_ids, teacher_ends = teacher.encode_with_ends(text)
    before = beginning(teacher)
    teacher_tokens = [*before, *teacher_ids]
    if ended:
        # An end stands for one byte that no text holds.
        ends[-1] = len(text.encode()) + 1
        teacher_tokens.append(teacher.eos_id)
        teacher_ends = [*teacher_ends, int(ends[-1])]
    spans = align_ends(ends[first:], teacher_ends).shifted(first, len(before))
    counted = _countable(spans, np.asarray(counts, bool), begun=first > 0, ended=ended)
    if max_length is not None:
        teacher_tokens = teacher_tokens[:max_length]
        counted &= spans.teacher_stop <= max_length
    return AlignedTokens(
        np.asarray(teacher_tokens, np.int32),
        np.full(len(teacher_tokens), segment_id, np.int32),
        np.arange(len(teacher_tokens), dtype=np.int32),
        spans.where(counted),
    )


def align_row(
    row: Mapping[str, np.ndarray],
    student: Tokenizer,
    teacher: Tokenizer,
    *,
    max_length: int | None = None,
) -> AlignedTokens:
    """A packed row's documents, each in the teacher's tokens, one behind the other.

    Args:
        row: tokens, segment_ids and loss_mask of [T].
        max_length: tokens of one document that the teacher reads at most.

    Returns:
        Spans that count places in the row and in the teacher's tokens.
    """
    segments = row["segment_ids"]
    last = int(segments.max(initial=0))
    aligned: list[AlignedTokens] = []
    length = 0
    for segment in range(1, last + 1):
        here = np.flatnonzero(segments == segment)
        one = align_segment(
            row["tokens"][here],
            row["loss_mask"][here] > 0,
            student,
            teacher,
            segment_id=segment,
            max_length=max_length,
        )
        aligned.append(one._replace(spans=one.spans.shifted(int(here[0]), length)))
        length += len(one.tokens)
    if not aligned:
        nothing = np.zeros(0, np.int32)
        return AlignedTokens(nothing, nothing, nothing, Spans(*[nothing] * 4))
    tokens, segment_ids, positions, spans = zip(*aligned, strict=True)
    return AlignedTokens(
        np.concatenate(tokens),
        np.concatenate(segment_ids),
        np.concatenate(positions),
        Spans(*(np.concatenate(part) for part in zip(*spans, strict=True))),
    )


def whole_characters(data: bytes) -> tuple[str, int]:
    """The text of UTF-8 that may begin and end within a character, and the bytes skipped first.

    Raises:
        UnicodeDecodeError: bytes elsewhere that are no UTF-8.
    """
    skipped = 0
    # At most three bytes of a character stand behind its first one; those read 10xxxxxx.
    while skipped < min(3, len(data)) and data[skipped] & 0xC0 == 0x80:
        skipped += 1
    kept = data[skipped:]
    try:
        return kept.decode(), skipped
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise
        return kept[: error.start].decode(), skipped


def _puts_space(tokenizer: Tokenizer) -> bool:
    """Whether a text's first token begins with a space that is not the text's (Llama 2)."""
    return b"".join(tokenizer.token_bytes(i) or b"" for i in tokenizer.encode("a")) == b" a"


def _last_at_each_offset(ends: Ends) -> tuple[np.ndarray, np.ndarray]:
    """Every offset above 0 at which a token ends, and how many tokens there are up to it."""
    offsets = np.asarray(ends, np.int64)
    last = np.append(offsets[1:] != offsets[:-1], True)[: len(offsets)] & (offsets > 0)
    return offsets[last], np.flatnonzero(last) + 1


def _countable(
    spans: Spans, counts: Bool[np.ndarray, " n"], *, begun: bool, ended: bool
) -> Bool[np.ndarray, " S"]:
    sums = np.append(0, np.cumsum(counts))
    targets = sums[spans.student_stop] - sums[spans.student_start]
    chosen = targets == spans.student_stop - spans.student_start
    # What stands at the very beginning is predicted from nothing.
    chosen &= (spans.student_start > 0) & (spans.teacher_start > 0)
    if len(chosen):
        chosen[0] &= begun
        chosen[-1] &= ended
    return chosen
