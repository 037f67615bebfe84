"""Reading what users bring: plain text, and problems with worked solutions."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from etils import epath

from minillm.core.errors import UserError
from minillm.data.files import Paths, brief, empty_file, read_lines, read_objects, resolve_paths

GROUP_CHARACTERS = 2000
_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")
# The name of all problems together in an evaluation's result.
_RESERVED_DOMAIN = "overall"
_KINDS = '{"text"}, {"problem", "solution", "answer"}, or {"question", "answer"}'


@dataclasses.dataclass(frozen=True)
class Example:
    """One document: a model is asked to continue `prompt`, and learns only `completion`.

    Plain text has an empty prompt, so that all of it is learned.
    """

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        """All of it, as a tokenizer is trained on."""
        return self.prompt + self.completion


@dataclasses.dataclass(frozen=True)
class ProblemRecord:
    r"""A problem of a user's file; the answer stands in `\boxed{}` in the solution, too."""

    problem: str
    solution: str
    answer: str
    domain: str | None = None

    def example(self) -> Example:
        """The document a model is taught."""
        return Example(problem_prompt(self.problem), self.solution)


def problem_prompt(problem: str) -> str:
    """What stands before a solution, in training and when a model is asked."""
    return f"Problem: {problem}\nSolution:\n"


def builtin_text_path() -> epath.Path:
    """A short text on elementary mathematics that comes with the package."""
    return epath.Path(__file__).parent / "texts" / "mathematics.txt"


def read_text(path: epath.PathLike, *, group_characters: int = GROUP_CHARACTERS) -> Iterator[str]:
    """Documents of a UTF-8 text file, cut after blank lines.

    Neighbouring paragraphs are joined until they reach `group_characters`, so that a document is
    long enough to learn from. Nothing is changed: all documents joined are the file (less a byte
    order mark).

    Raises:
        UserError: not UTF-8, or nothing but white space.
    """
    path = epath.Path(path)
    group: list[str] = []
    length = 0
    words = False
    after_blank = False
    for _, line in read_lines(path):
        blank = not line.strip()
        if after_blank and not blank and length >= group_characters:
            yield "".join(group)
            group, length = [], 0
        group.append(line)
        length += len(line)
        words = words or not blank
        after_blank = blank
    if not words:
        raise empty_file(path)
    yield "".join(group)


def read_records(path: epath.PathLike) -> Iterator[Example]:
    """Documents of a .json list or of .jsonl lines.

    A record is `{"text"}`, `{"problem", "solution", "answer"}`, or `{"question", "answer"}` with
    a worked answer that ends in `#### final answer`. Other fields are left alone.

    Raises:
        UserError: names the file, the record or line, the field, and what was expected there.
    """
    for place, record in read_objects(epath.Path(path)):
        if "text" in record:
            yield Example("", _string(record, "text", place))
        else:
            yield _problem_record(record, place, wanted=_KINDS).example()


def read_examples(paths: Paths) -> Iterator[Example]:
    """Documents of several files, in order; see `resolve_paths`, `read_text`, `read_records`."""
    for path in resolve_paths(paths):
        if path.suffix.lower() == ".txt":
            for text in read_text(path):
                yield Example("", text)
        else:
            yield from read_records(path)


def read_problem_records(paths: Paths) -> list[ProblemRecord]:
    """All problems of .json or .jsonl files, checked before any is used.

    The answer may be a number, and may be left out where the solution boxes it. A solution that
    does not box its answer gets a last line that does: graders look for it.

    Raises:
        UserError: names the file, the record or line, the field, and what was expected there.
    """
    problems = []
    for path in resolve_paths(paths):
        if path.suffix.lower() == ".txt":
            raise UserError(
                field=str(path),
                got="plain text",
                wanted="a .json or .jsonl file of problems",
                fix='write records {"problem": …, "solution": …, "answer": …}',
            )
        wanted = '{"problem", "solution", "answer"} or {"question", "answer"}'
        problems += [
            _problem_record(record, place, wanted=wanted) for place, record in read_objects(path)
        ]
    return problems


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` with balanced braces, or None."""
    start = text.rfind(r"\boxed{")
    while start >= 0:
        depth = 0
        first = start + len(r"\boxed{")
        for position in range(first - 1, len(text)):
            depth += (text[position] == "{") - (text[position] == "}")
            if depth == 0:
                return text[first:position]
        start = text.rfind(r"\boxed{", 0, start)
    return None


def _problem_record(record: Mapping[str, Any], place: str, *, wanted: str) -> ProblemRecord:
    if "problem" in record:
        problem = _string(record, "problem", place)
        solution = _string(record, "solution", place)
        boxed = _boxed(solution)
        answer = boxed if boxed and "answer" not in record else _string(record, "answer", place)
    elif "question" in record:
        problem = _string(record, "question", place)
        solution, mark, answer = _string(record, "answer", place).rpartition("####")
        answer = _THOUSANDS.sub("", answer.strip())
        if not mark or not answer or not solution.strip():
            raise UserError(
                field=f'{place} field "answer"',
                got=brief(record["answer"]),
                wanted="a worked answer that ends in '#### final answer'",
                fix='add it, or write {"problem", "solution", "answer"}',
            )
        # Notes for a calculator tool, which no student here has.
        solution = _CALCULATOR_NOTE.sub("", solution).rstrip()
        boxed = _boxed(solution)
    else:
        raise UserError(
            field=place,
            got=f"the fields {sorted(record)}",
            wanted=wanted,
            fix="rename the fields",
        )
    if boxed is None:
        solution = f"{solution.rstrip()}\n\\boxed{{{answer}}}"
    elif _differ(boxed, answer):
        raise UserError(
            field=f'{place} field "answer"',
            got=f"{brief(answer)}, where the solution boxes {brief(boxed)}",
            wanted="the same answer in both",
            fix="correct one of the two",
        )
    domain = _string(record, "domain", place) if record.get("domain") is not None else None
    if domain == _RESERVED_DOMAIN:
        raise UserError(
            field=f'{place} field "domain"',
            got=brief(domain),
            wanted="another name: this one stands for all problems together",
            fix="rename the domain, or leave it out",
        )
    return ProblemRecord(problem, solution, answer, domain)


def _boxed(solution: str) -> str | None:
    """What the solution boxes; an empty box is none."""
    inside = last_boxed(solution)
    return inside if inside and inside.strip() else None


def _differ(boxed: str, answer: str) -> bool:
    """Whether two answers are plain decimal numbers, and not the same one.

    Of anything else only a grader can tell: 1/2 and 0.5 are written differently and equal.
    """
    plain = [_THOUSANDS.sub("", text.strip().strip("$").strip()) for text in (boxed, answer)]
    if not all(_DECIMAL.fullmatch(text) for text in plain):
        return False
    return Fraction(plain[0]) != Fraction(plain[1])


def _string(record: Mapping[str, Any], field: str, place: str) -> str:
    value = record.get(field)
    if field == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(
                field=f'{place} field "answer"',
                got=brief(value),
                wanted="text that is not empty, or a finite number",
                fix="correct or remove the record",
            )
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            field=f'{place} field "{field}"',
            got=brief(value) if field in record else "no such field",
            wanted="text that is not empty" + (", or a number" if field == "answer" else ""),
            fix="correct or remove the record",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            field=f'{place} field "{field}"',
            got=f"half of a surrogate pair at character {error.start}",
            wanted="Unicode characters",
            fix="write the character itself, or both halves",
        ) from None
    return value
