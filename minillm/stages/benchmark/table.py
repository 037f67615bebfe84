"""Results as Markdown."""

from collections.abc import Callable, Mapping, Sequence

from minillm.stages.benchmark.timing import Cell, Row


def markdown(
    head: Sequence[str], rows: Sequence[Sequence[str]], marks: Mapping[str | None, str]
) -> str:
    """A table whose columns stand below each other in a terminal too, and what its marks say."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = [
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    legend = [f"{mark} {reason}" for reason, mark in marks.items()]
    return "\n\n".join(["\n".join([padded[0], rule, *padded[1:]]), *legend])


def marks_of_reasons(rows: Sequence[Row]) -> dict[str | None, str]:
    """A mark for each different reason, in order: they are too long for cells."""
    reasons = [cell.reason for row in rows for cell in row.cells.values() if cell.reason]
    return {reason: f"[{number}]" for number, reason in enumerate(dict.fromkeys(reasons), start=1)}


def cell(found: Cell, marks: Mapping[str | None, str], show: Callable[[float], str]) -> str:
    """The time as `show` writes it, or the mark of the reason, or without a mark the reason."""
    if found.seconds is not None:
        return show(found.seconds)
    return marks.get(found.reason, f"({found.reason})")
