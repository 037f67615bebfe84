"""Whether two tokenizers mean the same by an id: compared by content, whatever their files."""

import dataclasses
import enum
from collections.abc import Iterator

from minillm.core.errors import UserError
from minillm.data.tokenizer_protocol import Tokenizer, beginning

_SHOWN = 4


class Verdict(enum.Enum):
    """How a teacher's vocabulary stands to a student's."""

    SAME = "same"
    PADDED = "padded"
    DIFFERENT = "different"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Attributes:
    verdict: SAME, or PADDED where the teacher has logits beyond the student's ids.
    kept: how many of the teacher's logits, from the first on, are for ids of the student.
    teacher_vocab_size: logits the teacher has.
    differences: for DIFFERENT, a line for each of the first ids that do not mean the same.
    """

    verdict: Verdict
    kept: int
    teacher_vocab_size: int
    differences: tuple[str, ...] = ()

    def require_same(self, teacher: str) -> "Comparison":
        """Itself; UserError, with a few of the differing ids, where they are different."""
        if self.verdict is Verdict.DIFFERENT:
            raise UserError(
                field=f"teacher {teacher}",
                got=f"another vocabulary than the rows': {'; '.join(self.differences)}",
                wanted="the same token for every id",
                fix="pack the text into rows with the teacher's tokenizer",
            )
        return self

    def note(self, teacher: str) -> str | None:
        """What the log says of logits that are cut; None where there are none."""
        if self.verdict is not Verdict.PADDED:
            return None
        return (
            f"{teacher} has logits for {self.teacher_vocab_size} ids, the rows' tokenizer "
            f"{self.kept}: the {self.teacher_vocab_size - self.kept} beyond are cut off"
        )


def needs_beyond(tokenizer: Tokenizer, table: int) -> bool:
    """Whether a tokenizer gives text, or a document's beginning or end, ids beyond a model's table.

    Other special ids may lie there: those of a model that sees, in a text model's folder (Gemma 3
    has one). No text becomes them, and a model says nothing of them.
    """
    used = {tokenizer.eos_id, *beginning(tokenizer)}
    beyond = range(table, tokenizer.vocab_size)
    return any(i in used or tokenizer.token_bytes(i) is not None for i in beyond)


def compare(student: Tokenizer, teacher: Tokenizer, teacher_vocab_size: int) -> Comparison:
    """A teacher's vocabulary beside the one that rows were made with.

    The same are two in which every id stands for the same bytes, or is special in both, or is
    special in one and its name as text in the other; of special ids, those that stand in rows
    (beginning and end) must have the same name. Ids that only the teacher has must be special:
    no text holds them, and their logits are cut with the padding.

    Args:
        teacher_vocab_size: rows of the teacher's output head.

    Raises:
        UserError: the teacher has no logits for ids that its own tokenizer gives.
    """
    if needs_beyond(teacher, teacher_vocab_size):
        raise UserError(
            field="teacher's vocabulary",
            got=f"{teacher_vocab_size} logits for {teacher.vocab_size} ids of its tokenizer",
            wanted=f"at least {teacher.vocab_size} logits",
            fix="put weights and tokenizer of one model into the teacher's folder",
        )
    kept = min(student.vocab_size, teacher_vocab_size)
    if student.fingerprint != teacher.fingerprint:
        found = list(_first(differences(student, teacher), _SHOWN + 1))
        if found:
            lines = [line for _, line in found[:_SHOWN]]
            if len(found) > _SHOWN:
                lines.append("and more")
            return Comparison(Verdict.DIFFERENT, kept, teacher_vocab_size, tuple(lines))
    verdict = Verdict.SAME if kept == teacher_vocab_size else Verdict.PADDED
    return Comparison(verdict, kept, teacher_vocab_size)


def differences(student: Tokenizer, teacher: Tokenizer) -> Iterator[tuple[int, str]]:
    """Ids that do not mean the same, in order, each with a line that shows both tokens."""
    in_rows = {student.eos_id, *([student.bos_id] if student.adds_bos else [])}
    for i in range(max(student.vocab_size, teacher.vocab_size)):
        if not _same(student, teacher, i, named=i in in_rows):
            yield i, f"id {i} is {_shown(student, i)} for the rows, {_shown(teacher, i)} for it"


def _same(student: Tokenizer, teacher: Tokenizer, token_id: int, *, named: bool) -> bool:
    if token_id >= teacher.vocab_size:
        return False
    theirs, their_name = teacher.token_bytes(token_id), teacher.token_name(token_id)
    if token_id >= student.vocab_size:
        return theirs is None
    ours, our_name = student.token_bytes(token_id), student.token_name(token_id)
    if ours is None and theirs is None:
        return our_name == their_name or not named
    if ours is None or theirs is None:
        return (ours or our_name.encode()) == (theirs or their_name.encode())
    return ours == theirs


def _shown(tokenizer: Tokenizer, token_id: int) -> str:
    if token_id >= tokenizer.vocab_size:
        return "no token"
    text = tokenizer.token_bytes(token_id)
    if text is None:
        return f"special {tokenizer.token_name(token_id)!r}"
    return repr(text.decode(errors="backslashreplace"))


def _first(found: Iterator[tuple[int, str]], count: int) -> Iterator[tuple[int, str]]:
    for _, entry in zip(range(count), found, strict=False):
        yield entry
