"""The results of an evaluation: a dictionary that can show itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from normscan import notebook
from normscan.report.summary import known, number


class Results(dict[str, Any]):
    """What ``results.json`` holds, see ``evaluate``; a notebook shows it as a table."""

    def rows(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the title and entry of each metric that has a value."""
        entries = self.get("metrics", {}).values()
        return [(str(e["title"]), e) for e in entries if known(e.get("value"))]

    def _repr_html_(self) -> str:
        facts = {}
        for title, e in self.rows():
            text = number(e["value"])
            if known(e["low"]) and known(e["high"]):
                text += f" ({number(e['low'])} to {number(e['high'])})"
            facts[title] = text + (", oracle" if e["oracle"] else "")
        about = self.get("tested") or {}
        title = f"{self['method']['id']} on {about.get('cohort') or 'a cohort'}"
        note = "<small>95 % intervals by subject. Oracle: chosen with the test labels.</small>"
        return notebook.page(title, facts, more=note)

    def plot(self) -> Any:
        """Return a figure of the metrics between 0 and 1, with their intervals; oracles are hollow."""
        inside = [
            (title, e)
            for title, e in self.rows()
            if all(0 <= float(e[k]) <= 1 for k in ("value", "low", "high") if known(e[k]))
        ]
        figure = notebook.drawing(6.5, 0.7 + 0.28 * max(1, len(inside)))
        axes = figure.add_subplot()
        for place, (_, e) in enumerate(inside):
            if known(e["low"]) and known(e["high"]):
                axes.plot([e["low"], e["high"]], [-place, -place], color="#0072b2", alpha=0.5)
            face = "white" if e["oracle"] else "#0072b2"
            axes.plot([e["value"]], [-place], "o", color="#0072b2", markerfacecolor=face)
        axes.set(xlim=(0, 1), yticks=-np.arange(len(inside)), yticklabels=[t for t, _ in inside])
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(f"{self['method']['id']}: value and 95 % interval", fontsize=10)
        return figure
