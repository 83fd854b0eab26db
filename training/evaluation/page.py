"""A self-contained page with plots of aggregated data."""

from __future__ import annotations

import html
from typing import Any

import altair as alt
import vl_convert

_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
_LIBRARY = "window.vegaEmbed = vegaEmbed;"  # all that the page needs of the bundle
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: .85rem; }}
td, th {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }}
td {{ white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; }}
h2 {{ margin-top: 2.5rem; }}
</style>
<h1>{title}</h1>
<p>{intro}</p>
{table}
<div id="plots"></div>
<script type="module">{library}</script>
<script type="module">window.vegaEmbed("#plots", {plots}, {{mode: "vega-lite", actions: false}});</script>
</html>
"""


def html_page(title: str, intro: str, table: str, chart: Any) -> str:  # noqa: ANN401 -- altair's own chain is untyped
    """A self-contained page: title and intro as text, table as HTML, and a chart."""
    chart = chart.configure_title(anchor="start", fontSize=17, subtitleFontSize=13, subtitleColor="#555")
    return _PAGE.format(
        title=html.escape(title),
        intro=html.escape(intro),
        table=table,
        library=vl_convert.javascript_bundle(_LIBRARY, vl_version=_VEGA_LITE).replace("</script", "<\\/script"),
        plots=chart.configure_view(strokeWidth=0).to_json(indent=None).replace("</", "<\\/"),
    )
