"""One file a family of frozen text encoders; each exports `Encoder`, which `load` finds by what config.json says the model is.

kinds: what config.json may call the model (`model_type`).
Encoder(folder, ...): see lab/encoders/_frozen.py, of which they are made.
"""

from pathlib import Path
from typing import Any

from lab import find
from lab.errors import UserError, unknown
from lab.record import read_json


def load(folder: str | Path, **options: Any) -> Any:
    """The encoder of a folder with config.json, *.safetensors and tokenizer.json, for the function that `lab data encode` is given.

    Its options are `length`, `layer`, `dtype`, `tokenizer` and `before` (lab/encoders/_frozen.py). UserError where config.json is of no
    family that the lab reads.
    """
    kind = read_json(Path(folder).expanduser() / "config.json").get("model_type")
    families = [find.module("lab.encoders", name).Encoder for name in find.names("lab.encoders")]
    known = {k: e for e in families for k in e.kinds}
    if kind is None:
        raise UserError(f"file {str(Path(folder) / 'config.json')!r} has no key 'model_type'; expected one of {', '.join(known)}")
    if kind not in known:
        raise unknown(f"model_type of {str(Path(folder) / 'config.json')!r}", kind, known)
    return known[kind](folder, **options)
