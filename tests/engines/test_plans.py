"""Every token is repainted from exactly one variant that hides it, whatever the grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engines.architecture import TEXTURE_S
from engines.plans import PLANS, Plan, blocks, named_plan, plan, plan_inputs, some_blocks


def check(p: Plan, whole: bool = True) -> None:
    tokens = p.grid[0] * p.grid[1]
    every = np.arange(tokens)
    for visible, hidden in zip(p.visible, p.hidden, strict=True):
        assert not np.intersect1d(visible, hidden).size
        if whole:
            np.testing.assert_array_equal(np.sort(np.r_[visible, hidden]), every)
    assert p.hidden.reshape(-1)[p.place].tolist() == every.tolist()  # the answer for a token is the token's
    assert len(set(p.place.tolist())) == tokens  # and no answer is used twice
    assert {a.dtype for a in (p.visible, p.hidden, p.place)} == {np.dtype(np.int32)}


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), st.sampled_from([1, 4, 16, 32]))
def test_any_grid(rows: int, columns: int, block: int, hide: int) -> None:
    assume(rows > block or columns > block)  # a grid of one block has nothing to show
    check(plan((rows, columns), block, hide))


@given(st.integers(3, 20), st.integers(3, 20), st.integers(1, 4), st.integers(1, 8))
def test_with_a_context_a_variant_sees_what_is_near_and_nothing_else(
    rows: int, columns: int, block: int, context: int
) -> None:
    assume(rows > block or columns > block)
    p = plan((rows, columns), block, 1, context)
    check(p, whole=False)
    for token, variant in enumerate(p.place // p.hidden.shape[1]):
        row, column = np.divmod(p.visible[variant], columns)
        apart = np.maximum(abs(row - token // columns), abs(column - token % columns))
        assert apart.min() <= block  # the ring round the block is there
        assert apart.max() <= 2 * (context + block)  # at the sides of the grid the window reaches farther inwards
    assert p.visible.shape[1] + p.hidden.shape[1] == min(rows, block + 2 * context) * min(columns, block + 2 * context)


def test_a_context_of_four_leaves_96_of_252_tokens() -> None:
    near = TEXTURE_S.model_copy(update={"context": 4})
    assert named_plan("x1", near).visible.shape == (64, 96)
    assert named_plan("x16", near).visible.shape == (4, 192)  # far-apart blocks have no one surrounding


@given(st.sampled_from([(16, 16), (8, 16), (32, 32)]), st.sampled_from([1, 2]), st.sampled_from([1, 4, 16, 32]))
def test_even_grids_hide_every_token_once(grid: tuple[int, int], block: int, hide: int) -> None:
    p = plan(grid, block, hide)
    assert np.sort(p.hidden.reshape(-1)).tolist() == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize(
    ("name", "variants", "hidden"), [("x1", 64, 4), ("x4", 16, 16), ("x16", 4, 64), ("x32", 2, 128)]
)
def test_the_papers_grid(name: str, variants: int, hidden: int) -> None:
    p = named_plan(name, TEXTURE_S.model_copy(update={"context": None}))
    assert p.hidden.shape == (variants, hidden)
    assert p.visible.shape == (variants, 256 - hidden)


def test_vit_b_has_49_variants() -> None:
    assert plan((14, 14), 2, 1).hidden.shape == (49, 4)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("grid", [(16, 16), (14, 14), (15, 13)])
def test_blocks_that_answer_are_whole_and_apart(name: str, grid: tuple[int, int]) -> None:
    p = plan(grid, 2, int(name[1:]))
    check(p)
    owner = (p.place // p.hidden.shape[1]).reshape(grid)
    for row in blocks(grid, 2):
        for cell in row:
            assert len({int(owner.reshape(-1)[t]) for t in cell}) == 1
    coarse = owner[::2, ::2]
    assert not (coarse[1:] == coarse[:-1]).any()
    assert not (coarse[:, 1:] == coarse[:, :-1]).any()


@pytest.mark.parametrize(("grid", "hide"), [((16, 16), 3), ((2, 2), 1), ((0, 4), 1)])
def test_impossible_plans_are_refused(grid: tuple[int, int], hide: int) -> None:
    with pytest.raises(ValueError, match=r"hide|leaves"):
        plan(grid, 2, hide)


def test_an_unknown_plan_is_named() -> None:
    with pytest.raises(ValueError, match="x1, x4, x16, x32"):
        named_plan("cascade", TEXTURE_S)


def test_some_blocks_have_the_index_sets_of_their_variants() -> None:
    sets, chosen = plan_inputs(TEXTURE_S, "x1"), np.array([9, 3, 63], np.int32)
    some = some_blocks(sets, chosen)
    np.testing.assert_array_equal(some["visible"], sets["visible"][chosen])
    np.testing.assert_array_equal(some["hidden"], sets["hidden"][chosen])
    table = [cell for row in blocks(TEXTURE_S.grid, TEXTURE_S.block) for cell in row]
    for block in chosen:
        repainted = some["hidden"].ravel()[some["place"][table[block]]]
        np.testing.assert_array_equal(repainted, table[block])
    assert some["place"].dtype == np.int32
    assert some["place"].max() < some["hidden"].size
