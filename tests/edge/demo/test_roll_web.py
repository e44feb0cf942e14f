"""A simulated web that runs on: frames follow each other, and defects lie across their borders."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from edge.demo.web import Web
from edge.settings import Frame

FRAME = Frame(width_px=200, height_px=90)
GOOD = Web("brick", FRAME, seed=3, half="right", scale=2.0, defect_share=0.0, roll=True)
BAD = replace(GOOD, defect_share=0.6)
FRAMES = 30


def test_frames_follow_each_other_without_a_seam() -> None:
    web = np.concatenate([GOOD.shot(n).image[..., 0] for n in range(FRAMES)]).astype(int)
    steps = np.abs(np.diff(web, axis=0)).mean(axis=1)
    borders = steps[FRAME.height_px - 1 :: FRAME.height_px]
    assert len(borders) == FRAMES - 1
    assert np.median(borders) < 1.2 * np.median(steps)
    assert borders.max() < steps.max()
    assert np.array_equal(GOOD.shot(7).image, GOOD.shot(7).image)


def test_defects_lie_across_borders_and_the_truth_says_where() -> None:
    shots = [BAD.shot(n) for n in range(FRAMES)]
    masks = [s.defect.mask if s.defect else np.zeros((FRAME.height_px, FRAME.width_px), bool) for s in shots]
    change = np.concatenate([np.abs(s.image.astype(int) - GOOD.shot(n).image)[..., 0] for n, s in enumerate(shots)])
    painted = change > 8
    assert painted.any()
    around = cv2.dilate(np.concatenate(masks).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert not (painted & ~around).any()
    assert (painted & np.concatenate(masks)).sum() > 0.5 * painted.sum()
    crossing = [n for n in range(FRAMES - 1) if (masks[n][-1] & masks[n + 1][0]).any()]
    assert len(crossing) >= 3
