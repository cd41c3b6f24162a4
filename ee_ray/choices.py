"""What is chosen beside lambda, as the curve sees it: one effect for each field, and where a choice is a choice of nothing.

Under matched compute lambda = 1 leaves nothing for post-training, so all of its choices train the very same stages there;
where D_post enters pretraining matters to none at lambda = 0. Those runs are one observation, not several.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from ee_ray.kernels import Effect
from ee_ray.plan import Point, build_trial
from ee_ray.spec.sweep import SweepSpec

INTERACTION = 0.5  # sd of what a combination does beyond its fields' own effects, over the sd of those
ANY = {role: role for role in ("pre", "post", "ft", "model")}  # whatever the data are, equal stages are equal

Alike = dict[int, list[int]]


def alike(spec: SweepSpec) -> Alike:
    """For the ends of the ladder: of each choice, the first one that trains the very same stages there."""
    found: Alike = {}
    for level in (0, spec.search.ladder):
        keys = [
            tuple(s.key for s in build_trial(spec, ANY, Point(level, 0, c)).stages) for c in range(len(spec.choices))
        ]
        found[level] = [keys.index(key) for key in keys]
    return found


def first_alike(known: Alike, point: Point) -> Point:
    """The first point that trains the very same stages."""
    return replace(point, choice=known[point.level][point.choice]) if point.level in known else point


def effects(spec: SweepSpec, known: Alike) -> tuple[Effect, ...]:
    """One for each field that has several values, and one for what combinations do beyond that."""
    lists = list(spec.search.choices.values())
    combinations = list(itertools.product(*(range(len(values)) for values in lists)))
    fields = [number for number, values in enumerate(lists) if len(values) > 1]
    found = [
        Effect(tuple(c[field] for c in combinations), _pinned(spec, known, combinations, field)) for field in fields
    ]
    if len(found) > 1:
        anywhere = {end for effect in found for end in effect.pinned}
        found.append(Effect(tuple(range(len(combinations))), tuple(sorted(anywhere)), INTERACTION))
    return tuple(found)


def _pinned(spec: SweepSpec, known: Alike, combinations: Sequence[tuple[int, ...]], field: int) -> tuple[int, ...]:
    """The ends (0, 1) where choices that differ in this field alone train the very same stages."""
    others = [combination[:field] + combination[field + 1 :] for combination in combinations]
    first = [others.index(other) for other in others]
    ends = enumerate((0, spec.search.ladder))
    return tuple(end for end, level in ends if all(known[level][c] == known[level][f] for c, f in enumerate(first)))
