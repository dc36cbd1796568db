"""Any source through any function into an encoded set: latents, tokens or features as ArrayRecord shards with a card.

A set is a folder a split, each with card.json and its shards (lab/data/shards.py). The card is written first and after every shard, so
a rerun after any kind of end keeps the shards whose checksum holds, does the rest, and leaves the same bytes.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from rich.progress import track

from lab import find
from lab.data import shards
from lab.data.loader import CORES, open_source, shown
from lab.data.mapped import Function, checked_palette, function_digest, function_name, outputs, read_batch
from lab.data.moments import Moments
from lab.data.stored import writing
from lab.errors import UserError, unknown
from lab.files import sha256, write_json
from lab.log import console

CARD = "card.json"
ENDLESS = 2**27  # length from which a source that `examples` could bound is not meant to be stored


def identity(card: dict) -> str:
    """What a card's shards say they belong to."""
    return hashlib.sha256(json.dumps(card["made"], sort_keys=True).encode()).hexdigest()[:32]


def header(card: dict, k: int) -> dict[str, Any]:
    """Record 0 of shard k."""
    return {"set": identity(card), "shard": k, "examples": span(card, k)[1] - span(card, k)[0]}


def span(card: dict, k: int) -> tuple[int, int]:
    """The first example of shard k, and the one after its last."""
    size = card["made"]["shard_examples"]
    return k * size, min((k + 1) * size, card["made"]["examples"])


def write(
    source: Any,
    function: Callable[[dict], dict],
    folder: Path,
    *,
    name: str = "",
    scale: float = 1.0,
    shift: float = 0.0,
    vocabulary: int = 0,
    palette: Sequence | None = None,
    batch: int = 64,
    shard_examples: int = 8192,
    devices: int = 0,
    examples: int = 0,
    more: dict | None = None,
) -> Path:
    """Write the first `examples` (0: all) of a source as a split of an encoded set, or go on with it; returns the folder.

    `function` maps a batch {name: array [batch, ...], caption: list} to arrays [batch, ...], of which 'image' or 'tokens' is what a model
    sees, and 'text' [batch, length, features] what it reads; features that are all zero are no word. It runs on `devices` devices (0: all)
    where jax can trace it; then it gets no captions. A reader multiplies images by `scale` after taking off `shift`. `palette`
    [vocabulary, channels] holds the colour, 0 to 255, of every token, where tokens are pixels. `more`
    is told of what made the set in its card, and is part of what it is.
    """
    for key, value, least in (
        ("batch", batch, 1),
        ("shard_examples", shard_examples, 1),
        ("devices", devices, 0),
        ("examples", examples, 0),
    ):
        if type(value) is not int or value < least:
            raise UserError(f"{key}={value!r} must be a whole number from {least}")
    if len(source) >= ENDLESS and not examples and "examples" in inspect.signature(type(source)).parameters:
        raise UserError(f"the source is endless ({len(source)} examples) and cannot be stored; give examples=N")
    folder, n = Path(folder), min(len(source), examples or len(source))
    with writing(folder, "choose another --to"):
        first = read_batch(source, 0, min(batch, n), batch)
        run = Function(function, first, devices)
        fields = _fields(outputs(run(first), first, vocabulary))
        called = function_name(function)
        made = {
            **{"encoder": name or called, "function": called, "function_digest": function_digest(function)},
            **{"source": {k: source.info[k] for k in ("fingerprint", "origin")}, "scale": scale, "shift": shift, "vocabulary": vocabulary},
            **{"fields": fields, "captions": "caption" in first, "batch": batch, "shard_examples": shard_examples, "examples": n},
            **(more or {}),
            **({} if palette is None else {"palette": checked_palette(palette, vocabulary, fields)}),
        }
        about = {"class_names": list(source.info["class_names"]), "device": jax.devices()[0].device_kind, "devices": run.devices}
        card = _begin(folder, {"format": 1, "made": made, **about, "complete": False, "moments": {}, "shards": []})
        if not card["complete"]:
            _fill(folder, card, source, run)
    return folder


def _begin(folder: Path, card: dict) -> dict:
    """The folder's card with the shards that are sound, or a new one; UserError where the folder holds anything else."""
    found = folder / CARD
    if not found.is_file():
        if folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
            raise UserError(f"folder {str(folder)!r} holds files that are no encoded set; choose another --to")
        folder.mkdir(exist_ok=True)
        card["shards"] = [None] * -(-card["made"]["examples"] // card["made"]["shard_examples"])
        return card
    try:
        old = json.loads(found.read_text())
        card["made"] = json.loads(json.dumps(card["made"]))  # as a card says it: a tuple is a list
        differ = [k for k in card["made"] if old["made"].get(k) != card["made"][k]]
        kept = [s and (folder / s["name"]).is_file() and sha256(folder / s["name"]) == s["sha256"] for s in old["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"file {str(found)!r} is damaged; delete its folder, or choose another --to") from e
    if differ:
        k = differ[0]
        raise UserError(
            f"folder {str(folder)!r} holds another set: its {k} is {old['made'].get(k)!r}, this one's is {card['made'][k]!r}; choose another --to"
        )
    if old["complete"] and all(kept):
        return old
    return {**card, "shards": [s if k else None for s, k in zip(old["shards"], kept, strict=True)]}


def _fill(folder: Path, card: dict, source: Any, run: Function) -> None:
    """Make the shards that are missing, then the moments of all; the card tells what is done."""
    made, layout = card["made"], shards.Layout(card["made"]["fields"])
    names = [shards.file_name(k, len(card["shards"])) for k in range(len(card["shards"]))]
    for stale in folder.glob(".*.tmp"):
        stale.unlink()
    write_json(folder / CARD, card)
    todo = [k for k, s in enumerate(card["shards"]) if s is None]
    batches = [(start, min(start + made["batch"], span(card, k)[1])) for k in todo for start in range(*span(card, k), made["batch"])]
    read = grain.MapDataset.source(batches).map(lambda b: read_batch(source, *b, made["batch"]))
    ahead = iter(read.to_iter_dataset(grain.ReadOptions(num_threads=CORES, prefetch_buffer_size=2 * CORES)))
    rows = track(_examples(ahead, batches, run, made), f"encoding {folder.name}", len(batches), console=console, disable=not todo)
    examples = (example for batch in rows for example in batch)
    try:
        for k in todo:
            start, stop = span(card, k)
            records = (layout.pack(i, *next(examples)) for i in range(start, stop))
            shards.write(folder / names[k], header(card, k), records)
            about = {"name": names[k], "examples": stop - start, "bytes": (folder / names[k]).stat().st_size}
            card["shards"][k] = {**about, "sha256": sha256(folder / names[k])}
            write_json(folder / CARD, card)
        next(examples, None)  # the bar's last word
    finally:
        ahead.close()
    write_json(folder / CARD, {**card, "moments": _moments(folder, card), "complete": True})


def _examples(ahead: Iterator[dict], batches: list, run: Function, made: dict) -> Iterator[list[tuple[dict, str]]]:
    """The arrays and captions of each batch's examples; devices work on the next batch meanwhile."""
    waiting: list[tuple] = []
    for (start, stop), batch in zip(batches, ahead, strict=True):
        waiting.append((run(batch), batch, stop - start))
        if len(waiting) > 1:
            yield _split(*waiting.pop(0), made)
    for last in waiting:
        yield _split(*last, made)


def _fields(out: dict[str, np.ndarray]) -> dict[str, dict]:
    return {k: {"dtype": v.dtype.name, "shape": list(v.shape[1:])} for k, v in out.items()}


def _split(given: dict, batch: dict, n: int, made: dict) -> list[tuple[dict, str]]:
    """The examples of a batch; UserError where its arrays are not what the first batch's were, which is how records are laid out."""
    out, captions = outputs(given, batch, made["vocabulary"]), batch.get("caption")
    if (found := _fields(out)) != made["fields"]:
        raise UserError(f"the function's arrays change from batch to batch: {found} after {made['fields']}; expected the same every time")
    return [({k: v[i] for k, v in out.items()}, captions[i] if captions else "") for i in range(n)]


def open_shards(folder: Path, card: dict) -> list[shards.Shard]:
    """The shards of a card, not read yet."""
    layout, count = shards.Layout(card["made"]["fields"]), len(card["shards"])
    spans = [span(card, k) for k in range(count)]
    return [shards.Shard(folder / shards.file_name(k, count), header(card, k), layout, a, b - a) for k, (a, b) in enumerate(spans)]


def _moments(folder: Path, card: dict) -> dict[str, dict]:
    """Moments by channel of every array of floats, over all that is stored."""
    fields = card["made"]["fields"]
    sums = {k: Moments((f["shape"] or [1])[-1]) for k, f in fields.items() if f["dtype"] == "bfloat16"}
    parts = [(s, range(i, min(i + 256, s.count))) for s in open_shards(folder, card) for i in range(0, s.count, 256)]
    for shard, rows in shown(parts, len(parts), "summing"):
        found = shard.read(rows)
        for key, m in sums.items():
            m.add(np.stack([arrays[key] for arrays, _ in found]))
    return {k: m.result() for k, m in sums.items()}


def encode(config: dict, data_dir: str, spec: str, to: str, eval_examples: int = 0, **options: Any) -> Path:
    """Both splits of the source of a `data` section through the function that `spec` (FILE.py:FUNCTION) names; returns the set's folder.

    The file may say NAME, SCALE, SHIFT, VOCABULARY and PALETTE; the first `eval_examples` (0: all) of eval are kept.
    """
    file, _, name = spec.rpartition(":")
    if not file or not name:
        raise UserError(f"--with={spec!r} is malformed; expected FILE.py:FUNCTION")
    try:
        module = find.module("lab.data", file)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"--with={spec!r}: the file fails: {type(e).__name__}: {(str(e).splitlines() or [''])[0]}") from e
    if not callable(getattr(module, name, None)):
        own = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise unknown(f"--with={spec!r}: function", name, own)
    declared = {"name": "NAME", "scale": "SCALE", "shift": "SHIFT", "vocabulary": "VOCABULARY", "palette": "PALETTE"}
    options |= {k: getattr(module, v) for k, v in declared.items() if hasattr(module, v)}
    folder = Path(data_dir) / Path(to).expanduser()
    for split, n in (("train", 0), ("eval", eval_examples)):
        write(open_source(config, split, data_dir), getattr(module, name), folder / split, examples=n, **options)
    return folder
