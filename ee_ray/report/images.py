"""Figures as PNG and SVG, drawn by a browser that is installed, for papers and slides."""

import os
from collections.abc import Mapping
from pathlib import Path

import kaleido
import plotly.graph_objects as go
from choreographer.browsers.chromium import Chromium

from ee_ray.errors import UserError

FORMATS = {"png": 2, "svg": 1}  # pixels for each point of the figure
WIDTH, SMALL = 960, 300  # points; figures lower than SMALL are panels, drawn narrow
SECONDS = 90.0  # for one image, on a machine that trains as well


def browser() -> str:
    """The browser that draws: BROWSER_PATH, or a Chrome or Chromium that is installed.

    Raises:
        UserError: there is none.
    """
    named = os.environ.get("BROWSER_PATH")
    found = named or Chromium.find_browser(skip_local=False)
    if not found or not os.access(found, os.X_OK):
        where = f"BROWSER_PATH={named} is none that can be started" if named else "none is installed here"
        raise UserError(f"--images: a browser draws them, and {where}: install one (apt-get install chromium), or set BROWSER_PATH to a Chrome or Chromium")  # fmt: skip
    return found


def _width(height: int) -> int:
    return WIDTH if height >= SMALL else WIDTH // 2


def write_images(figures: Mapping[str, go.Figure], folder: Path, browser: str) -> list[Path]:
    """Write every figure into `folder` as `<name>.png` and `<name>.svg`: half a second each, by one browser for all.

    Raises:
        UserError: the browser does not draw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        {
            "fig": figure.to_plotly_json(),
            "path": str(folder / f"{name}.{kind}"),
            "opts": {
                "format": kind,
                "width": _width(figure.layout.height),
                "height": figure.layout.height,
                "scale": scale,
            },
        }
        for name, figure in figures.items()
        for kind, scale in FORMATS.items()
    ]
    # MathJax would be fetched from the network for each image, and waited for where there is none.
    options = {"path": browser, "timeout": SECONDS, "mathjax": False}
    try:
        kaleido.write_fig_from_object_sync(wanted, kopts=options, cancel_on_error=True)
    except Exception as error:  # whatever a browser may do
        said = str(error.args[0]) if error.args else type(error).__name__
        raise UserError(f"--images: {browser} does not draw: {said}: set BROWSER_PATH to another browser") from error
    return [Path(each["path"]) for each in wanted]
