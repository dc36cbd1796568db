"""Rate and distortion of a tokenizer: what its codes cost in bits, and how far restored pictures are from those given."""

from typing import Any

import numpy as np

from lab.errors import UserError


def usage(tokens: np.ndarray) -> tuple[float, int]:
    """Entropy in bits of the share of each token, and how many different ones there are; the entropy of few tokens is told too low."""
    counts = np.unique(tokens, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-np.sum(shares * np.log2(shares))), len(counts)


class Judge:
    """Columns of held-out pictures restored; a tokenizer's samples alone are that."""

    def __init__(self, real: Any, train: Any):
        self.source = real

    def __call__(self, subject: Any) -> dict[str, float]:
        """Columns of a picture, numbers in [-1, 1].

        Returns:
          rate_bits: bits of its code: tokens times log2 of the vocabulary, or the KL to a standard normal in bits.
          rate_mse, rate_psnr: mean squared error of a number, and 10 log10(4 / mse) in dB.
          rate_tokens, rate_used, rate_perplexity: tokens a picture, different ones among all, and 2 to their entropy; of discrete codes.
          rate_entropy: bits of its tokens by their shares, one by one, at most rate_bits.
        """
        if not {"original", "bits"} <= subject.samples.keys():
            raise UserError("judge 'rate' judges tokenizers, whose samples are pictures restored (objective reconstruct)")
        made, real = subject.samples["image"], subject.samples["original"]
        real = real.astype(np.float32) / 127.5 - 1 if real.dtype == np.uint8 else real
        mse = float(np.mean((made.astype(float) - real) ** 2))
        out = {"rate_bits": float(np.mean(subject.samples["bits"])), "rate_mse": mse, "rate_psnr": 10 * np.log10(4 / max(mse, 1e-12))}
        if "tokens" in subject.samples:
            tokens = subject.samples["tokens"]
            each = tokens[0].size
            entropy, used = usage(tokens)
            out |= {"rate_tokens": each, "rate_used": used, "rate_perplexity": 2**entropy, "rate_entropy": each * entropy}
        return {k: float(v) for k, v in out.items()}
