"""Tables that people open in a spreadsheet: no name of a scan or a column is run as a formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_SIGNS = ("=", "+", "-", "@", "\t", "\r")


def inert(value: Any) -> Any:
    """Return a cell that a spreadsheet shows as it is: ``'`` stands before what it would run.

    Numbers, also as text, stay as they are.
    """
    if not isinstance(value, str) or not _runs(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def revived(value: Any) -> Any:
    """Undo ``inert``."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and _runs(value) else value


def _runs(text: str) -> bool:
    return text.lstrip("'").startswith(_SIGNS)


def inert_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose cells and columns are ``inert``."""
    return _mapped(table, inert)


def revived_table(table: pd.DataFrame) -> pd.DataFrame:
    """Undo ``inert_table``."""
    return _mapped(table, revived)


def _mapped(table: pd.DataFrame, function: Any) -> pd.DataFrame:
    import pandas as pd

    changed = {
        name: [function(value) for value in table[name]]
        for name in table.columns
        if not pd.api.types.is_numeric_dtype(table[name]) and table[name].map(_odd).any()
    }
    return (
        table.assign(**changed).rename(columns=function)
        if changed
        else table.rename(columns=function)
    )


def _odd(value: Any) -> bool:
    return isinstance(value, str) and _runs(value)
