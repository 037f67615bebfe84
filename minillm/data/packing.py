"""Documents into rows of T tokens, by first fit, with nothing lost and nothing mixed up."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int32, UInt8

from minillm.core.errors import UserError
from minillm.data.corpus import Example
from minillm.data.tokenizer_protocol import Tokenizer, beginning

# How many rows wait for a document that fits. More leave less padding and take longer.
OPEN_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Document:
    """Tokens of one document, or of one piece of a long one.

    Attributes:
        tokens: beginning, prompt, completion, end.
        loss_mask: 1 where a token is to be predicted: the completion and the end. The first
            token is never predicted, since nothing stands before it.
    """

    tokens: Int32[np.ndarray, " n"]
    loss_mask: UInt8[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class PackedRow:
    """T positions that hold several documents.

    Attributes:
        segment_ids: 1, 2, … for the row's documents, 0 for padding at its end.
        positions: place within the document, from 0; 0 on padding.
        loss_mask: 1 where this token is a target that counts.
    """

    tokens: Int32[np.ndarray, " T"]
    segment_ids: Int32[np.ndarray, " T"]
    positions: Int32[np.ndarray, " T"]
    loss_mask: UInt8[np.ndarray, " T"]


def tokenize(example: Example, tokenizer: Tokenizer) -> Document:
    """[beginning] + prompt + completion + [end]; prompt and completion are encoded apart.

    The beginning is left out where the model expects none.

    Apart, because a model that is asked sees the prompt's tokens alone, so that a piece reaching
    from the prompt into the completion would be one it never gets to see.
    """
    prompt = [*beginning(tokenizer), *tokenizer.encode(example.prompt)]
    completion = [*tokenizer.encode(example.completion), tokenizer.eos_id]
    mask = np.ones(len(prompt) + len(completion), np.uint8)
    mask[: max(1, len(prompt))] = 0
    return Document(np.asarray(prompt + completion, np.int32), mask)


def cut(document: Document, row_length: int) -> list[Document]:
    """A long document in pieces of at most `row_length` tokens, the last one shorter."""
    pieces = []
    for start in range(0, len(document.tokens), row_length):
        mask = document.loss_mask[start : start + row_length].copy()
        mask[0] = 0
        pieces.append(Document(document.tokens[start : start + row_length], mask))
    return pieces


def pack(
    documents: Iterable[Document], row_length: int, *, pad_id: int = 0, open_rows: int = OPEN_ROWS
) -> Iterator[PackedRow]:
    """Rows in which every document stands once, whole, and in one place.

    A document goes into the first open row with room for it. Where none has room and
    `open_rows` are open, the fullest is closed. The result depends on the order of the documents
    and on nothing else.

    Raises:
        UserError: a document longer than a row.
    """
    rows: list[list[Document]] = []
    room: list[int] = []
    for document in documents:
        length = len(document.tokens)
        if length > row_length:
            raise UserError(
                field="row_length",
                got=row_length,
                wanted=f"at least {length}, the length of a document",
                fix="cut or leave out long documents before packing",
            )
        at = next((i for i, free in enumerate(room) if free >= length), None)
        if at is None:
            if len(rows) >= open_rows:
                fullest = room.index(min(room))
                yield _joined(rows.pop(fullest), row_length, pad_id)
                room.pop(fullest)
            at = len(rows)
            rows.append([])
            room.append(row_length)
        rows[at].append(document)
        room[at] -= length
        if room[at] == 0:
            yield _joined(rows.pop(at), row_length, pad_id)
            room.pop(at)
    for row in rows:
        yield _joined(row, row_length, pad_id)


def _joined(documents: list[Document], row_length: int, pad_id: int) -> PackedRow:
    tokens = np.full(row_length, pad_id, np.int32)
    segment_ids, positions = np.zeros((2, row_length), np.int32)
    loss_mask = np.zeros(row_length, np.uint8)
    start = 0
    for segment, document in enumerate(documents, start=1):
        span = slice(start, start + len(document.tokens))
        tokens[span] = document.tokens
        segment_ids[span] = segment
        positions[span] = np.arange(len(document.tokens))
        loss_mask[span] = document.loss_mask
        start = span.stop
    return PackedRow(tokens, segment_ids, positions, loss_mask)
