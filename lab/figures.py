"""The figures of a report, from plain arrays; each function draws one matplotlib figure and reads no file."""

import contextlib
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from lab.errors import UserError
from lab.laws.batch import Law as BatchLaw
from lab.laws.batch import Tuned
from lab.laws.transfer import Transfer

ARMS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: safe for the colour-blind
COLUMNS = 3  # panels in a row
POWER = FuncFormatter(lambda v, _: f"$2^{{{v:g}}}$")
PLAIN = FuncFormatter(lambda v, _: f"{v:.4g}")


def style() -> contextlib.AbstractContextManager:
    """The look of a report, for as long as its figures are drawn and saved; a caller's own settings stay as they were."""
    return matplotlib.rc_context(
        {
            **{"font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 8, "legend.title_fontsize": 8},
            **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.35", "axes.grid": True},
            **{"xtick.color": "0.25", "ytick.color": "0.25", "grid.color": "0.9", "grid.linewidth": 0.7, "axes.axisbelow": True},
            **{"legend.frameon": False, "lines.linewidth": 1.5, "lines.markersize": 3.8, "figure.constrained_layout.use": True},
            **{"savefig.dpi": 200, "pdf.fonttype": 42, "font.family": "sans-serif"},
        }
    )


def save(figure: Figure, out: Path) -> Path:
    """Write a figure, in the format that its file's name ends in; UserError where that cannot be."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except (OSError, ValueError) as e:
        raise UserError(f"--out={str(out)!r} cannot be written ({e}); expected a picture's path such as law.png") from e
    return out


def colours(rungs: list[float]) -> dict[float, Any]:
    """One colour of viridis a rung, dark for the smallest."""
    ramp = matplotlib.colormaps["viridis"]
    return {r: ramp(0.85 * i / max(1, len(rungs) - 1)) for i, r in enumerate(sorted(rungs))}


def _panels(names: list[str]) -> tuple[Figure, list]:
    columns = min(len(names), COLUMNS)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.9 if columns > 1 else 5.0, 3.1 * rows))
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).ravel())
    for ax in axes[len(names) :]:
        ax.remove()
    for ax, name in zip(axes, names, strict=False):
        ax.set_title(name)
    return figure, axes[: len(names)]


def _key(figure: Figure, rungs: list[float], title: str, extra: list[Line2D] = ()) -> None:
    """One legend to the right of all panels: the colour of each rung where there are several, and what marks mean."""
    shade, several = colours(rungs), len(rungs) > 1
    lines = [Line2D([], [], color=shade[r], marker="o", label=f"{r:,g}") for r in sorted(rungs) if several]
    if lines or extra:
        figure.legend(handles=[*lines, *extra], title=title if several else None, loc="outside right center")


def _beside(figure: Figure, ax: Any) -> None:
    """The legend to the right of the axes, where it hides no point."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")


def _mark(marker: str, label: str, **more: Any) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color="0.3", label=label, **more)


def _scale_y(ax: Any) -> None:
    """A log axis that a reader of losses can read: few plain numbers, whatever its span."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_formatter(PLAIN)
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_tick_params(which="minor", left=False)


def _ceiling(curves: dict[str, dict[float, tuple]]) -> tuple[float, float]:
    """Limits of the loss axis: every curve's minimum and most of its points; a blown-up loss must not flatten the rest."""
    finite = np.concatenate([y[np.isfinite(y)] for arm in curves.values() for _, y, _, _ in arm.values()])
    low = finite.min()
    high = max(np.quantile(finite, 0.85), *(np.nanmin(y) for a in curves.values() for _, y, _, _ in a.values() if np.isfinite(y).any()))
    span = min(finite.max(), low + 1.6 * (high - low)) - low or abs(low) or 1.0
    return low - 0.08 * span, low + 1.12 * span


def loss_against_rate(curves: dict[str, dict[float, tuple]], transfers: dict[str, Transfer], rung: str, metric: str) -> Figure:
    """Final loss against log2 learning rate, one panel an arm and one curve a rung, each fitted minimum ringed.

    `curves[arm][rung]` is (log2 rate, mean loss, lowest, highest over seeds); NaN where a trial diverged, shown as a cross at the top.
    """
    figure, axes = _panels(list(curves))
    rungs = sorted({r for arm in curves.values() for r in arm})
    shade, limits = colours(rungs), _ceiling(curves)
    for ax, (arm, mine) in zip(axes, curves.items(), strict=True):
        for i, r in enumerate(rungs):
            if r not in mine:
                continue
            x, y, low, high = mine[r]
            ax.plot(x, y, "o-", color=shade[r])
            ax.fill_between(x, low, high, color=shade[r], alpha=0.15, lw=0)
            gone = ~np.isfinite(y)
            height = np.full(gone.sum(), 0.985 - 0.035 * i)
            ax.plot(x[gone], height, "x", ms=4.5, mew=1.3, color=shade[r], transform=ax.get_xaxis_transform())
        for r, best in zip(transfers[arm].rungs, transfers[arm].optima, strict=True):
            ax.plot(best.log2, best.loss, "o", ms=9, mfc="none", mec=shade[r], mew=1.4, zorder=3)
        _rate_axis(ax.xaxis, [x for x, *_ in mine.values()])
        ax.set(xlabel="learning rate", ylim=limits)
    for ax in axes[::COLUMNS]:
        ax.set_ylabel(f"final {metric}")
    _key(figure, rungs, rung, [_mark("o", "minimum", ms=8, mfc="none"), _mark("x", "diverged", ms=4.5, mew=1.3)])
    return figure


def _rate_axis(axis: Any, rates: list[np.ndarray]) -> None:
    span = np.ptp(np.concatenate(rates))
    axis.set_major_locator(MultipleLocator(1 if span <= 8 else 2))
    axis.set_major_formatter(POWER)


def drift(transfers: dict[str, Transfer], rung: str) -> Figure:
    """Best learning rate against the rung, one line an arm, with intervals; an open mark is an optimum at the edge of the rates tried."""
    figure = Figure(figsize=(6.4, 3.1))
    ax = figure.subplots()
    far = [b for t in transfers.values() for o in t.optima for b in (o.log2, *(o.interval or ())) if np.isfinite(b)]
    for i, (arm, t) in enumerate(transfers.items()):
        at, colour = np.array([o.log2 for o in t.optima]), ARMS[i % len(ARMS)]
        edge = np.array([o.edge is not None for o in t.optima])
        aside = 0.03 * (i - (len(transfers) - 1) / 2) * any(o.interval for o in t.optima)  # or the bars of arms hide one another
        x = np.array(t.rungs) * 2**aside
        ax.plot(x, at, "-", color=colour)
        ax.plot(x[~edge], at[~edge], "o", ms=5, color=colour, label=f"{arm}: {t.drift:+.2f} octaves")
        ax.plot(x[edge], at[edge], "o", ms=5, mfc="white", color=colour)
        for place, o in zip(x, t.optima, strict=True):
            if o.interval is not None:  # one that is unbounded leaves the axes
                ax.plot([place] * 2, np.clip(o.interval, min(far) - 9, max(far) + 9), "-", color=colour, lw=1.1, zorder=1)
    ax.set_xscale("log", base=2)
    ax.set(xlabel=rung, ylabel="best learning rate", xticks=sorted({r for t in transfers.values() for r in t.rungs}))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))
    ax.xaxis.set_tick_params(which="minor", bottom=False)
    low, high = min(far) - 0.2, max(far) + 0.2
    ax.set_ylim(min(low, (low + high) / 2 - 1.5), max(high, (low + high) / 2 + 1.5))  # a rounding error must not look like drift
    _rate_axis(ax.yaxis, [np.array(ax.get_ylim())])
    _beside(figure, ax)
    return figure


def batch(arms: dict[str, tuple[list[Tuned], BatchLaw | None]], target: str) -> Figure:
    """Steps against examples to one target, a point a batch with its seeds' range, the law's curve and its band.

    An open mark is a batch whose best rate is at the edge of those tried, a triangle one that does not come to the target in the steps shown.
    """
    figure = Figure(figsize=(5.4, 3.9))
    ax = figure.subplots()
    for i, (arm, (found, fitted)) in enumerate(arms.items()):
        colour = ARMS[i % len(ARMS)]
        for t in found:
            steps, low, high = np.exp(np.log(t.steps).mean()), t.steps.min(), t.steps.max()
            ax.plot(t.batch * np.array([low, high]), [low, high], "-", color=colour, lw=1.1)
            ax.plot(t.batch * steps, steps, "o" if t.reached else "^", ms=5, mfc="white" if t.edge else colour, color=colour)
            ax.annotate(f"{t.batch:g}", (t.batch * steps, steps), (5, 4), textcoords="offset points", fontsize=7, color=colour)
        label = arm
        if fitted is not None and fitted.fits:
            span = np.geomspace(fitted.batches[0] / 1.5, fitted.batches[-1] * 1.5, 200)
            ax.plot(span * fitted(span), fitted(span), "--", color=colour, lw=1.1)
            if fitted.region.size:
                low, high = fitted.band(span)
                ax.fill(
                    *(np.concatenate([a, b[::-1]]) for a, b in ((span * low, span * high), (low, high))), color=colour, alpha=0.15, lw=0
                )
            if not fitted.bound:
                label = f"{arm}: critical batch {fitted.critical:.3g}"
                ax.axhline(fitted.least, color=colour, lw=0.9, ls=":")
                ax.axvline(fitted.least * fitted.critical, color=colour, lw=0.9, ls=":")
        ax.plot([], [], "o--", ms=5, color=colour, label=label)
    ax.set(xscale="log", yscale="log", xlabel=f"examples to {target}", ylabel=f"steps to {target}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())
        axis.set_tick_params(which="minor", length=0)
    ax.legend(title="batch beside each point; dotted: S_min, E_min")
    return figure


def band(points: dict[str, tuple], bands: dict[str, tuple], metric: str, least: float | None = None) -> Figure:
    """Loss of every size and horizon against training FLOPs, and the law of the best of them with its interval.

    `points[arm]` is (FLOPs, loss) and `bands[arm]`, where the arm has a law, (FLOPs, loss, lowest, highest); beyond the largest point a law is
    dashed. `least` is a loss that no model beats.
    """
    figure = Figure(figsize=(5.4, 3.5))
    ax = figure.subplots()
    for i, (arm, (flops, loss)) in enumerate(points.items()):
        colour = ARMS[i % len(ARMS)]
        ax.plot(flops, loss, "o", ms=4, color=colour, label=None if arm in bands else arm)
        if arm not in bands:
            continue
        x, mid, low, high = bands[arm]
        ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        seen = x <= flops.max()
        ax.plot(x[seen], mid[seen], "-", color=colour, label=arm)
        ax.plot(x[seen.sum() - 1 :], mid[seen.sum() - 1 :], "--", color=colour, lw=1.1)
    if least is not None:
        ax.axhline(least, ls=":", color="0.4", lw=1.1, label="least possible")
    ax.set_xscale("log")
    ax.set(xlabel="training FLOPs of one trial", ylabel=metric)
    _scale_y(ax)
    ax.legend()
    return figure


def skill(points: dict[str, dict[str, tuple]], bands: dict[str, dict[str, tuple]], name: str, metric: str, between: tuple) -> Figure:
    """A score against training FLOPs and against loss, a panel a predictor, with the law of each arm and its interval; dashed beyond the points.

    `points[predictor][arm]` is (x, score), `bands[predictor][arm]` (x, score, lowest, highest); dotted lines are chance and the top.
    """
    figure = Figure(figsize=(1.4 + 3.6 * len(points), 3.3))
    panels = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
    arms = list(dict.fromkeys(arm for mine in points.values() for arm in mine))
    for ax, (predictor, mine) in zip(panels, points.items(), strict=True):
        for arm, (x, score) in mine.items():
            colour, (at, mid, low, high) = ARMS[arms.index(arm) % len(ARMS)], bands[predictor][arm]
            ax.plot(x, score, "o", ms=4, color=colour)
            ax.fill_between(at, low, high, color=colour, alpha=0.18, lw=0)
            seen = (at >= x.min()) & (at <= x.max())
            ax.plot(at[seen], mid[seen], "-", color=colour)
            ax.plot(at[~seen], mid[~seen], "--", color=colour, lw=1.1)
        for y in between:
            ax.axhline(y, ls=":", color="0.4", lw=1.1)
        if predictor == "compute":
            ax.set_xscale("log")
        else:
            ax.invert_xaxis()
        ax.set(xlabel="training FLOPs of one trial" if predictor == "compute" else metric)
    panels[0].set_ylabel(name)
    handles = [Line2D([], [], color=ARMS[i % len(ARMS)], marker="o", ms=4, label=arm) for i, arm in enumerate(arms)]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def judged(rows: list[dict], name: str) -> Figure:
    """A judge's number `name` against training FLOPs by arm, with its interval, its ceiling and its chance or floor where there are."""
    figure = Figure(figsize=(7.0, 3.5))
    ax = figure.subplots()
    for i, arm in enumerate(sorted({r["arm"] for r in rows}, reverse=True)):
        mine = sorted((r for r in rows if r["arm"] == arm and name in r), key=lambda r: r["flops"])
        flops, value = (np.array([r[k] for r in mine], float) for k in ("flops", name))
        low, high = (np.array([r.get(f"{name}_{side}", r[name]) for r in mine], float) for side in ("low", "high"))
        reach = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
        ax.errorbar(flops, value, reach, fmt="o-", ms=5, capsize=2.5, color=ARMS[i % len(ARMS)], label=arm)
    for side, line in (("ceiling", "--"), ("chance", ":"), ("floor", ":")):
        if found := [r[f"{name}_{side}"] for r in rows if f"{name}_{side}" in r]:
            ax.axhline(np.mean(found), ls=line, color="0.4", lw=1.1, label=side)
    ax.set_xscale("log")
    ax.set(xlabel="training FLOPs of one trial", ylabel=name)
    _beside(figure, ax)
    return figure


def rate(rows: list[dict], rung: str) -> Figure:
    """Distortion against rate of tokenizers, a colour an arm and a mark a rung: rows of arm, rung, rate_bits and rate_mse, by bits."""
    figure = Figure(figsize=(7.0, 3.5))
    ax, rungs = figure.subplots(), sorted({r["rung"] for r in rows})
    for i, arm in enumerate(sorted({r["arm"] for r in rows})):
        for j, size in enumerate(rungs):
            mine = sorted((r["rate_bits"], r["rate_mse"]) for r in rows if (r["arm"], r["rung"]) == (arm, size))
            if mine:
                label = arm + (f", {rung} {size:g}" if len(rungs) > 1 else "")
                ax.plot(*zip(*mine, strict=True), "os^Dv"[j % 5] + ("-", "--", ":")[j % 3], ms=4.5, color=ARMS[i % len(ARMS)], label=label)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set(xlabel="bits a picture", ylabel="mean squared error of a number")
    _beside(figure, ax)
    return figure


def slopes(found: dict[str, dict[str, dict[str, tuple]]], bound: float) -> Figure:
    """The coordinate check: slope of every weight's own change with its interval, a panel a knob and a colour a rule.

    `found[knob][rule][weight]` is (slope, half-width, what is promised); what lies within the bound of the promise is shaded.
    """
    names = list(dict.fromkeys(n for by_rule in found.values() for mine in by_rule.values() for n in mine))
    figure = Figure(figsize=(2.2 + 3.0 * len(found), 1.0 + 0.15 * len(names)))
    place = {n: -i for i, n in enumerate(names)}
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for ax, (knob, by_rule) in zip(panels, found.items(), strict=True):
        due = {n: s[2] for mine in by_rule.values() for n, s in mine.items()}
        for n, promise in due.items():
            ax.fill_betweenx([place[n] - 0.5, place[n] + 0.5], promise - bound, promise + bound, color="0.9", lw=0)
        for i, (rule, mine) in enumerate(reversed(by_rule.items())):
            at = np.array([place[n] for n in mine]) + 0.18 * (1 - 2 * i)
            value, half, _ = np.array(list(mine.values())).T
            ax.errorbar(value, at, xerr=half, fmt="o", ms=2.8, lw=0.9, color=ARMS[i % len(ARMS)], label=rule)
        ax.grid(axis="y", visible=False)
        ax.set(xlabel=f"d log(own change) / d log({knob})", yticks=[place[n] for n in names], yticklabels=names)
        ax.set_ylim(0.6 - len(names), 0.6)
        ax.tick_params(axis="y", labelsize=5.5, length=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def training(curves: dict[str, dict[float, tuple]], rung: str) -> Figure:
    """Training loss against step of the best trial of each rung, raw and smoothed; `curves[arm][rung]` is (steps, loss)."""
    figure, axes = _panels(list(curves))
    rungs = sorted({r for arm in curves.values() for r in arm})
    shade = colours(rungs)
    for ax, mine in zip(axes, curves.values(), strict=True):
        for r, (step, loss) in sorted(mine.items()):
            ax.plot(step, loss, color=shade[r], alpha=0.25, lw=0.7)
            ax.plot(step, smoothed(loss), color=shade[r])
        _scale_y(ax)
        ax.set(xlabel="step")
    for ax in axes[::COLUMNS]:
        ax.set_ylabel("training loss")
    _key(figure, rungs, rung)
    return figure


def smoothed(y: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Running mean over `share` of the points; it narrows at the start, where a loss is steep, and looks back alone at the end."""
    n, total = len(y), np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(n)
    half = np.minimum(at, max(1, int(share * n / 2)))
    low, high = at - half, np.minimum(at + half + 1, n)
    return (total[high] - total[low]) / (high - low)


def shown(images: np.ndarray) -> np.ndarray:
    """Images as uint8; floats are shown from -1 (black) to 1 (white)."""
    return images if images.dtype == np.uint8 else np.clip((images + 1.0) * 127.5, 0, 255).astype(np.uint8)


def montage(images: np.ndarray, columns: int, gap: int, below: int = 0) -> np.ndarray:
    """Images [n, h, w, c] as one RGB picture on white; `gap` pixels between them, and `below` more under each row."""
    images, (n, h, w, c) = shown(images), images.shape
    sheet = np.full((-(-n // columns) * (h + gap + below) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (h + gap + below), i % columns * (w + gap)
        sheet[y : y + h, x : x + w] = image[..., :3] if c >= 3 else image[..., :1]
    return sheet


def pictures(blocks: dict[str, np.ndarray], columns: int = 8, names: list[str] | None = None) -> Figure:
    """Blocks of images [n, h, w, c] side by side under a title each; `names` are written under the images of every block."""
    side, width = next(iter(blocks.values())).shape[1:3]
    gap, below = max(1, round(side / 8)), max(3, round(side / 3)) if names else 0
    columns = min(columns, max(len(b) for b in blocks.values()))
    sheets = {title: montage(images, columns, gap, below) for title, images in blocks.items()}
    tall = max(s.shape[0] / s.shape[1] for s in sheets.values())
    across = 0.55 * columns
    figure = Figure(figsize=(across * len(blocks) + 0.3 * (len(blocks) - 1), across * tall + (0.35 if any(blocks) else 0.1)))
    figure.get_layout_engine().set(wspace=0.05)
    for ax, (title, sheet) in zip(figure.subplots(1, len(blocks), squeeze=False)[0], sheets.items(), strict=True):
        ax.imshow(sheet, interpolation="nearest")
        ax.set_title(title)
        ax.set_axis_off()
        for i, name in enumerate(names or ()):
            at = (i % columns * (width + gap) + (width - 1) / 2, i // columns * (side + gap + below) + side)
            ax.text(*at, _short(name), ha="center", va="top", fontsize=5)
    return figure


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
