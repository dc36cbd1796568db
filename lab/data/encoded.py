"""Encoded sets, as `lab data encode` writes them: latents, tokens or features of another source, read at random from ArrayRecord.

Latents are stored as bfloat16 and come out as float32. Every record has a checksum, so damage is found when it is read.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lab.data import stored
from lab.data.encode import CARD, identity, open_shards
from lab.data.loader import shown
from lab.data.shards import Damage, Shard
from lab.errors import UserError, nearest, unknown
from lab.files import sha256

SPLITS = ("train", "eval")


def located(data_dir: str, path: str) -> Path:
    """The folder of the set in `path`, absolute or within data_dir; UserError where there is none."""
    root = Path(data_dir) / Path(path).expanduser()
    if not any((root / s / CARD).is_file() for s in SPLITS):
        have = [p.parent.parent.name for p in root.parent.glob(f"*/*/{CARD}")]
        raise UserError(
            f"config key data.path={path!r}: {str(root)!r} is no encoded set{nearest(root.name, have)}; "
            f"expected a folder that `lab data encode` wrote, absolute or within run.data_dir={str(data_dir)!r}"
        )
    return root


def _card(folder: Path) -> dict:
    """The card of a split; UserError where it is missing, damaged or that of a set not finished."""
    path = folder / CARD
    try:
        card = json.loads(path.read_text())
        identity(card), card["moments"], [s and s["sha256"] for s in card["shards"]], card["class_names"], card["made"]["fields"]
    except FileNotFoundError:
        raise UserError(f"encoded set {str(folder.parent)!r} has no split {folder.name!r}; run the same `lab data encode` again") from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"card {str(path)!r} is damaged ({type(e).__name__}); restore it, or delete its folder and encode again") from e
    if not card["complete"]:
        raise UserError(f"encoded set {str(folder)!r} is not finished; run the same `lab data encode` again, it goes on from there")
    return card


def made(data_dir: str, path: str) -> dict:
    """What made a set, as the card of its first split tells it."""
    root = located(data_dir, path)
    return _card(next(root / s for s in SPLITS if (root / s / CARD).is_file()))["made"]


def _dims(shapes: dict[str, Sequence[int]], classes: int, vocabulary: int | None) -> dict[str, int]:
    dims = {"classes": classes}
    if "image" in shapes:
        dims |= {"image": shapes["image"][0], "channels": shapes["image"][2]}
    if "tokens" in shapes:
        side, *more = shapes["tokens"]
        dims |= {"side": side} if more == [side] else {}
        dims |= {"tokens": math.prod(shapes["tokens"]), "vocabulary": vocabulary}
    if len(shapes.get("text", ())) == 2:  # sets of old may hold other text, which no model reads
        dims |= dict(zip(("length", "features"), shapes["text"], strict=True))
    if len(shapes.get("pooled", ())) == 1:
        dims |= {"pooled_features": shapes["pooled"][0]}
    return dims


def declared(config: dict) -> tuple[dict[str, int], dict[str, tuple[tuple[int, ...], type]]]:
    """Dims, and {name: (shape, dtype)} of an example, as a config's section `data` declares a set: enough to plan a run without it."""
    shapes = {k: tuple(v) if isinstance(v, list) else v for k, v in (config.get("shapes") or {}).items()}  # of study.json they are lists
    kinds = {"image": 3, "tokens": 2, "text": 2, "pooled": 1}
    for key, shape in shapes.items():
        if key not in kinds:
            raise unknown("config key data.shapes", key, kinds)
        if type(shape) is not tuple or len(shape) != kinds[key] or not all(type(n) is int and n > 0 for n in shape):
            raise UserError(f"config key data.shapes.{key}={shape!r} must be {kinds[key]} sizes, such as {(16,) * kinds[key]}")
    classes, vocabulary = config.get("classes", 1), config.get("vocabulary", 0)
    if not {"image", "tokens"} & set(shapes) or classes < 1 or ("tokens" in shapes) != bool(vocabulary):
        raise UserError(
            "config key data declares no set; expected shapes=dict(image=(size, size, channels)), or shapes=dict(tokens=(side, side)) "
            "with vocabulary=..., and classes=... where there are several"
        )
    example = {k: (v, np.int32 if k == "tokens" else np.float32) for k, v in shapes.items()} | {"label": ((), np.int32)}
    return _dims(shapes, classes, vocabulary or None), example


class Source:
    """The set in `path`, absolute or within data_dir: what its function gave, label and caption beside it.

    Damage raises UserError naming shard and record; with `skip_damaged` what is damaged is left out and counted in info['skipped'].
    Where `shapes` of an example's arrays, `classes` and `vocabulary` are declared, a run can be planned before the set is at hand; a set
    of others is an error.
    """

    def __init__(
        self,
        split: str,
        data_dir: str,
        path: str,
        skip_damaged: bool = False,
        shapes: dict | None = None,
        classes: int = 1,
        vocabulary: int = 0,
    ):
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if type(skip_damaged) is not bool:
            raise UserError(f"config key data.skip_damaged={skip_damaged!r} must be True or False")
        root = located(data_dir, path)
        card = _card(root / split)
        self._made, self._shards = card["made"], open_shards(root / split, card)
        self._starts = [s.first for s in self._shards]
        lost: list[int] = []
        if skip_damaged:
            have = [f["name"] for f in card["shards"] if (root / split / f["name"]).is_file()]
            sums = stored.digests(root / split, have, data_dir)  # those of unchanged files are kept in data_dir
            lost = [i for s, f in zip(self._shards, card["shards"], strict=True) for i in _lost(s, sums.get(f["name"]) == f["sha256"])]
        else:
            for shard in self._shards:
                shard.open()
        self._rows = np.setdiff1d(np.arange(card["made"]["examples"]), lost) if lost else range(card["made"]["examples"])
        if not len(self._rows):
            raise UserError(f"encoded set {str(root / split)!r} has no example that is not damaged")
        have = {k: f["shape"] for k, f in self._made["fields"].items()}
        self.dims = _dims(have, len(card["class_names"]), self._made.get("vocabulary"))
        if shapes:
            said = declared({"shapes": shapes, "classes": classes, "vocabulary": vocabulary})[0]
            if odd := [k for k in said if said[k] != self.dims.get(k)]:
                raise UserError(
                    f"config key data declares {odd[0]}={said[odd[0]]}, but encoded set {str(root)!r} has {self.dims.get(odd[0])}; "
                    "declare what it has, or nothing"
                )
        self.info = self._info(card, root, lost)

    def _info(self, card: dict, root: Path, lost: list[int]) -> dict[str, Any]:
        made, seen = self._made, [k for k in ("image", "tokens") if k in self._made["fields"]]
        # of both splits, so that a change of what is held out shows too
        cards = {s: _card(root / s) for s in SPLITS if (root / s / CARD).is_file()}
        content = [[s, c["made"], [f["sha256"] for f in c["shards"]]] for s, c in cards.items()]
        fingerprint = hashlib.sha256(json.dumps([content, lost] if lost else content, sort_keys=True).encode()).hexdigest()[:32]
        return {
            **{k: made["fields"][k]["shape"] for k in seen},
            **{"classes": self.dims["classes"], "class_names": card["class_names"]},
            **{"examples": len(self), "fingerprint": fingerprint, "origin": f"{made['encoder']} of {made['source']['origin']}"},
            **{"best_loss": None, "encoder": made["encoder"], "scale": made["scale"], "shift": made["shift"]},
            **{"moments": card["moments"].get(seen[0]), "skipped": len(lost)},
            **{k: made[k] for k in ("palette", "tokenizer") if k in made},
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict:
        return self.__getitems__([i])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict]:
        """Examples `rows`, those of a shard read together."""
        numbers = [int(self._rows[i]) for i in rows]
        asked: dict[int, list[int]] = {}
        for n in numbers:
            asked.setdefault(bisect_right(self._starts, n) - 1, []).append(n)
        found = {}
        for k, mine in asked.items():
            shard = self._shards[k]
            found |= dict(zip(mine, shard.read([n - shard.first for n in mine]), strict=True))
        return [self._item(*found[n]) for n in numbers]

    def _item(self, arrays: dict[str, np.ndarray], caption: str) -> dict:
        item = {k: v.astype(np.float32) if v.dtype == ml_dtypes.bfloat16 else v for k, v in arrays.items()}
        if "image" in item and item["image"].dtype == np.float32:
            item["image"] = (item["image"] - np.float32(self._made["shift"])) * np.float32(self._made["scale"])
        return {**item, "caption": caption} if self._made["captions"] else item


def _lost(shard: Shard, whole: bool) -> list[int]:
    """The examples of the set that cannot be read from a shard."""
    if whole:
        return []
    return sorted(set(range(shard.first, shard.first + shard.count)) - {shard.first + i for i in shard.sound()})


def verify(data_dir: str, path: str, skip_damaged: bool = False) -> str:
    """A line a split that is sound, every byte having been read; UserError that names what is not.

    With `skip_damaged`, what would be left out is told instead.
    """
    root, told = located(data_dir, path), []
    for split in SPLITS:
        card = _card(root / split)
        lost, wrong = [], []
        parts = list(zip(open_shards(root / split, card), card["shards"], strict=True))
        for shard, about in shown(parts, len(parts), f"verifying {root.name}/{split}"):
            mine, said = _examine(shard, about)
            lost += mine
            wrong += said
        known = {f["name"] for f in card["shards"]} | {CARD}
        wrong += [f"file {str(p)!r} is foreign" for p in sorted((root / split).iterdir()) if p.name not in known and p.name[0] != "."]
        about = f"{len(card['shards'])} shards, {card['made']['examples']} examples"
        if wrong and not skip_damaged:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UserError(
                f"{wrong[0]}{more}; {len(lost)} of {card['made']['examples']} examples are lost: encode again, or read with skip_damaged=True"
            )
        told.append(f"{root / split}: {about}, " + (f"{len(lost)} left out: {'; '.join(wrong)}" if wrong else "sound"))
    return "\n".join(told)


def _examine(shard: Shard, about: dict) -> tuple[list[int], list[str]]:
    """The examples that are lost, and what is wrong, of a shard."""
    if shard.path.is_file() and sha256(shard.path) == about["sha256"]:
        return [], []
    try:
        shard.open()
    except Damage as e:
        return _lost(shard, False), [str(e)]
    lost, said = _lost(shard, False), []
    for n in lost:
        try:
            shard.read([n - shard.first])
        except Damage as e:
            said.append(str(e))
    return lost, said or [f"shard {str(shard.path)!r} does not have its checksum, though every record does"]
