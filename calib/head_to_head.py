"""Two detectors on the same test images: by how much one is better, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from calib.bootstrap import Difference, Evidence, ImageScores, paired_bootstrap
from calib.details import Details
from calib.pixels import PixelCounts
from edge.errors import MasklineError

__all__ = ["FEW", "Duel", "HeadToHead", "head_to_head"]

MEAN = "mean"
FEW = 10
"""Fewer defective images than this decide nothing: a single one moves the area under the curve by more than 0.1."""

Found = Mapping[tuple[str, str], Details]


@dataclass(frozen=True)
class Duel:
    """One figure of two detectors on one category, or the mean over all."""

    category: str
    figure: str
    """image_auroc or pixel_auroc, with `with_tiny.` before it where defects that are reported apart count too."""
    ours: float
    theirs: float
    difference: Difference
    defective: int
    """Images."""


@dataclass(frozen=True)
class HeadToHead:
    """What came out."""

    ours: str
    theirs: str
    duels: tuple[Duel, ...]

    def tables(self) -> list[Table]:
        """One per figure, a row per category."""
        tables = []
        for figure in dict.fromkeys(duel.figure for duel in self.duels):
            title = figure.replace("with_tiny.", "tiny defects too, ").replace("_auroc", " AUROC")
            headers = ("category", "defective", self.ours, self.theirs, "difference", "95 % interval")
            table = Table(*headers, title=title, title_justify="left", box=box.SIMPLE_HEAD)
            for duel in (d for d in self.duels if d.figure == figure):
                few, difference = "*" if duel.defective < FEW else "", duel.difference
                table.add_row(
                    *(duel.category, f"{duel.defective}{few}", f"{duel.ours:.4f}", f"{duel.theirs:.4f}"),
                    *(f"{difference.value:+.4f}", f"{difference.low:+.4f} to {difference.high:+.4f}"),
                    style="bold" if duel.category == MEAN else "",
                )
            tables.append(table)
        return tables

    def flat(self) -> dict[str, float]:
        """`<category>.<ours>_less_<theirs>.<figure>`, `.low` and `.high`; `mean` stands for all categories."""
        found: dict[str, float] = {}
        for duel in self.duels:
            key, difference = f"{duel.category}.{self.ours}_less_{self.theirs}.{duel.figure}", duel.difference
            found |= {key: difference.value, f"{key}.low": difference.low, f"{key}.high": difference.high}
        return found


def head_to_head(
    ours: Found,
    theirs: Found,
    our_name: str | None = None,
    their_name: str | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> HeadToHead:
    """Compare two detectors over the categories that both have, each with the test images that both saw.

    The names may be left out where there is one detector alone. Raises MasklineError where there is no such detector,
    no category in common, or the test images of one are not the same.
    """
    our_name, their_name = _only(ours, our_name, "--detector"), _only(theirs, their_name, "--against")
    a = {category: details for (category, name), details in ours.items() if name == our_name}
    b = {category: details for (category, name), details in theirs.items() if name == their_name}
    common = [category for category in a if category in b]
    if not common:
        raise MasklineError(
            f"{our_name} has the categories {', '.join(a)}, {their_name} has {', '.join(b)}: none in common"
        )
    pairs = {category: (a[category], _aligned(category, a[category], b[category])) for category in common}
    tiny = any(details.tiny.any() for details, _ in pairs.values())
    duels = [
        duel
        for prefix in ("", "with_tiny.")[: 1 + tiny]
        for figure in ("image_auroc", "pixel_auroc")
        for duel in _duels(pairs, prefix, figure, resamples, seed)
    ]
    return HeadToHead(our_name, their_name, tuple(duels))


def _only(found: Found, wanted: str | None, option: str) -> str:
    names = list(dict.fromkeys(name for _, name in found))
    if wanted in names:
        return str(wanted)
    if wanted is None and len(names) == 1:
        return names[0]
    raise MasklineError(
        f"{option} {wanted or 'is missing'}: the details are of {', '.join(names) or 'none'}; name one of them"
    )


def _aligned(category: str, ours: Details, theirs: Details) -> Details:
    """`theirs` in the order of `ours`."""
    order, theirs_order = np.argsort(ours.names), np.argsort(theirs.names)
    if not np.array_equal(ours.names[order], theirs.names[theirs_order]):
        raise MasklineError(
            f"{category}: {len(ours.names)} and {len(theirs.names)} test images, which are not the same ones: evaluate "
            "both detectors on the same folder"
        )
    taken = np.empty_like(order)
    taken[order] = theirs_order
    counts = PixelCounts(theirs.pixels.good[taken], theirs.pixels.bad[taken])
    return Details(theirs.names[taken], ours.defects, theirs.scores[taken], counts)


@dataclass(frozen=True)
class _Pair:
    """What both say of the chosen images of a category."""

    bad: NDArray[np.bool_]
    ours: Evidence
    theirs: Evidence

    def area(self, evidence: Evidence) -> float:
        return float(evidence.auroc(np.ones(len(self.bad))))


def _duels(
    pairs: Mapping[str, tuple[Details, Details]], prefix: str, figure: str, resamples: int, seed: int
) -> list[Duel]:
    """One figure, category by category where it can be had, and its mean."""
    found = {}
    for category, (ours, theirs) in pairs.items():
        chosen = np.ones(len(ours.names), bool) if prefix else ~ours.tiny
        if figure == "pixel_auroc":
            chosen &= ours.known & theirs.known
        bad = ours.bad[chosen]
        if bad.any() and not bad.all():
            found[category] = _Pair(bad, *(_evidence(details, chosen, figure) for details in (ours, theirs)))
    groups = {category: [pair] for category, pair in found.items()}
    if len(found) > 1:
        groups[MEAN] = list(found.values())
    return [_duel(name, prefix + figure, group, resamples, seed) for name, group in groups.items()]


def _evidence(details: Details, chosen: NDArray[np.bool_], figure: str) -> Evidence:
    if figure == "image_auroc":
        return ImageScores(details.scores[chosen], details.bad[chosen])
    return PixelCounts(details.pixels.good[chosen], details.pixels.bad[chosen])


def _duel(category: str, figure: str, group: list[_Pair], resamples: int, seed: int) -> Duel:
    ours, theirs = [pair.ours for pair in group], [pair.theirs for pair in group]
    return Duel(
        category,
        figure,
        ours=float(np.mean([pair.area(pair.ours) for pair in group])),
        theirs=float(np.mean([pair.area(pair.theirs) for pair in group])),
        difference=paired_bootstrap([pair.bad for pair in group], ours, theirs, resamples=resamples, seed=seed),
        defective=int(sum(pair.bad.sum() for pair in group)),
    )
