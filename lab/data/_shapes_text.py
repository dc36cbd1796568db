"""Captions of scenes in a closed grammar, their words as numbers, and back.

caption := thing {', ' thing} [', on a ' tone pattern ' background']
thing := 'a ' [size] colour shape [' at the ' place]
"""

import re

import numpy as np

from lab.data._shapes_scene import COLOURS, PATTERNS, SHAPES, SIZES, TONES, Canvas, Scene
from lab.errors import UserError, unknown

DENSITIES = ("short", "medium", "dense")
NUMBERS = ("one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
VERTICAL, HORIZONTAL = ("top", "middle", "bottom"), ("left", "centre", "right")
PLURALS = tuple(s + ("es" if s.endswith("s") else "s") for s in SHAPES)
PAD = ""
VOCABULARY = tuple(
    dict.fromkeys(
        [PAD, ",", "a", "at", "the", "on", "background", "object", "objects", "of", "above", "below"]
        + [*NUMBERS, *VERTICAL, *HORIZONTAL, *SIZES, *COLOURS, *SHAPES, *PLURALS, *TONES, *PATTERNS]
    )
)
LENGTHS = {"medium": (4, 0), "dense": (9, 5)}  # words and commas an object with the comma after it, and of the ground
NUMBER = {w: i for i, w in enumerate(VOCABULARY)}


def places(grid: int) -> list[str]:
    """Names of the cells in reading order."""
    pick = {1: slice(1, 2), 2: slice(0, 3, 2), 3: slice(0, 3)}[grid]
    return [f"{v} {h}" for v in VERTICAL[pick] for h in HORIZONTAL[pick]]


def caption(scene: Scene, canvas: Canvas, density: str) -> str:
    """'medium' names colour and shape of every object; 'dense' also size and place, and the ground."""
    if density == "medium":
        return ", ".join(f"a {COLOURS[o.colour]} {SHAPES[o.shape]}" for o in scene.objects)
    named = places(canvas.grid)
    things = [f"a {SIZES[o.size]} {COLOURS[o.colour]} {SHAPES[o.shape]} at the {named[canvas.cell_of(o)]}" for o in scene.objects]
    return ", ".join([*things, f"on a {TONES[scene.tone]} {PATTERNS[scene.pattern]} background"])


def _any(words: tuple[str, ...]) -> str:
    return "(" + "|".join(words) + ")"


THING = re.compile(f"a (?:{_any(SIZES)} )?{_any(COLOURS)} {_any(SHAPES)}(?: at the {_any(VERTICAL)} {_any(HORIZONTAL)})?")
GROUND = re.compile(f"on a {_any(TONES)} {_any(PATTERNS)} background")


def read(text: str, grid: int = 2) -> dict[str, list]:
    """What a medium or dense caption says: {objects, ground}.

    Returns:
      objects: a list of (shape, colour, size, cell), indices, with -1 for what is not said; ground: [tone, pattern] or [].

    Raises:
      UserError: the text is not a caption of the grammar.
    """
    phrases = text.split(", ")
    ground = GROUND.fullmatch(phrases[-1])
    objects, named = [], places(grid)
    for phrase in phrases[:-1] if ground else phrases:
        said = THING.fullmatch(phrase)
        place = f"{said[4]} {said[5]}" if said and said[4] else None
        if not said or (place and place not in named):
            raise UserError(f"caption {text!r}: {phrase!r} is not a phrase of the grammar, such as 'a red circle at the {named[0]}'")
        size, cell = SIZES.index(said[1]) if said[1] else -1, named.index(place) if place else -1
        objects.append((SHAPES.index(said[3]), COLOURS.index(said[2]), size, cell))
    return {"objects": objects, "ground": [TONES.index(ground[1]), PATTERNS.index(ground[2])] if ground else []}


def length(density: str, objects: int, prompts: list[str]) -> int:
    """Words and commas of the longest caption of so many objects; 'short' ones are the prompts."""
    if density == "short":
        return max(len(p.split()) for p in prompts)
    each, ground = LENGTHS[density]
    return each * objects + (ground or -1)


def encode(text: str, length: int) -> np.ndarray:
    """Numbers in VOCABULARY of a caption's words and commas, int32 [length], padded with 0; UserError for any other word."""
    words = text.replace(",", " ,").split()
    if missing := [w for w in words if w not in NUMBER]:
        raise unknown("word", missing[0], VOCABULARY[1:])
    if len(words) > length:
        raise UserError(f"caption {text!r} has {len(words)} words and commas; expected at most {length}")
    out = np.zeros(length, np.int32)
    out[: len(words)] = [NUMBER[w] for w in words]
    return out


def decode(numbers: np.ndarray) -> str:
    """The caption that `encode` was given."""
    return " ".join(VOCABULARY[n] for n in numbers if n).replace(" ,", ",")
