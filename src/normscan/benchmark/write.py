"""The ranking as Markdown, CSV, LaTeX, HTML and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from normscan.benchmark.figures import critical_difference, ranks_as_csv
from normscan.io import atomic_path
from normscan.io.values import write_json

DASH = "–"
# The mark of a method against the best one of its table.
MARKS = {"best": "", "not different": "=", "worse": "*", "untested": "?"}
LEGEND = (
    "First what a user gets at the image level: sensitivity and false alarms at the threshold from "
    "healthy scans, and as an oracle the sensitivity at just the wanted rate on the test's healthy "
    "scans. Rows are ranked by the metric after them. In brackets the 95 % interval, after ± the "
    "standard deviation over seeds. Against the best row: = no significant difference, * worse (p < 0.05, "
    "paired by subject, Holm), ? not tested. Oracle figures choose a threshold with the test labels. "
    "Rows in italics are the baselines, one seed each."
)

Table = tuple[list[str], list[list[str]]]


def write_tables(ranking: dict[str, Any], folder: Path) -> None:
    """Write ``table.md``, ``.csv``, ``.tex``, ``.html``, ``ranking.json`` and the diagrams."""
    drawings = {}
    for level, entry in ranking["overall"].items():
        if entry["test"]:
            name = f"critical_difference_{level}"
            drawings[level] = critical_difference(entry["test"], folder / f"{name}.png")
            _write(folder / f"{name}.svg", drawings[level])
            _write(folder / f"{name}.csv", ranks_as_csv(entry["test"]))
    write_json(folder / "ranking.json", ranking)
    _write(folder / "table.md", markdown(ranking))
    _write(folder / "table.csv", as_csv(ranking))
    _write(folder / "table.tex", latex(ranking))
    _write(folder / "table.html", html(ranking, drawings))


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def _figure(value: float | None, sd: float | None) -> str:
    return number(value) + ("" if sd is None or value is None else f" ± {sd:.3f}")


def _title(ranking: dict[str, Any], metric: str) -> str:
    entry = ranking["metrics"].get(metric, {"title": metric, "oracle": False})
    return str(entry["title"]) + (" (oracle)" if entry["oracle"] else "")


def level_table(ranking: dict[str, Any], entry: dict[str, Any]) -> Table:
    """Return the head and the rows of a set's table of one level, as text."""
    rows, headline = entry["rows"], entry["headline"]
    other = [
        m
        for m in ranking["shown"]
        if any(r["metrics"].get(m, {"value": None})["value"] is not None for r in rows)
    ]
    compared = any(p["metric"] == headline for r in rows for p in r["published"])
    decided = [m for m in ranking["decision"] if any(_known(r, m) for r in rows)]
    head = ["rank", "method", "seeds", *(_title(ranking, m) for m in decided)]
    head += [_title(ranking, headline), "against best", "p"]
    head += ["published", "gap"] if compared else []
    head += [_title(ranking, m) for m in other] + ["fit s", "s/scan", "memory MiB"]
    lines = []
    for row in rows:
        rank = DASH if row["rank"] is None else f"{row['rank']:g}"
        p = DASH if row["p"] is None else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
        cells = [rank, row["method"], str(row["seeds"])]
        cells += [_with_interval(row["decision"][m]) for m in decided]
        cells += [_with_interval(row), MARKS[row["mark"]], p]
        if compared:
            found = next((f for f in row["published"] if f["metric"] == headline), None)
            cells += [_figure(found["value"], found["sd"]), _gap(found)] if found else [DASH, DASH]
        cells += [_figure(**row["metrics"][m]) for m in other]
        memory = row["memory_mib"].get("device", row["memory_mib"].get("host"))
        cells += [f"{row['fit_s']:.1f}", f"{row['predict_s']:.3f}", number(memory, 0)]
        lines.append(cells)
    return head, lines


def _known(row: dict[str, Any], metric: str) -> bool:
    return row["decision"].get(metric, {"value": None})["value"] is not None


def _with_interval(figure: dict[str, Any]) -> str:
    text = _figure(figure["value"], figure["sd"])
    return text if figure["low"] is None else f"{text} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _gap(found: dict[str, Any]) -> str:
    return DASH if found["gap"] is None else f"{found['gap']:+.3f}"


def published_table(ranking: dict[str, Any]) -> Table:
    """Return all published figures beside the achieved ones."""
    lines, seen = [], set()
    places = [
        (entry["title"], row["method"], row["published"])
        for entry in ranking["sets"].values()
        for level in entry["levels"].values()
        for row in level["rows"]
    ]
    places += [
        (f"mean of {group}", method, row["published"])
        for group, entry in ranking["means"].items()
        for method, row in entry["rows"].items()
    ]
    for title, method, published in places:
        for found in published:
            key = (title, method, found["metric"])
            if key in seen or found["gap"] is None:
                continue
            seen.add(key)
            achieved = number(found["value"] + found["gap"])
            source = found["source"] + (f" ({found['note']})" if found["note"] else "")
            metric = _title(ranking, found["metric"])
            values = [_figure(found["value"], found["sd"]), achieved, _gap(found)]
            lines.append([title, method, metric, *values, source])
    return ["set", "method", "metric", "published", "achieved", "gap", "source"], lines


def mean_table(ranking: dict[str, Any], entry: dict[str, Any]) -> Table:
    """Return the table of means over the sets of a group."""
    rows = entry["rows"]
    first: dict[str, Any] = next(iter(rows.values()), {"metrics": {}})
    shown = [m for m in first["metrics"] if any(r["metrics"][m] is not None for r in rows.values())]
    ranked = [m for m in (*ranking["shown"], "mad") if m in shown]
    shown = [m for m in ranking["decision"] if m in shown] + ranked
    ordered = sorted(rows.items(), key=lambda item: -(item[1]["metrics"].get(ranked[0]) or 0))
    lines = [[m, *(number(row["metrics"][k]) for k in shown)] for m, row in ordered]
    return ["method", *(_title(ranking, m) for m in shown)], lines


def blocks(ranking: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tables in order: title, introduction, head and rows."""
    found: list[dict[str, Any]] = []
    for entry in ranking["sets"].values():
        test = entry["test"]
        about = (
            f"Test: {test.get('healthy', 0)} healthy, {test.get('anomalous', 0)} anomalous scans."
        )
        about += "".join(f" Note: {note.rstrip('.')}." for note in entry["notes"])
        for level, part in entry["levels"].items():
            head, rows = level_table(ranking, part)
            tested = sorted({r["test"] for r in part["rows"]})
            text = f"{about} Methods compared by {'; '.join(tested)}."
            found.append(_block(f"{entry['title']}, {level} level", text, head, rows))
        if entry["failed"]:
            lines = [[f["method"], str(f["seed"]), f["reason"]] for f in entry["failed"]]
            text = "These cells have no figures. --retry tries them again."
            title = f"{entry['title']}, failed"
            found.append(_block(title, text, ["method", "seed", "reason"], lines))
    for group, entry in ranking["means"].items():
        head, rows = mean_table(ranking, entry)
        text = f"Over {len(entry['sets'])} sets, seeds averaged first."
        found.append(_block(f"Mean of {group}", text, head, rows))
    for level, entry in ranking["overall"].items():
        lines = [[m, f"{r:.2f}"] for m, r in entry["mean_ranks"].items()]
        if len(entry["sets"]) > 1:
            text = f"By {_title(ranking, entry['metric'])} over {len(entry['sets'])} sets."
            if entry["left_out"]:
                text += f" Without figures on all of them: {', '.join(entry['left_out'])}."
            if entry["test"]:
                t = entry["test"]
                text += (
                    f" Friedman p {t['friedman_p']:.2g}; mean ranks more than "
                    f"{t['critical_difference']:.2f} apart differ (Nemenyi, level {t['alpha']:g})."
                )
                if t["friedman_p"] >= t["alpha"]:
                    text += " Friedman's test doesn't reject, so no difference is shown."
            else:
                text += f" No diagram: {entry['reason']}."
            title = f"Mean rank, {level} level"
            block = _block(title, text, ["method", "mean rank"], lines)
            found.append(block | {"drawing": level})
    head, rows = published_table(ranking)
    if rows:
        text = "Gap is achieved minus published."
        found.append(_block("Published figures", text, head, rows))
    if ranking["missing"]:
        lines = [[id, reason] for id, reason in ranking["missing"].items()]
        text = "These sets of the protocol were not run."
        found.append(_block("Missing data", text, ["set", "reason"], lines))
    return found


def _block(title: str, text: str, head: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"title": title, "text": text, "head": head, "rows": rows}


def run_with(ranking: dict[str, Any]) -> str:
    """Return the budget, and the preset and arguments that were given in its place."""
    given = ranking.get("given", "")
    return f"budget {ranking['budget']}{f', {given}' if given else ''}"


def markdown(ranking: dict[str, Any]) -> str:
    """Return the ranking as Markdown."""
    lines = [f"# {ranking['title']}", "", f"Protocol `{ranking['protocol']}`: {ranking['source']}"]
    lines += [f"Run with {run_with(ranking)}. Command: `{ranking['command']}`", "", LEGEND, ""]
    lines += [f"- Departs: {note}" for note in ranking["notes"]]
    lines += [f"- Pitfall: {note}" for note in ranking["pitfalls"]]
    for block in blocks(ranking):
        lines += ["", f"## {block['title']}", "", block["text"], ""]
        lines += [_piped(block["head"]), "|" + "---|" * len(block["head"])]
        lines += [
            _piped(_mark_baseline(row, block["head"], ranking, "*{}*")) for row in block["rows"]
        ]
        if ranking["overall"].get(block.get("drawing", ""), {}).get("test"):
            lines += ["", f"![mean ranks](critical_difference_{block['drawing']}.svg)"]
    return "\n".join(lines) + "\n"


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _mark_baseline(
    row: list[str],
    head: list[str],
    ranking: dict[str, Any],
    form: str,
    escape: Callable[[str], str] = str,
) -> list[str]:
    """Return a row's cells, the name of a baseline in italics."""
    at = head.index("method") if "method" in head else -1
    return [
        form.format(escape(cell)) if i == at and cell in ranking["baselines"] else escape(cell)
        for i, cell in enumerate(row)
    ]


def as_csv(ranking: dict[str, Any]) -> str:
    """Return one line for each set, level, method and metric, with full digits."""
    head = ["set", "level", "rank", "method", "metric", "oracle", "value", "sd", "low", "high"]
    head += ["seeds", "p_holm", "published", "gap", "fit_s", "predict_s_per_scan", "memory_mib"]
    file = io.StringIO()
    writer = csv.DictWriter(file, head, lineterminator="\n")
    writer.writeheader()
    for id, entry in ranking["sets"].items():
        for level, part in entry["levels"].items():
            for row in part["rows"]:
                published = {p["metric"]: p for p in row["published"]}
                own = {k: row[k] for k in ("value", "sd", "low", "high")}
                figures = {**row["decision"], part["headline"]: own, **row["metrics"]}
                for metric, figure in figures.items():
                    target = published.get(metric, {})
                    first = metric == part["headline"]
                    writer.writerow(
                        {
                            "set": id, "level": level, "method": row["method"], "metric": metric,
                            "rank": row["rank"] if first else None, **figure,
                            "oracle": ranking["metrics"].get(metric, {}).get("oracle", False),
                            "seeds": row["seeds"], "p_holm": row["p"] if first else None,
                            "published": target.get("value"), "gap": target.get("gap"),
                            "fit_s": row["fit_s"], "predict_s_per_scan": row["predict_s"],
                            "memory_mib": row["memory_mib"].get("host"),
                        }
                    )  # fmt: skip
    return file.getvalue()


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "–": "--", "±": r"$\pm$", "<": "$<$", ">": "$>$", "\n": " ",
}  # fmt: skip


def escaped(text: str) -> str:
    """Escape a text for LaTeX."""
    return "".join(_TEX.get(c, c) for c in text)


def tabular(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[str] | None = None,
    escape: Callable[[str], str] = escaped,
) -> list[str]:
    """Return a LaTeX table with ``booktabs``, line by line.

    Args:
        title: its caption.
        head: names of the columns.
        rows: cells.
        left: columns whose cells stand at the left; the first one by default.
        escape: of the cells of ``rows``.
    """
    left = head[:1] if left is None else left
    columns = "".join("l" if name in left else "r" for name in head)
    lines = ["\\begin{table}", f"\\caption{{{escaped(title)}}}"]
    lines += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [" & ".join(map(escaped, head)) + r" \\", "\\midrule"]
    lines += [" & ".join(map(escape, row)) + r" \\" for row in rows]
    return [*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]


def latex(ranking: dict[str, Any]) -> str:
    """Return the tables of figures as LaTeX (``booktabs``), without the lists of failures."""
    lines = [
        f"% {ranking['title']}, {run_with(ranking)}".replace("\n", " "),
        f"% {ranking['command']}".replace("\n", " "),
    ]
    for block in blocks(ranking):
        if "method" not in block["head"] or "reason" in block["head"]:
            continue
        head = block["head"]
        rows = [_mark_baseline(r, head, ranking, "\\emph{{{}}}", escaped) for r in block["rows"]]
        left = head if "source" in head else ("method", "set", "metric")
        lines += ["", *tabular(block["title"], head, rows, left, str)]
    return "\n".join(lines) + "\n"


def html(ranking: dict[str, Any], drawings: dict[str, str]) -> str:
    """Return the ranking as one page that loads nothing from elsewhere."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader
    from markupsafe import Markup

    from normscan.report import summary

    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("normscan.benchmark", ""), PackageLoader("normscan.report", "")]
        ),
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["day"] = summary.day
    # Only numbers and method ids are in the drawings; matplotlib has escaped them.
    safe = {level: Markup(svg) for level, svg in drawings.items()}
    page = environment.get_template("page.html.j2")
    shown = [b | {"numeric": {c for c in b["head"] if c not in _WORDS}} for b in blocks(ranking)]
    return page.render(
        ranking=ranking, blocks=shown, drawings=safe, legend=LEGEND, run_with=run_with(ranking)
    )


_WORDS = ("method", "set", "metric", "source", "reason", "against best")
