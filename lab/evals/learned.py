"""What models say that the lab has trained to tell pictures: do samples show their label, and do they fit their caption better than others?"""

from functools import cached_property
from typing import Any

import numpy as np

from lab.errors import UserError
from lab.evals import _learned
from lab.evals._pictures import check, pictures, sampled, subset
from lab.evals.intervals import share

KEY = "config key judge.options.learned.study"


class Judge:
    """Share of samples that a classifier gives the asked label, and share whose caption two towers find among others.

    study: folder of the study that trained them (experiments/judges.py): its classifier and its two towers of least loss, or `trial`
      alone. Judges have one size whatever the models that they judge.
    candidates: captions among which a picture's own is to be found, all different (R-precision, arXiv 1711.10485).
    ceiling: real held-out examples on which the judges are judged; their captions are the candidates.
    """

    def __init__(self, real: Any, train: Any, study: str, trial: str = "", candidates: int = 32, ceiling: int = 512):
        check("learned.ceiling", ceiling, 2, 1 << 20)
        check("learned.candidates", candidates, 2, ceiling)
        self._judges = _learned.load(KEY, study, trial)
        for judge in self._judges.values():
            _learned.fits(KEY, judge, real)
        self._real, self._candidates = real, candidates
        self._items = [real[int(i)] for i in subset(real, ceiling)]
        why = {
            k: said for k, said in (("classifier", self._other_labels()), ("two_tower", self._other_texts())) if k in self._judges and said
        }
        if len(why) == len(self._judges):
            raise UserError(f"{KEY}={study!r}: {'; '.join(why.values())}")
        self._judges = {k: j for k, j in self._judges.items() if k not in why}
        if "two_tower" in self._judges and len(self._texts) < candidates:
            raise UserError(
                f"config key judge.options.learned.candidates={candidates}: {len(self._items)} held-out examples have {len(self._texts)} "
                "different captions; expected no more"
            )

    def _other_labels(self) -> str:
        """Why the classifier cannot judge labels of the source; empty where it can."""
        if "classifier" not in self._judges:
            return ""
        mine, theirs = self._real.info["class_names"], self._judges["classifier"].about["data"]["class_names"]
        return (
            "" if list(mine) == list(theirs) else f"the classifier tells {len(theirs)} classes that are not the {len(mine)} of the source"
        )

    def _other_texts(self) -> str:
        """Why the two towers cannot read the captions of the source; empty where they can."""
        if "two_tower" not in self._judges:
            return ""
        if "text" not in self._items[0]:
            return "the source gives no text for the two towers to read"
        keys = ("words", "length", "features")
        mine, theirs = ({k: d.get(k) for k in keys} for d in (self._real.dims, self._judges["two_tower"].about["data"]["dims"]))
        if mine != theirs:
            return f"the two towers read text of {theirs}, the source gives {mine}"
        own, known = (i.get("vocabulary") for i in (self._real.info, self._judges["two_tower"].about["data"]))
        return "" if own == known else "the two towers number other words than the source does"

    @cached_property
    def _texts(self) -> dict[bytes, np.ndarray]:
        """The different captions of the real examples."""
        return {np.asarray(x["text"]).tobytes(): np.asarray(x["text"]) for x in self._items}

    @cached_property
    def _vectors(self) -> np.ndarray:
        return self._judges["two_tower"].said(np.stack(list(self._texts.values())))

    @cached_property
    def ceilings(self) -> dict[str, float]:
        """The same shares of real held-out pictures with their own labels and captions."""
        images = pictures(self._items, np.arange(len(self._items)))
        given = {k: np.stack([x[k] for x in self._items]) for k in ("label", "text") if k in self._items[0]}
        return {f"learned_{k}_ceiling": float(np.mean(v)) for k, v in self._right(images, given).items()}

    def _right(self, images: np.ndarray, asked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Whether each picture has what was asked for, bool [N], by each judge."""
        out = {}
        if "classifier" in self._judges:
            out["label"] = self._judges["classifier"].label(images) == asked["label"]
        if "two_tower" in self._judges:
            out["match"] = self._found(images, asked["text"])
        return out

    def _found(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Whether each picture is nearer to its own caption than to candidates - 1 others, bool [N]; a tie is none."""
        towers, rng = self._judges["two_tower"], np.random.default_rng(0)
        x, own = towers.features(images), towers.said(texts)
        near, mine = x @ self._vectors.T, np.sum(x * own, axis=1)
        keys, out = list(self._texts), np.empty(len(images), bool)
        for i, text in enumerate(texts):
            others = [j for j in rng.permutation(len(keys))[: self._candidates] if keys[j] != np.asarray(text).tobytes()]
            out[i] = mine[i] > near[i, others[: self._candidates - 1]].max()
        return out

    def __call__(self, subject: Any) -> dict[str, float]:
        """Columns, shares with Wilson's interval (_low, _high), each beside what real pictures have (_ceiling) and _chance.

        Returns:
          learned_label: share of samples that the classifier gives the asked label. Its chance is the share that would have theirs if the
            labels asked for were dealt anew among the samples.
          learned_match: share of samples that lie nearer to their own caption than to the other candidates; chance is 1 / candidates.
        """
        images = sampled("learned", subject, self._real)
        asked = {k: np.asarray(v) for k, v in subject.samples.items() if k in ("label", "text")}
        out = {}
        for name, right in self._right(images, asked).items():
            out |= share(f"learned_{name}", right)
            out[f"learned_{name}_ceiling"] = self.ceilings[f"learned_{name}_ceiling"]
        if "classifier" in self._judges:
            given, want = self._judges["classifier"].label(images), asked["label"]
            out["learned_label_chance"] = float(np.mean(given[:, None] == want))
        if "two_tower" in self._judges:
            out["learned_match_chance"] = 1 / self._candidates
        return out
