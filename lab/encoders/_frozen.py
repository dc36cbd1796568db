"""What frozen text encoders share: their words, their weights, and one compiled function of a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lab.errors import UserError, unknown
from lab.formats.tensors import Tensors
from lab.record import read_json

DTYPES = ("float32", "bfloat16", "float16")


class Words:
    """Captions as the numbers of a published tokenizer (tokenizer.json, or vocab.json and merges.txt of CLIP), of one length.

    `before` is read with every caption, and its words are left out of what is kept.
    """

    def __init__(self, folder: Path, length: int, before: str):
        self.length, self.before = length, before
        self._tokenizer = _tokenizer(folder)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.ahead = self._first(self._tokenizer.encode(before + ".")) if before else 0
        self._tokenizer.enable_truncation(length + self.ahead)

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Numbers int32 [B, ahead + length], which of them are words; where the kept ones lie, int32 [B, length], which of those are words."""
        found = self._tokenizer.encode_batch([self.before + c for c in captions])
        ids = np.zeros((len(found), self.ahead + self.length), np.int32)
        seen = np.zeros(ids.shape, bool)
        first = np.zeros((len(found), 1), np.int32)
        for i, f in enumerate(found):
            ids[i, : len(f.ids)], seen[i, : len(f.ids)] = f.ids, True
            first[i] = self._first(f) if self.before else 0
        at = first + np.arange(self.length, dtype=np.int32)
        where = np.minimum(at, ids.shape[1] - 1)
        return ids, seen, where, np.take_along_axis(seen, where, 1) & (at == where)

    def _first(self, found: Any) -> int:
        """The first word that reaches behind `before`, or the number of words."""
        ends = [b > len(self.before) and not s for (_, b), s in zip(found.offsets, found.special_tokens_mask, strict=True)]
        return ends.index(True) if True in ends else len(ends)


def _tokenizer(folder: Path) -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as e:
        raise UserError("frozen text encoders need the package 'tokenizers'; install it by `pip install 'scaling-lab[text]'`") from e
    if (file := folder / "tokenizer.json").is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as e:  # a bare Exception is what a damaged file raises
            raise UserError(f"file {str(file)!r} is damaged or no tokenizer ({str(e).splitlines()[0]})") from None
    if all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return _clip(folder)
    raise UserError(f"folder {str(folder)!r} has no tokenizer.json, and no vocab.json with merges.txt; tokenizer=FOLDER says where it is")


def _clip(folder: Path) -> Any:
    """CLIP's tokenizer (Radford et al., arXiv 2103.00020, section 2.4): lower case, pairs of bytes, words that end in </w>."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    begin, end = "<|startoftext|>", "<|endoftext|>"
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"), end_of_word_suffix="</w>", unk_token=end)
    out = Tokenizer(model)
    out.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    out.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    out.add_special_tokens([begin, end])
    out.post_processor = processors.RobertaProcessing(
        (end, out.token_to_id(end)), (begin, out.token_to_id(begin)), trim_offsets=False, add_prefix_space=False
    )
    return out


class Kept:
    """Tensors of a folder by the names that the family gives them, whatever stands before those (`model.`, `text_model.`)."""

    def __init__(self, tensors: Mapping[str, np.ndarray], table: str, layers: int, dtype: np.dtype):
        found = [n for n in tensors if n == table or n.endswith(f".{table}")]
        if not found:
            raise UserError(
                f"the folder has no tensor {table!r}, of which it has {len(tensors)}; expected the weights that config.json tells of"
            )
        self._tensors, self._layers, self._dtype = tensors, layers, dtype
        self._prefix = min(found, key=len).removesuffix(table)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this whole name."""
        return name in self._tensors

    def __call__(self, name: str, *shape: int, prefixed: bool = True) -> np.ndarray:
        """One tensor of a shape; with `{i}` in its name that of each layer that is run, [layers, *shape]. UserError where it is not so."""
        if "{i}" not in name:
            return self._one(name, shape, prefixed)
        out = np.empty((self._layers, *shape), self._dtype)
        for i in range(self._layers):
            out[i] = self._one(name.format(i=i), shape, prefixed)
        return out

    def _one(self, name: str, shape: tuple[int, ...], prefixed: bool) -> np.ndarray:
        name = self._prefix * prefixed + name
        if name not in self._tensors:
            raise UserError(f"the folder has no tensor {name!r}; expected one of shape {list(shape)}, as config.json tells")
        x = self._tensors[name]
        if x.shape != shape:
            raise UserError(f"tensor {name!r} has shape {list(x.shape)}, expected {list(shape)}, as config.json tells")
        return x.astype(self._dtype)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | float = 0.0) -> jax.Array:
    """x [..., in] through a layer that PyTorch keeps as [out, in]."""
    return jnp.einsum("...i,oi->...o", x, kernel) + bias


class Frozen:
    """An encoder of captions: called with B of them, it gives {'text': features [B, length, features]}, zero where no word is.

    folder: with config.json, *.safetensors and, unless `tokenizer` names another, the tokenizer.
    length: words kept of a caption, marks of its begin and end among them.
    layer: which hidden state: 0 is the table of words, 1 the first block's, -1 the last one, normalised, -2 the last block's input,
      as `hidden_states` of transformers counts them.
    dtype: of weights and of what flows; sums, norms and softmax are taken in float32.
    before: an instruction that is read before each caption, and whose words are left out (LI-DiT, arXiv 2406.11831, section 3.1).

    Raises:
      UserError: an option out of range, a config.json that says what no code here does, a tensor that is missing or of another shape.
    """

    kinds: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, folder: str | Path, length: int = 120, layer: int = -1, dtype: str = "float32", tokenizer: str | Path = "", before: str = ""
    ):
        folder = Path(folder).expanduser()
        if dtype not in DTYPES:
            raise unknown("encoder option dtype", dtype, DTYPES)
        if type(length) is not int or length < 1:
            raise UserError(f"encoder option length={length!r} must be a whole number from 1")
        self.sizes = self.read(read_json(folder / "config.json"))
        depth = self.sizes["depth"]
        if type(layer) is not int or not -depth - 1 <= layer <= depth:
            raise UserError(f"encoder option layer={layer!r} must lie in {-depth - 1}..{depth}: the model has {depth} blocks")
        self.layers = layer % (depth + 1)
        self.words = Words(Path(tokenizer or folder).expanduser(), length, before)
        longest = self.sizes.get("longest", 0)
        if longest and self.words.ahead + length > longest:
            raise UserError(
                f"encoder option length={length} with {self.words.ahead} words before it is over the {longest} that the model reads"
            )
        kept = Kept(Tensors(folder), self.table, self.layers, jnp.dtype(dtype))
        # cores of a CPU share one device's work, and would hold the weights once each
        devices = jax.local_devices() if jax.default_backend() != "cpu" else jax.local_devices()[:1]
        self._mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
        self._weights = jax.device_put(self.weights(kept), self._on())
        self._run = jax.jit(self._kept)

    def __call__(self, captions: Sequence[str]) -> dict[str, jax.Array]:
        """Features of captions, and what else the family gives of them; one compile per number of captions."""
        given = self.words(captions)
        where = self._on("batch") if len(captions) % self._mesh.size == 0 else self._on()
        return self._run(self._weights, *jax.device_put(given, where))

    def _on(self, *names: str) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(*names))

    def _kept(self, weights: Any, ids: jax.Array, seen: jax.Array, where: jax.Array, said: jax.Array) -> dict[str, jax.Array]:
        out = self.encode(weights, ids, seen)
        return {**out, "text": jnp.where(said[..., None], jnp.take_along_axis(out["text"], where[..., None], 1), 0)}
