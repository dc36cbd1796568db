"""Skills of a model of pictures and captions together: the one for the other, and both (UniDiffuser, arXiv 2303.06555), by a source's oracle."""

from functools import cached_property
from typing import Any

import numpy as np

from lab.errors import UserError
from lab.evals._pictures import check, name
from lab.evals.intervals import share


class Judge:
    """Shares right of `n` draws a task, each with its 95% Wilson interval (_low, _high), _chance and _ceiling.

    n: held-out examples, whose captions and whose pictures are given, and pairs.
    """

    def __init__(self, real: Any, train: Any, n: int = 256):
        if not (hasattr(real, "correct") and hasattr(real, "said") and "text" in real[0]):
            raise UserError(
                f"judge 'joint' needs pictures and captions that are told right from wrong, and {name(real)!r} has not; expected shapes "
                "with extras=('text',)"
            )
        check("joint.n", n, 2, 1 << 20)
        self._real, self._n = real, min(n, len(real))
        if not self._ceilings["text"]:
            raise UserError(
                f"judge 'joint' needs captions that say the class of their picture, and those of {name(real)!r} here do not; expected skill "
                "'object', or density='short'"
            )

    def __call__(self, subject: Any) -> dict[str, float]:
        """Columns of one model.

        Returns:
          joint_image: share of pictures, drawn for captions, that show the caption's class; by chance those of a source's labels drawn apart.
          joint_text: share of captions, drawn for pictures, that say the picture's class; by chance those drawn for other pictures.
          joint_pair: share of pairs, of which nothing is given, whose picture shows what their caption says; by chance the captions of
            other pairs.
          joint_text_valid, joint_pair_valid: share of the drawn captions that say a class at all.
        """
        captions, pictures, label = self._given
        made = subject.draw(captions, task="image")["image"]
        said = self._real.said(subject.draw(pictures, task="text")["words"])
        pair = subject.draw(pictures, task="pair")
        told = self._real.said(pair["words"])
        swapped = np.mean([np.mean(self._shows(pair["image"], np.roll(told, k))) for k in range(1, min(9, self._n))])
        hits = {"image": self._shows(made, label), "text": said == label, "pair": self._shows(pair["image"], told)}
        chances = {"image": self._real.chance, "text": apart(said, label), "pair": float(swapped)}
        out = {f"joint_{k}_valid": float(np.mean(v >= 0)) for k, v in (("text", said), ("pair", told))}
        for k, right in hits.items():
            out |= share(f"joint_{k}", right) | {f"joint_{k}_chance": chances[k], f"joint_{k}_ceiling": self._ceilings[k]}
        return out

    @cached_property
    def _given(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
        """Captions, pictures beside which no caption stands, and the classes [n] of both."""
        rows = np.random.default_rng(4).permutation(len(self._real))[: self._n]
        items = [self._real[int(i)] for i in rows]
        text, image, label = (np.stack([x[k] for x in items]) for k in ("text", "image", "label"))
        return {"text": text}, {"original": image, "text": np.zeros_like(text)}, label

    @cached_property
    def _ceilings(self) -> dict[str, float]:
        """The shares of real pictures with their own captions."""
        captions, given, label = self._given
        said = self._real.said(captions["text"])
        hits = {"image": self._shows(given["original"], label), "text": said == label, "pair": self._shows(given["original"], said)}
        return {k: float(np.mean(v)) for k, v in hits.items()}

    def _shows(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether pictures show the classes, bool [N]; -1 is none."""
        if not np.isfinite(images).all():
            raise UserError("some samples are not finite")
        return self._real.correct(images, np.maximum(labels, 0)) & (labels >= 0)


def apart(said: np.ndarray, label: np.ndarray) -> float:
    """How often what is said of one example is true of another, over all pairs of two."""
    n = len(label)
    same = sum(np.sum(said == k) * np.sum(label == k) for k in np.unique(label)) - np.sum(said == label)
    return float(same / (n * (n - 1)))
