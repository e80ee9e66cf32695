"""A report's tables as Markdown, and as one HTML page with bars that needs nothing from elsewhere."""

import html
from collections.abc import Sequence

from training.report_tables import Figure, Row, Table

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Towers: results</title><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#202124}
h2{font-size:1.1em;margin:2.2em 0 .6em}table{border-collapse:collapse;width:100%}
th{text-align:left;font-weight:600;border-bottom:2px solid #dadce0}td,th{padding:.3em .8em .3em 0;vertical-align:top}
tr+tr td{border-top:1px solid #eceff1}.bar{background:#eceff1;height:.5em;margin-top:.15em;position:relative}
.bar i{display:block;height:100%;background:#9aa0a6}.ours .bar i{background:#2a6fb0}.published .bar i{background:#c9d6e3}
.bar b{position:absolute;top:.2em;height:.1em;background:#202124}.ours td:first-child{font-weight:600}
small{color:#5f6368}.figure{white-space:nowrap;padding-right:1.5em}
code{font-size:.85em;overflow-wrap:anywhere}.loud{background:#fce8e6;color:#a50e0e;padding:.5em .8em;font-weight:600}
details{color:#5f6368;font-size:.9em;margin-top:.6em}</style><h1>Results</h1>
<p><span style="color:#2a6fb0">&#9632;</span> ours, with 95 % intervals &nbsp;
<span style="color:#9aa0a6">&#9632;</span> baselines on the same queries &nbsp;
<span style="color:#c9d6e3">&#9632;</span> published by others</p>
"""
FOOT = "Intervals are 95 % bootstrap over users; over several seeds, value and interval are means, with the range of the seeds."


def as_markdown(tables: Sequence[Table]) -> str:
    """All tables, for a README or a terminal."""
    return "\n".join(["# Results", *("\n".join(_markdown(table)) for table in tables), "", FOOT, ""])


def as_html(tables: Sequence[Table]) -> str:
    """One page, self-contained: each value has a bar on the scale of its column."""
    return "\n".join([HEAD, *("\n".join(_section(table)) for table in tables), f"<p><small>{html.escape(FOOT)}</small></p></html>", ""])


def said(figure: Figure | None) -> str:
    """A figure in words.

    >>> said(Figure(0.25, 0.2, 0.3)), said(Figure(0.5, seeds=(0.4, 0.6))), said(None)
    ('0.2500 [0.2000, 0.3000]', '0.5000 (seeds 0.4000 to 0.6000)', '-')
    """
    if figure is None:
        return "-"
    interval = f" [{figure.low:.4f}, {figure.high:.4f}]" if figure.low is not None else ""
    return f"{figure.value:.4f}{interval}" + (f" (seeds {min(figure.seeds):.4f} to {max(figure.seeds):.4f})" if figure.seeds else "")


def _markdown(table: Table) -> list[str]:
    lines = ["", f"## {table.title}", "", *(f"> **{line}**" for line in table.loud), *([""] if table.loud else [])]
    lines.append("| | " + " | ".join(table.metrics) + " | seeds | CPU min | |")
    lines.append("|" + "---|" * (len(table.metrics) + 4))
    for row in table.rows:
        name = f"**{row.name}**" if row.kind == "ours" else f"*{row.name}*" if row.kind == "published" else row.name
        lines.append("| " + " | ".join([name, *(said(row.figures.get(m)) for m in table.metrics), *_facts(row), _note(row, "`")]) + " |")
    return lines


def _facts(row: Row) -> list[str]:
    return [str(row.seeds or ""), "" if row.cpu_minutes is None else f"{row.cpu_minutes:.1f}"]


def _note(row: Row, quote: str) -> str:
    return f"{quote}{row.command}{quote}".replace("|", "\\|") if row.command and quote else row.note or row.command


def _section(table: Table) -> list[str]:
    most = {m: max((r.figures[m].high or r.figures[m].value for r in table.rows if m in r.figures), default=0) or 1 for m in table.metrics}
    lines = [f"<h2>{html.escape(table.title)}</h2>", *(f'<p class="loud">{html.escape(line)}</p>' for line in table.loud)]
    lines.append("<table><tr><th>" + "".join(f"<th>{html.escape(m)}" for m in table.metrics) + "<th>seeds<th>CPU min<th>")
    for row in table.rows:
        cells = "".join(f"<td class=figure>{_bar(row.figures.get(m), most[m])}" for m in table.metrics)
        note = f"<code>{html.escape(row.command)}</code>" if row.command else f"<small>{html.escape(row.note)}</small>"
        facts = "".join(f"<td>{fact}" for fact in _facts(row))
        lines.append(f'<tr class="{row.kind}"><td>{html.escape(row.name)}{cells}{facts}<td>{note}')
    lines.append("</table>")
    if table.protocol:
        lines.append(
            "<details><summary>protocol</summary><ul>" + "".join(f"<li>{html.escape(p)}" for p in table.protocol) + "</ul></details>"
        )
    return lines


def _bar(figure: Figure | None, most: float) -> str:
    if figure is None:
        return "-"
    text = f"{figure.value:.4f}" + (f" <small>[{figure.low:.4f}, {figure.high:.4f}]</small>" if figure.low is not None else "")
    if figure.seeds:
        text += f"<br><small>seeds {min(figure.seeds):.4f} to {max(figure.seeds):.4f}</small>"
    line = ""
    if figure.low is not None and figure.high is not None:
        line = f'<b style="left:{100 * figure.low / most:.1f}%;width:{100 * (figure.high - figure.low) / most:.1f}%"></b>'
    return f'{text}<div class="bar"><i style="width:{100 * max(0, figure.value) / most:.1f}%"></i>{line}</div>'
