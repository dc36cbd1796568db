"""Outlines of SVG drawings as absolute moves, lines and cubics in the unit square, and their pictures.

SVG 2, chapter 9 and appendix B (implementation notes on arcs); the grammar of path data is read by fontTools. A fill closes
every subpath, so closing is left implicit. What a filled outline cannot say (strokes, colours, other fill rules) is refused.
"""

import io
import re
from math import radians
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from fontTools.misc.transform import Identity, Transform
from fontTools.pens.basePen import BasePen
from fontTools.pens.transformPen import TransformPen
from fontTools.svgLib.path import parse_path
from fontTools.svgLib.path.shapes import PathBuilder
from PIL import Image

M, L, C = range(3)
ARGUMENTS = np.array([1, 1, 3])  # points of a command
GROUPS, SILENT = ("svg", "g"), ("title", "desc", "metadata")
SHAPES = ("path", "circle", "ellipse", "rect", "polygon", "polyline", "line")
PLAIN = {"d", "points", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "rx", "ry", "width", "height", "viewBox", "transform"}
UNSEEN = {"id", "class", "version", "role", "focusable"}  # attributes that draw nothing
BLACK = {"fill": ("currentColor", "black", "#000", "#000000"), "fill-rule": ("nonzero",), "stroke": ("none",)}


class Path(NamedTuple):
    """Commands [n] of M, L, C and their points [p, 2] in order: x right, y down, the drawing's longer side from 0 to 1."""

    commands: np.ndarray
    points: np.ndarray


class Refused(Exception):
    """The drawing is no plain filled outline; its message is the reason, in a few words."""


class _Pen(BasePen):
    """Keeps what is drawn; its parent makes one cubic of a quadratic, which is exact."""

    def __init__(self):
        super().__init__(None)
        self.commands: list[int] = []
        self.points: list[tuple[float, float]] = []

    def _add(self, command: int, *points: tuple[float, float]) -> None:
        self.commands.append(command)
        self.points.extend(points)

    def _moveTo(self, p):
        self._add(M, p)

    def _lineTo(self, p):
        self._add(L, p)

    def _curveToOne(self, a, b, p):
        self._add(C, a, b, p)


def transform(text: str) -> Transform:
    """The matrix of a `transform` attribute; its last function is the first applied (CSS Transforms 1, section 7)."""
    known = {
        "matrix": lambda *a: Transform(*a),
        "translate": lambda x, y=0.0: Identity.translate(x, y),
        "scale": lambda x, y=None: Identity.scale(x, x if y is None else y),
        "rotate": lambda a, x=0.0, y=0.0: Identity.translate(x, y).rotate(radians(a)).translate(-x, -y),
        "skewX": lambda a: Identity.skew(radians(a), 0),
        "skewY": lambda a: Identity.skew(0, radians(a)),
    }
    total = Identity
    for name, arguments in re.findall(r"(\w+)\s*\(([^)]*)\)", text):
        total = total.transform(known[name](*map(float, arguments.replace(",", " ").split())))
    return total


def _draw(element: ElementTree.Element, pen: _Pen, outer: Transform) -> None:
    kind = element.tag.rpartition("}")[2]
    if kind in SILENT:
        return
    if kind not in GROUPS + SHAPES:
        raise Refused(f"has an element {kind}")
    for key, value in element.attrib.items():
        if key not in PLAIN | UNSEEN and not key.startswith("aria-") and value not in BLACK.get(key, ()):
            raise Refused(f"has {key.rpartition('}')[2]}")
    inner = outer.transform(transform(element.get("transform", "")))
    if kind in GROUPS:
        for child in element:
            _draw(child, pen, inner)
    else:
        shape = PathBuilder()
        shape.add_path_from_element(ElementTree.Element(kind, {k: v for k, v in element.items() if k != "transform"}))
        for d in shape.paths:
            parse_path(d, TransformPen(pen, inner))


def _box(root: ElementTree.Element) -> tuple[float, float, float, float]:
    if "viewBox" in root.attrib:
        x, y, width, height = map(float, root.get("viewBox").replace(",", " ").split())
    else:
        x, y, width, height = 0.0, 0.0, float(root.get("width")), float(root.get("height"))
    if not (width > 0 and height > 0):
        raise ValueError("the box is empty")
    return x, y, width, height


def parse(text: str) -> Path:
    """The outline of a whole SVG file, its box centred in the unit square.

    Lines, H, V, S, T and quadratics are exact; an arc is one cubic every quarter turn (error under 3e-4 of the radius).
    Several elements become one outline under the non-zero rule; shapes other than paths are read to three decimals.

    Raises:
      Refused: it is no SVG that can be read, or no plain filled outline.
    """
    pen = _Pen()
    try:
        root = ElementTree.fromstring(text)
        x, y, width, height = _box(root)
        _draw(root, pen, Identity)
    except (ElementTree.ParseError, ValueError, TypeError, KeyError, IndexError) as e:
        raise Refused("cannot be read") from e
    points = (np.array(pen.points, np.float64).reshape(-1, 2) - (x, y) - (width / 2, height / 2)) / max(width, height) + 0.5
    return Path(np.array(pen.commands, np.int8), points)


def draw(path: Path, size: int) -> np.ndarray:
    """The filled outline (non-zero rule), black on white and anti-aliased: uint8 [size, size, 1]."""
    import resvg_py

    ends = np.cumsum(ARGUMENTS[path.commands])
    parts = ("MLC"[c] + " ".join(f"{v:.7g}" for v in p.ravel()) for c, p in zip(path.commands, np.split(path.points, ends), strict=False))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path d="{"".join(parts)}"/></svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("L"), np.uint8)[..., None]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Ink that two pictures, black on white, share over ink that either has; grey is part ink. 1 where both are white."""
    a, b = (255.0 - np.asarray(x, np.float64) for x in (a, b))
    either = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / either) if either else 1.0
