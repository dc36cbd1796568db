"""What can be asked of a picture, after PaintSkills (arXiv 2202.04053): an object, a count, a spatial relation; or any scene.

A class of a skill is a combination of attributes. One in six (of relations one in five) is set aside: a study may keep these from
training and ask for them later. Each attribute on its own, and each shape in each role, is still in training.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from lab.data._shapes_oracle import Found
from lab.data._shapes_scene import COLOURS, SHAPES, Canvas
from lab.data._shapes_text import NUMBERS, PLURALS, RELATIONS

PAIRS = list(product(range(len(COLOURS)), range(len(SHAPES))))
PARTS = ("all", "seen", "unseen")


class Want(NamedTuple):
    """One object to place: cell, shape and colour."""

    cell: int
    shape: int
    colour: int


class Draws:
    """Whole numbers from a counter-based generator; `draws(n)` is below n."""

    def __init__(self, *key: int, counter: int):
        self._bits = np.random.Philox(key=key, counter=[0, 0, 0, counter])
        self.again()

    def again(self) -> None:
        """Start over with fresh bits: more than a scene needs, so that its draws cost one call."""
        self._left = self._bits.random_raw(40).tolist()

    def __call__(self, n: int) -> int:
        return self._left.pop() % n

    def pick(self, items: list) -> object:
        """One of some items."""
        return items[self(len(items))]

    def cells(self, n: int, among: int) -> list[int]:
        """`n` distinct cells, in reading order."""
        left = list(range(among))
        return sorted(left.pop(self(len(left))) for _ in range(n))


def aside(colour: int, shape: int) -> bool:
    """Whether the combination of a colour and a shape is set aside: one shape for every colour, one colour for every shape."""
    return (shape - colour) % len(SHAPES) == 2


def allowed(unseen: list[bool], part: str) -> list[int]:
    """Positions of the combinations in a part: 'all', those 'seen' in training, or the 'unseen' set aside."""
    return [i for i, u in enumerate(unseen) if part == "all" or u == (part == "unseen")]


class Skill:
    """Classes with `names` and `prompts`, and which are set aside; how they are drawn and judged. A picture is right for `ways` classes."""

    names: list[str]
    prompts: list[str]
    unseen: list[bool]
    ways = 1
    most = 4  # objects

    def __init__(self, canvas: Canvas):
        self.canvas = canvas

    def labels(self, part: str) -> list[int]:
        """Classes of a part."""
        return allowed(self.unseen, part)

    def draw(self, label: int, draws: Draws, part: str) -> list[Want]:
        """Objects of a picture of a class, in reading order."""
        raise NotImplementedError

    def correct(self, found: Found, labels: np.ndarray) -> np.ndarray:
        """Whether each picture shows its class, bool [N]."""
        raise NotImplementedError

    def parts(self, found: Found, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Whether each picture shows each attribute of its class, bool [N], where a class has several."""
        return {}

    def said(self, objects: list[tuple]) -> int:
        """The class of the objects that a caption names, as `read` gives them; -1 where they tell none."""
        return -1


class ObjectSkill(Skill):
    """One object, class = colour and shape. Judged by the surest object of a picture, which is always some class."""

    most = 1

    def __init__(self, canvas: Canvas):
        super().__init__(canvas)
        self.names = [f"{COLOURS[c]} {SHAPES[s]}" for c, s in PAIRS]
        self.prompts = [f"a {n}" for n in self.names]
        self.unseen = [aside(c, s) for c, s in PAIRS]

    def said(self, objects: list[tuple]) -> int:
        """The class of the one object that a caption names; -1 of several."""
        return PAIRS.index(objects[0][1::-1]) if len(objects) == 1 else -1

    def draw(self, label: int, draws: Draws, part: str) -> list[Want]:
        """One object anywhere."""
        colour, shape = PAIRS[label]
        return [Want(draws(self.canvas.cells), shape, colour)]

    def correct(self, found: Found, labels: np.ndarray) -> np.ndarray:
        """Whether colour and shape of the surest object are the asked ones, bool [N]."""
        return np.logical_and(*self.parts(found, labels).values())

    def parts(self, found: Found, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Whether the surest object has the asked colour, and the asked shape, bool [N]."""
        at = np.arange(len(labels)), found.score.argmin(1)
        colour, shape = np.divmod(labels, len(SHAPES))
        return {"colour": found.colour[at] == colour, "shape": found.shape[at] == shape}


class CountSkill(Skill):
    """One to four objects of one shape, class = number and shape. All objects found count, and all must have that shape."""

    def __init__(self, canvas: Canvas):
        super().__init__(canvas)
        self.combos = list(product(range(len(NUMBERS)), range(len(SHAPES))))
        self.names = [f"{NUMBERS[n]} {PLURALS[s] if n else SHAPES[s]}" for n, s in self.combos]
        self.prompts = self.names
        self.unseen = [(s - n) % len(SHAPES) == 1 for n, s in self.combos]

    def draw(self, label: int, draws: Draws, part: str) -> list[Want]:
        """Objects anywhere, of any colours."""
        number, shape = self.combos[label]
        return [Want(cell, shape, draws(len(COLOURS))) for cell in draws.cells(number + 1, self.canvas.cells)]

    def correct(self, found: Found, labels: np.ndarray) -> np.ndarray:
        """Whether number and shapes are the asked ones, bool [N]."""
        return np.logical_and(*self.parts(found, labels).values())

    def parts(self, found: Found, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Whether as many objects are found as asked, and all have the asked shape, bool [N]."""
        number, shape = np.divmod(labels, len(SHAPES))
        same = (found.shape == shape[:, None]) | ~found.present
        return {"number": found.present.sum(1) == number + 1, "shape": same.all(1)}


class RelationSkill(Skill):
    """Two shapes, class = (A, relation, B). Exactly two objects must be found; the longer of the two ways apart decides.

    A is left of B where B is right of A, so every picture fits two classes.
    """

    ways = 2
    most = 2

    def __init__(self, canvas: Canvas):
        super().__init__(canvas)
        kinds = range(len(SHAPES))
        self.combos = [(a, r, b) for a, r, b in product(kinds, range(len(RELATIONS)), kinds) if a != b]
        self.names = [f"{SHAPES[a]} {RELATIONS[r]} {SHAPES[b]}" for a, r, b in self.combos]
        self.prompts = [f"a {SHAPES[a]} {RELATIONS[r]} a {SHAPES[b]}" for a, r, b in self.combos]
        # both names of one arrangement are set aside together
        self.unseen = [(b - a if r % 2 == 0 else a - b) % len(SHAPES) == 1 + r // 2 for a, r, b in self.combos]
        self.index = np.full((len(SHAPES), len(RELATIONS), len(SHAPES)), -1)
        for i, combo in enumerate(self.combos):
            self.index[combo] = i
        self.between = np.array([[self._relation(p, q) for q in range(canvas.cells)] for p in range(canvas.cells)])

    def _relation(self, p: int, q: int) -> int:
        """The relation of cell p to cell q, -1 on a diagonal."""
        (row, col), (row_q, col_q) = divmod(p, self.canvas.grid), divmod(q, self.canvas.grid)
        down, right = row_q - row, col_q - col
        if abs(down) == abs(right):
            return -1
        return (0 if right > 0 else 1) if abs(right) > abs(down) else (2 if down > 0 else 3)

    def draw(self, label: int, draws: Draws, part: str) -> list[Want]:
        """Two objects of any colours in cells that stand in the relation."""
        a, relation, b = self.combos[label]
        p, q = draws.pick(np.argwhere(self.between == relation).tolist())
        return sorted([Want(p, a, draws(len(COLOURS))), Want(q, b, draws(len(COLOURS)))])

    def correct(self, found: Found, labels: np.ndarray) -> np.ndarray:
        """Whether two objects are found and stand as asked, bool [N]."""
        n = np.arange(len(labels))
        first = found.present.argmax(1)
        last = found.present.shape[1] - 1 - found.present[:, ::-1].argmax(1)
        kinds, held = (found.shape[n, first], found.shape[n, last]), np.zeros(len(labels), bool)
        for p, q, (a, b) in ((first, last, kinds), (last, first, kinds[::-1])):
            relation = self.between[p, q]
            held |= (relation >= 0) & (self.index[a, relation, b] == labels)
        return held & (found.present.sum(1) == 2)


class SceneSkill(Skill):
    """One to four objects of any kinds, class = their number. The combinations are those of colour and shape in every object."""

    def __init__(self, canvas: Canvas):
        super().__init__(canvas)
        self.names = [f"{n} object{'s' if i else ''}" for i, n in enumerate(NUMBERS)]
        self.prompts = self.names
        self.unseen = [False] * len(NUMBERS)
        self.pairs = {part: allowed([aside(c, s) for c, s in PAIRS], part) for part in PARTS}

    def labels(self, part: str) -> list[int]:
        """Every number, whatever the part."""
        return list(range(len(NUMBERS)))

    def draw(self, label: int, draws: Draws, part: str) -> list[Want]:
        """Objects anywhere, of the part's colours and shapes."""
        kinds = [PAIRS[draws.pick(self.pairs[part])] for _ in range(label + 1)]
        return [Want(cell, s, c) for cell, (c, s) in zip(draws.cells(label + 1, self.canvas.cells), kinds, strict=True)]

    def correct(self, found: Found, labels: np.ndarray) -> np.ndarray:
        """Whether as many objects are found as asked, bool [N]; `attributes` judges what they are."""
        return found.present.sum(1) == np.asarray(labels) + 1


SKILLS = {"object": ObjectSkill, "count": CountSkill, "relation": RelationSkill, "scene": SceneSkill}
