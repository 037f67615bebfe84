"""The report: JSON for programs, Markdown and plots for people, a table for the terminal."""

from typing import Any

import matplotlib
from etils import epath
from matplotlib.figure import Figure

from minillm.core.manifest import write_atomically, write_json
from minillm.core.metrics import read_metrics

matplotlib.use("Agg")

Results = dict[str, dict[str, Any]]


def write_report(root: epath.Path, results: Results, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `report.json`, `report.md`, `loss.png` and `accuracy.png` into `root`.

    Args:
        results: by model name, in the order of the table's columns: params, train_tokens, steps,
            seconds, tokens_per_s, heldout_nll, accuracy, and what else the evaluation measured.
        facts: about the run as a whole.

    Returns:
        What `report.json` holds.
    """
    whole = {**results, "run": facts}
    table = _table(results)
    write_json(root / "report.json", whole)
    _plot_losses(root, list(results))
    _plot_accuracy(root, results)
    write_atomically(root / "report.md", _markdown(table, results, facts).encode())
    return whole


def terminal_table(results: Results) -> str:
    """The table of `report.md`, with columns aligned for a terminal."""
    return _aligned(_table(results))


def accuracy_table(result: dict[str, Any]) -> str:
    """Right answers by domain and family of one evaluation, for a terminal."""
    rows = [["", "right", "of", "share [95 %]"]]
    parts = [("all problems", result["overall"])]
    parts += [(f"  {name}", score) for name, score in result["domains"].items()]
    parts += [(f"    {name}", score) for name, score in result["families"].items()]
    rows += [[name, str(each["correct"]), str(each["n"]), _share(each)] for name, each in parts]
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _table(results: Results) -> list[list[str]]:
    rows = [["", *results]]
    for label, name, form in (
        ("parameters", "params", "{:,}"),
        ("training tokens", "train_tokens", "{:,}"),
        ("training seconds", "seconds", "{:.0f}"),
        ("tokens/s", "tokens_per_s", "{:,.0f}"),
        ("held-out loss (nats/token)", "heldout_nll", "{:.4f}"),
        ("agreement with the teacher", "teacher_agreement", "{:.1%}"),
    ):
        rows.append([label, *(form.format(entry[name]) for entry in results.values())])
    kinds = ("domains", "families")
    rows.append(
        ["accuracy, all problems", *(_share(entry["overall"]) for entry in results.values())]
    )
    for kind in kinds:
        for name in next(iter(results.values()))[kind]:
            label = f"  {name.replace('_', ' ')}" if kind == "domains" else f"    {name}"
            rows.append([label, *(_share(entry[kind][name]) for entry in results.values())])
    return rows


def _share(score: dict[str, Any]) -> str:
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['accuracy']:.0f} % [{low:.0f}, {high:.0f}]"


def _markdown(table: list[list[str]], results: Results, facts: dict[str, Any]) -> str:
    head, *body = [f"| {' | '.join(cell.strip() for cell in row)} |" for row in table]
    rule = "|" + "---|" * len(table[0])
    counts = {entry["overall"]["n"] for entry in results.values()}
    settings = ", ".join(f"{name} = {value}" for name, value in facts.items())
    return "\n".join(
        [
            "# minillm quickstart",
            "",
            f"Graded answers: {', '.join(map(str, sorted(counts)))} held-out problems a model, "
            "share right with its 95 % Wilson interval in brackets. Training seconds include "
            "compilation.",
            "",
            head,
            rule,
            *body,
            "",
            "![training loss](loss.png)",
            "![accuracy by domain](accuracy.png)",
            "",
            f"Run: {settings}",
            "",
        ]
    )


def _plot_losses(root: epath.Path, names: list[str]) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for name in names:
        lines = read_metrics(root / "models" / name)
        tokens = [line["train_tokens"] for line in lines]
        axis.plot(tokens, [line["cross_entropy"] for line in lines], label=name)
    axis.set(xlabel="training tokens", ylabel="cross-entropy, nats a token", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, root / "loss.png")


def _plot_accuracy(root: epath.Path, results: Results) -> None:
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axis = figure.subplots()
    domains = list(next(iter(results.values()))["domains"])
    width = 0.8 / len(results)
    for index, (name, entry) in enumerate(results.items()):
        scores = [entry["domains"][domain] for domain in domains]
        heights = [score["accuracy"] for score in scores]
        spread = [
            [score["accuracy"] - score["low"] for score in scores],
            [score["high"] - score["accuracy"] for score in scores],
        ]
        places = [place + index * width for place in range(len(domains))]
        axis.bar(places, heights, width, yerr=spread, capsize=2, label=name)
    axis.set_xticks(
        [place + 0.4 - width / 2 for place in range(len(domains))],
        [domain.replace("_", "\n") for domain in domains],
    )
    axis.set(ylabel="share of right answers", ylim=(0, 1.05))
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    _save(figure, root / "accuracy.png")


def _save(figure: Figure, path: epath.Path) -> None:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
