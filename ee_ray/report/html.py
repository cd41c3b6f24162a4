"""The few pieces of HTML that pages are made of."""

import base64
import gzip
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs


def asset(name: str) -> str:
    """A text file that lies beside this module."""
    return (files("ee_ray.report") / name).read_text()


def packed(name: str, text: str) -> str:
    """Text that the page unpacks for itself (page.js): compressed, a quarter of its size."""
    data = base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
    return f'<script type="application/gzip" id="packed-{name}">{data}</script>'


def plotly() -> str:
    """Plotly's own JavaScript, packed. The whole bundle: smaller ones draw no icicle."""
    return packed("plotly", get_plotlyjs())


def plain_json(value: Any) -> str:
    """JSON without NaN, which it does not know: null."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def drawn(figure: go.Figure) -> Any:
    """A figure for JSON, its arrays as plain lists: Plotly's packed ones cannot be indexed by the page."""
    return _unpacked(json.loads(str(figure.to_json())))


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "bdata" not in value:
        return {name: _unpacked(item) for name, item in value.items()}
    array = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
    return [None if item != item else item for item in array.tolist()]


def rows_of(table: pd.DataFrame) -> dict[str, Any]:
    """A table for JSON: columns, and values by row; NaN as None."""
    values = table.astype(object).where(table.notna(), None)
    return {"columns": list(values), "values": values.to_numpy().tolist()}


def cell(value: Any) -> str:
    if isinstance(value, Html):
        return f"<td>{value}</td>"
    if isinstance(value, (float, np.floating)):
        return f'<td class="n">{"-" if np.isnan(value) else format(value, ".4f")}</td>'
    if isinstance(value, (int, np.integer)):
        return f'<td class="n">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"


class Html(str):
    """Text that is markup already."""


def table(header: list[str], rows: list[list[Any]], caption: str = "", kind: str = "wide") -> str:
    """Numbers are set right; `kind` is the class of the box around the table."""
    numeric = [
        bool(rows) and not isinstance(value, str) and isinstance(value, (int, float, np.number))
        for value in (rows[0] if rows else [])
    ]
    numeric += [False] * (len(header) - len(numeric))
    head = "".join(
        f'<th scope="col"{" class=n" * right}>{escape(name)}</th>' for name, right in zip(header, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(caption or header[0] or "table")}"><table>{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def section(name: str, title: str, *parts: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{"".join(parts)}</section>'


def details(name: str, summary: str, *parts: str) -> str:
    return f'<details id="{name}"><summary>{escape(summary)}</summary>{"".join(parts)}</details>'


def figure(name: str, label: str) -> str:
    """Where the page draws the figure of that name (page.js)."""
    return f'<div class="figure" data-figure="{escape(name)}" role="img" aria-label="{escape(label)}"></div>'


def figured(title: str, body: str, figures: Mapping[str, go.Figure]) -> str:
    """A whole page of text and figures, which are drawn where `figure` has left room."""
    main = f'<main id="main">{body}</main><p class="bad" id="broken" role="alert" hidden></p>'
    data = plain_json({"figures": {name: drawn(found) for name, found in figures.items()}})
    return document(title, main, [packed("data", data), plotly(), f"<script>{asset('page.js')}</script>"])


def document(title: str, body: str, scripts: list[str], attributes: str = "") -> str:
    """A whole page that fetches nothing."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{asset("page.css")}</style>'
    # An empty icon: or a browser asks the server for one.
    icon = '<link rel="icon" href="data:,">'
    return f'<!doctype html><html lang="en"><head>{head}{icon}</head><body{attributes}>{body}{"".join(scripts)}</body></html>'
