"""Retained loss as a smooth function of lambda, from runs in paired seeds: a Gaussian process, fitted in closed form.

One seed is one initialisation and one data order, used at every lambda, so its losses share an offset that says nothing
about lambda. The model of the losses of seed s at its levels x, in nats, is

    loss_s(x) = f(x) + offset_s + sigma * e_s(x),    f a Gaussian process over lambda.

* Offsets have a flat prior (fixed effects): they are projected out, so adding a constant to a seed changes nothing.
* f has the priors of kernels.py: smooth on a lambda that may be stretched at its ends, with a little wiggle, or one jump.
* Where other things are chosen beside lambda, f_c = f + effects of what choice c is; all choices are fitted at once, and
  the answer is about the least of them at each lambda, so that the doubt about the choice is in it.
* e_s is the noise of runs, of one of a few kinds (NOISES): the same everywhere; larger near an end, as forgetting is
  after no early exposure; or with a smooth part, a seed that likes early exposure more than others do. Ignoring
  the last kind would take three seeds with one quirk each for three times as many facts.
* Length scale, warp, kind of noise and signal-to-noise ratio are summed over a grid with weak priors, and sigma is
  integrated in closed form (inverse gamma): none is a point estimate. One seed alone can never tell noise from wiggle;
  then these priors keep the noise away from zero and the answer stays wide.

Everything is linear algebra on the levels (at most tens), whatever the number of observations. Draws come from a
generator with a fixed seed, so equal observations give equal answers.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapters 2.7 and 5.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ee_ray.kernels import JITTER, Array, Effect, Indices, Prior, log_normal, prior

DRAWS = 4000  # posterior curves; a probability of 0.95 is then known to 0.0035
FINE_STEPS = 128  # the fine grid divides [0, 1] so, and takes in every ladder and observed level too
SAME_LEVEL = 9  # decimals: levels closer than 1e-9 are one level
# sd of f over sd of the noise: median 8, a factor 7 either way (the effects of the paper's Figure 3 over noise 0.006).
RATIOS = np.exp2(np.arange(-3.0, 10.0))
RATIO_MEDIAN, RATIO_LOG_SD = 8.0, 2.0
# (sd at 0, sd at 1, sd of the part that is smooth in lambda, all relative to sigma; prior weight).
NOISES = (
    (1.0, 1.0, 0.0, 0.35), (4.0, 1.0, 0.0, 0.12), (1.0, 3.0, 0.0, 0.06),
    (1.0, 1.0, 1.5, 0.15), (1.0, 1.0, 5.0, 0.20), (4.0, 1.0, 3.0, 0.12),
)  # fmt: skip
NEAR_END = 6.0  # the noise of an end falls off as its logarithm times (1 - distance)^6: a quarter away it is a sixth
SMOOTH_LENGTH = 0.6  # of the smooth part of a seed's noise, squared-exponential
# The noise prior is worth one observation, of this size: a part of the spread within seeds plus a part of `practical`.
NOISE_OF_SPREAD, NOISE_OF_PRACTICAL = 0.05, 0.3


@dataclass(frozen=True, eq=False)
class Curve:
    """What is known of f. Losses in nats. f is known up to a constant, which drops out of every difference.

    grid    (g,) levels of lambda
    mean    (g,) posterior mean of f, or, of several choices, of the least of them at each lambda
    draws   (DRAWS, g) joint posterior draws of the same
    every   (DRAWS, C, g) draws of each choice's own curve; means (C, g)
    sigma   (DRAWS,) the sigma of each draw
    kind    (DRAWS,) the kind of noise of each draw, an index into NOISES
    seen    the observations, sorted: columns lambda, seed, loss, choice
    """

    grid: Array
    mean: Array
    draws: Array
    every: Array
    means: Array
    sigma: Array
    kind: Indices
    seen: pd.DataFrame

    @property
    def leading(self) -> int:
        """The choice whose mean curve goes lowest."""
        return int(self.means.min(axis=1).argmin())

    def at_seen(self) -> tuple[Indices, Indices]:
        """Choice and place on the grid of each observation."""
        return self.seen["choice"].to_numpy(np.intp), self.at(self.seen["lambda"].to_numpy(float))

    def at(self, levels: Array) -> Indices:
        """Where on the grid these levels are."""
        return np.searchsorted(self.grid, np.round(levels, SAME_LEVEL))

    def places(self, ladder: Array) -> Indices:
        """For each observation, its choice and level of the ladder as one number: choice * len(ladder) + level."""
        level = np.searchsorted(ladder.round(SAME_LEVEL), self.seen["lambda"])
        return np.asarray(self.seen["choice"].to_numpy(np.intp) * len(ladder) + level)

    def noise(self, levels: Array) -> Array:
        """(DRAWS, len(levels)): sd of one run about its seed's shifted f, in each draw."""
        sd = np.sqrt([own_sd(kind, levels) ** 2 + smooth**2 for kind, (_, _, smooth, _) in enumerate(NOISES)])
        return np.asarray(self.sigma[:, None] * sd[self.kind])


def fit(rows: pd.DataFrame, levels: Array, practical: float, effects: tuple[Effect, ...] = ()) -> Curve:
    """The posterior of f over a fine grid that holds `levels` and every observed level.

    rows: columns lambda in [0, 1], seed, loss in nats, and choice (0 where there is no such column); finite, one row per
    (lambda, seed, choice), levels rounded to SAME_LEVEL.
    practical: smallest difference worth caring about, nats; a part of it is the scale of the noise prior.
    effects: of what is chosen beside lambda.
    """
    rows = (rows if "choice" in rows else rows.assign(choice=0)).sort_values(
        ["seed", "choice", "lambda"], ignore_index=True
    )
    observed = np.unique(rows["lambda"].to_numpy(float))
    even = np.linspace(0, 1, FINE_STEPS + 1)
    grid = np.unique(np.round(np.concatenate([even, levels, observed]), SAME_LEVEL))
    places, number = np.unique(rows[["choice", "lambda"]].to_numpy(float), axis=0, return_inverse=True)
    choice, at = places[:, 0].astype(np.intp), np.searchsorted(grid, places[:, 1])
    data = [_reduce(rows, number, places[:, 1], kind) for kind in range(len(NOISES))]
    within = (NOISE_OF_SPREAD**2) * data[0].spread / max(data[0].dof, 1)
    prior_variance = within + (NOISE_OF_PRACTICAL * practical) ** 2
    kernels = prior(grid, effects)
    post = _condition(data, kernels, choice, at, prior_variance)
    weight = np.exp(post.log_weight - post.log_weight.max())
    weight /= weight.sum()
    # Systematic allocation: a cell gets its share of the draws to within one, with no sampling error.
    counts = np.diff(np.round(np.append(0.0, np.cumsum(weight)) * DRAWS)).astype(int)
    cell = np.stack(np.unravel_index(np.repeat(np.arange(weight.size), counts), weight.shape))
    every, sigma = _draw(post, kernels, cell, data[0].dof + 1)
    at_places = np.einsum("knr,knrm->km", weight, post.mean)
    means = np.einsum("kgm,km->g", post.to_grid, at_places).reshape(every.shape[1:])
    draws = every.min(axis=1)
    mean = means[0] if len(means) == 1 else draws.mean(axis=0)
    return Curve(grid, mean, draws, every, means, sigma, cell[1].astype(np.intp), rows)


def noise_covariance(kind: int, levels: Array) -> Array:
    """(m, m): covariance of one seed's noise at these levels, for sigma = 1."""
    return np.asarray(np.diag(own_sd(kind, levels) ** 2) + NOISES[kind][2] ** 2 * smooth_covariance(levels))


def smooth_covariance(levels: Array) -> Array:
    """(m, m): covariance of the part of a seed's noise that is smooth in lambda, for sd 1."""
    distance = (levels[:, None] - levels[None, :]) / SMOOTH_LENGTH
    return np.asarray(np.exp(-0.5 * distance**2))


def own_sd(kind: int, levels: Array) -> Array:
    """(m,): sd of the part of the noise that is each run's own, for sigma = 1."""
    at_0, at_1, *_ = NOISES[kind]
    return np.asarray(np.exp(np.log(at_0) * (1 - levels) ** NEAR_END + np.log(at_1) * levels**NEAR_END))


# 1. The data, with the seed offsets projected out.


@dataclass(frozen=True)
class _Reduced:
    """All that the likelihood needs of n losses, for one kind of noise. With C the noise covariance for sigma = 1, P the
    precision that is left of C once every seed's offset is projected out, Z the (n, m) incidence of the m places (a level
    of lambda with a choice):
    information = Z'PZ (m, m), score = Z'P loss (m), spread = loss'P loss, log_density = -log(|C| |1'C^-1 1|) / 2."""

    information: Array
    score: Array
    spread: float
    log_density: float
    dof: int


def _reduce(rows: pd.DataFrame, places: Indices, levels: Array, kind: int) -> _Reduced:
    """places: of each row, an index into `levels`, the lambda of each place."""
    information, score = np.zeros((len(levels), len(levels))), np.zeros(len(levels))
    spread, log_density = 0.0, 0.0
    for _, seed in rows.groupby("seed"):
        at, loss = places[seed.index], seed["loss"].to_numpy(float)
        covariance = noise_covariance(kind, levels[at])
        precision = np.linalg.inv(covariance)
        ones = precision.sum(axis=0)
        left = precision - np.outer(ones, ones) / ones.sum()
        loss = loss - loss.mean()  # changes nothing but rounding
        information[np.ix_(at, at)] += left
        score[at] += left @ loss
        spread += float(loss @ left @ loss)
        log_density -= 0.5 * float(np.linalg.slogdet(covariance)[1] + np.log(ones.sum()))
    return _Reduced(information, score, spread, log_density, len(rows) - rows["seed"].nunique())


# 2. The posterior, for K kernels, N kinds of noise and R ratios at once.


@dataclass(frozen=True)
class _Conditioned:
    """Given sigma, f at the m places is Gaussian with mean mean[k, n, r] and square root sigma * root[k, n] @
    diag(scale[k, n, r]); sigma follows the sum of squares residual[k, n, r]. to_grid[k] @ (f at the places) is the
    mean of f on the grid of every choice."""

    choice: Indices  # (m,) of each place
    at: Indices  # (m,) where on the grid the places are
    to_grid: Array  # (K, C * g, m)
    root: Array  # (K, N, m, m)
    basis: Array  # (K, N, m, m) the eigenvectors that root ends in
    mean: Array  # (K, N, R, m)
    scale: Array  # (K, N, R, m)
    residual: Array  # (K, N, R)
    log_weight: Array  # (K, N, R)


def _condition(
    data: list[_Reduced], kernels: Prior, choice: Indices, at: Indices, prior_variance: float
) -> _Conditioned:
    """With information d in the eigenbasis of the kernel at the places, the marginal likelihood is
    prod (1 + ratio^2 d)^-1/2  *  residual^-(dof + 1)/2 ; the 1 is the noise prior's one observation."""
    information, score = np.stack([x.information for x in data]), np.stack([x.score for x in data])
    spread, log_density = np.array([[x.spread] for x in data]), np.array([[x.log_density] for x in data])
    between = kernels.covariance((choice, choice), (at, at)) + JITTER * np.eye(len(at))
    choices, steps = len(kernels.components[0].values), kernels.components[0].covariance.shape[-1]
    everywhere = np.repeat(np.arange(choices), steps), np.tile(np.arange(steps), choices)
    across = kernels.covariance((choice, everywhere[0]), (at, everywhere[1]))
    lower = np.linalg.cholesky(between)
    d, basis = np.linalg.eigh(lower.transpose(0, 2, 1)[:, None] @ information @ lower[:, None])
    root = lower[:, None] @ basis
    along = np.einsum("knij,ni->knj", root, score)
    growth = 1 + RATIOS[:, None] ** 2 * np.maximum(d, 0.0)[:, :, None]
    shrink = RATIOS[:, None] ** 2 / growth
    residual = prior_variance + np.maximum(spread - (shrink * along[:, :, None] ** 2).sum(axis=-1), 0.0)
    evidence = log_density - 0.5 * np.log(growth).sum(axis=-1) - 0.5 * (data[0].dof + 1) * np.log(residual)
    kinds = np.log([[weight] for *_, weight in NOISES])
    before = kernels.log_weight[:, None, None] + kinds + log_normal(RATIOS, RATIO_MEDIAN, RATIO_LOG_SD)
    return _Conditioned(
        choice=choice,
        at=at,
        to_grid=np.asarray(np.linalg.solve(between, across).transpose(0, 2, 1), float),
        root=root,
        basis=np.asarray(basis, float),
        mean=(shrink * along[:, :, None]) @ root.transpose(0, 1, 3, 2),
        scale=np.sqrt(shrink),
        residual=residual,
        log_weight=before + evidence,
    )


def _draw(post: _Conditioned, kernels: Prior, cell: Indices, dof: int) -> tuple[Array, Array]:
    """Curves on the grid of every choice (n, C, g) and a sigma (n,) for each column (kernel, kind, ratio) of `cell` (3, n),
    sorted by kernel. Curves are drawn from the prior, then moved so as to meet a draw of the posterior at the places."""
    rng = np.random.default_rng(0)
    kernel, kind, ratio = cell
    sigma = np.sqrt(post.residual[kernel, kind, ratio] / rng.chisquare(dof, len(kernel)))
    # Eigenvectors have no sign of their own, and libraries differ in it: turned back by them, a draw does not know it.
    normal = np.einsum("nji,nj->ni", post.basis[kernel, kind], rng.standard_normal((len(kernel), len(post.at))))
    spread = np.einsum("nij,nj->ni", post.root[kernel, kind], post.scale[kernel, kind, ratio] * normal)
    target = post.mean[kernel, kind, ratio] + sigma[:, None] * spread
    curves = _before(kernels, kernel, sigma * RATIOS[ratio], rng)
    missed = target - curves[:, post.choice, post.at]
    for k in np.unique(kernel):
        rows = slice(*np.searchsorted(kernel, [k, k + 1]))
        curves[rows] += (missed[rows] @ post.to_grid[k].T).reshape(curves[rows].shape)
    return curves, sigma


def _before(kernels: Prior, kernel: Indices, sd: Array, rng: np.random.Generator) -> Array:
    """Draws of the prior (n, C, g), of sd `sd`, for kernel numbers in ascending order."""
    shape, size = kernels.components[0].covariance.shape, kernels.sizes[kernel % len(kernels.sizes)]
    curves = np.zeros((len(kernel), len(kernels.components[0].values), shape[-1]))
    for number, part in enumerate(kernels.components):
        scale = sd * part.size * (size if number else 1.0)
        normal = rng.standard_normal((len(kernel), part.values.max() + 1, shape[-1])) * scale[:, None, None]
        for k in np.unique(kernel // len(kernels.sizes)):
            rows = slice(*np.searchsorted(kernel // len(kernels.sizes), [k, k + 1]))
            curves[rows] += (normal[rows] @ part.lower[k].T)[:, part.values]
    return curves
