"""Denoising diffusion (DDPM, arXiv 2006.11239): x_t = alpha x_0 + sigma noise, and the model learns the noise, x_0 or v.

Models are told t = step / timesteps in [0, 1). Steps are uniform, stratified over the batch.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lab.errors import UserError, unknown
from lab.objectives import conditions, gaussian
from lab.objectives.pictures import floats

PREDICTIONS = ("eps", "x0", "v")


class Objective:
    """`schedule` is 'linear' or 'cosine'; `prediction` is 'eps' (noise), 'x0' or 'v' = alpha noise - sigma x_0 (arXiv 2202.00512).

    `label_drop` is the share of examples whose label and text are hidden. With `learned_variance` the model gives twice the
    channels and learns how far each variance lies between its bounds: L_simple + 0.001 L_vlb, L_vlb in bits per element summed
    over steps (arXiv 2102.09672). `min_snr` is the gamma of min-SNR weights (arXiv 2303.09556).
    """

    makes = "image"

    def __init__(
        self,
        schedule: str,
        prediction: str,
        label_drop: float,
        timesteps: int = 1000,
        learned_variance: bool = False,
        min_snr: float | None = None,
    ):
        if prediction not in PREDICTIONS:
            raise unknown("objective.prediction", prediction, PREDICTIONS)
        if min_snr is not None and min_snr <= 0:
            raise UserError(f"config key objective.min_snr={min_snr!r} must be above 0; without it errors count alike")
        self.prediction, self.label_drop, self.timesteps, self.learned = prediction, label_drop, timesteps, learned_variance
        self.dims = {"outputs": 2} if learned_variance else {}
        self.level = gaussian.schedule(schedule, timesteps)
        snr = np.exp(2 * self.level)
        per = {"eps": snr, "x0": 1.0, "v": snr + 1}[prediction]  # squared errors of the prediction for one of x_0
        self.weight = np.ones(timesteps) if min_snr is None else np.minimum(snr, min_snr) / per

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """x_t, t, label and, where the batch has it, text as the model takes them; the `target` of the prediction, and `step` and `image`.

        Images are uint8 or in [-1, 1]. One draw hides both the label and the text of an example.
        """
        given, step, _, target = self._drawn(key, batch)
        return given | {"target": target, "step": step, "image": batch["image"]}

    def errors(self, model: Callable, key: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Times [B], and predicted less true target, of the shape of the images."""
        given, _, _, target = self._drawn(key, batch)
        return given["t"], self._parts(model(given), given["x"])[0] - target

    def loss(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        """Weighted mean squared error of each example, [B], and the bound's part where the variance is learned."""
        return self.losses(model, self.inputs(key, batch))

    def losses(self, model: Callable, given: dict) -> jax.Array:
        """`loss` of what `inputs` gave, or of some of its examples."""
        given = {**given}
        target, step, image = (given.pop(k) for k in ("target", "step", "image"))
        out, share = self._parts(model(given), given["x"])
        over = tuple(range(1, out.ndim))
        loss = jnp.asarray(self.weight, jnp.float32)[step] * jnp.mean(jnp.square(out - target), over)
        if self.learned:
            told = jax.lax.stop_gradient(self._data(given["x"], out, self.level, step))
            terms = self._bound(step, floats(image), told, share, image.dtype == jnp.uint8)
            loss += 0.001 * self.timesteps * jnp.mean(terms, over) / math.log(2)
        return loss

    def _drawn(self, key: jax.Array, batch: dict) -> tuple[dict, jax.Array, jax.Array, jax.Array]:
        """What the model is given, steps [B], x_0 and target."""
        k_offset, k_noise, k_drop = jax.random.split(key, 3)
        x0 = floats(batch["image"])
        n = x0.shape[0]
        # one offset for evenly spaced quantiles, so that the batch covers all steps
        u = jnp.mod(jax.random.uniform(k_offset) + (jnp.arange(n) + 0.5) / n, 1.0)
        step = jnp.minimum((u * self.timesteps).astype(jnp.int32), self.timesteps - 1)
        noise = jax.random.normal(k_noise, x0.shape)
        alpha, sigma = (_at(v, step, x0.ndim) for v in gaussian.levels(self.level))
        target = {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0}[self.prediction]
        given = {"x": alpha * x0 + sigma * noise, "t": step / self.timesteps, **conditions.drop(k_drop, batch, self.label_drop)}
        return given, step, x0, target

    def _parts(self, out: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The prediction in float32 and, where it is learned, the variance's place between its bounds: 0 lower, 1 upper."""
        want = (*x.shape[:-1], x.shape[-1] * (1 + self.learned))
        if out.shape != want:
            told = "the model must give two values a channel (its knob `outputs`)" if self.learned else "expected the shape of its input"
            raise UserError(f"objective diffusion got an output of shape {out.shape} for {x.shape}; {told}")
        out = out.astype(jnp.float32)
        return (out[..., : x.shape[-1]], (out[..., x.shape[-1] :] + 1) / 2) if self.learned else (out, None)

    def _data(self, x: jax.Array, out: jax.Array, level: np.ndarray, at: jax.Array) -> jax.Array:
        """x_0 by the prediction `out`, at entries `at` ([B] or one) of `level`."""
        alpha, sigma = gaussian.levels(level)
        of_x, of_out = {"eps": (1 / alpha, -sigma / alpha), "x0": (0 * alpha, 1 + 0 * alpha), "v": (alpha, -sigma)}[self.prediction]
        return _at(of_x, at, x.ndim) * x + _at(of_out, at, x.ndim) * out

    def _bound(self, step: jax.Array, x0: jax.Array, told: jax.Array, share: jax.Array, binned: bool) -> jax.Array:
        """The bound's term of each example's step, in nats, for every element: KL of the step to less noise, -log p at step 0."""
        q = gaussian.between(self.level, np.append(np.inf, self.level[:-1]))
        q["small"][0] = q["small"][1]  # the last step has no lower bound of its own
        b, small, large = (_at(v, step, x0.ndim) for v in (q["b"], np.log(q["small"]), np.log(q["large"])))
        log_std = small + share * (large - small)
        inner = gaussian.kl(b * x0, small, b * told, log_std)
        return jnp.where(_at(np.arange(self.timesteps) == 0, step, x0.ndim) > 0, gaussian.surprise(x0, told, log_std, binned), inner)

    def sample(
        self,
        model: Callable,
        key: jax.Array,
        cond: dict,
        shape: tuple[int, ...],
        steps: int = 50,
        guidance: float = 1.0,
        method: str = "ddim",
        eta: float = 0.0,
        spacing: str = "trailing",
        interval: tuple[float, float] = (0.0, 1.0),
        clip: float | None = None,
    ) -> jax.Array:
        """Images [B, *shape] for cond, label [B] and text [B, length] or one of them, from noise in `steps` steps, the last to data.

        `method` is 'ancestral' (DDPM's chain, by the learned variance if there is one), 'ddim' (arXiv 2010.02502; `eta` from 0,
        no noise, to 1, the chain of least variance) or 'dpm++2m' (arXiv 2211.01095). `guidance` 1 is plain conditional sampling,
        another holds at times within `interval` (arXiv 2404.07724). `spacing` is of the steps, as in `gaussian.nodes`. `clip`
        keeps the data that the model predicts within [-clip, clip]; wise for 'eps' under 'cosine', where alpha is 5e-5 at first.
        """
        at, level = gaussian.nodes(self.level, steps, spacing)
        numbers = gaussian.table(method, level, eta)
        noisy = bool(numbers["s"].any())
        n, ask, scale = conditions.count(cond), conditions.guided(model, cond, guidance), conditions.within(guidance, interval)
        k_start, k_noise = jax.random.split(key)
        # what a model says of variances is taken as it is, unguided
        guides = np.arange(shape[-1] * (1 + self.learned)) < shape[-1]

        def step(carry, now):
            (x, before), (i, k, t, f) = carry, now
            out, share = self._parts(ask({"x": x, "t": jnp.full(n, t)}, jnp.where(guides, scale(t), 1.0)), x)
            data = self._data(x, out, level, i)
            data = data if clip is None else jnp.clip(data, -clip, clip)
            x = f["a"] * x + f["b"] * (data + f["c"] * (data - before))
            if noisy:
                grow = f["ratio"] ** share if self.learned and method == "ancestral" else 1.0
                x += f["s"] * grow * jax.random.normal(k, x.shape)
            return (x, data), None

        x = jax.random.normal(k_start, (n, *shape))
        rows = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), (at / self.timesteps, numbers))
        (x, _), _ = jax.lax.scan(step, (x, x), (jnp.arange(steps), jax.random.split(k_noise, steps), *rows))
        return x


def _at(values: np.ndarray, at: jax.Array, ndim: int) -> jax.Array:
    """Entries `at`, [B] or one, of a table [N], in float32 and with as many dims as images."""
    return jnp.asarray(values, jnp.float32)[at].reshape(-1, *[1] * (ndim - 1))
