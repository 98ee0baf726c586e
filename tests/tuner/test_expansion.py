"""The choice of directions, and the share of the signal that they see, as functions of tensors."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samparser.tuner.expansion import (
    Expansion,
    Sight,
    Wanted,
    choose,
    choose_directions,
    choose_pairs,
    free_bases,
    random_directions,
    share_of,
)
from samparser.tuner.factors import coefficient_groups, factorize
from tests.reference.expansion import best_pairs, projection_share

SHAPES = st.tuples(st.integers(2, 7), st.integers(2, 7))
SEEDS = st.integers(0, 1000)


def draw(shape, seed, count=3):
    """A weight and gradients of its shape."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@settings(max_examples=40)
@given(shape=SHAPES, seed=SEEDS, share=st.floats(0, 1))
def test_the_chosen_pairs_are_those_that_looking_at_every_pair_finds(shape, seed, share):
    weight, gradient, _ = draw(shape, seed)
    bases = factorize(weight)
    most = bases.rank * (bases.rank - 1)
    count = max(1, int(share * most))
    rows, columns, *_ = choose_pairs(gradient, bases, None, count)
    found = list(zip(rows.tolist(), columns.tolist(), strict=True))
    assert set(found) == best_pairs(gradient, bases.u, bases.vh, count, set(range(bases.rank)))
    sizes = [abs(float(bases.u[:, i] @ gradient @ bases.vh[j])) for i, j in found]
    assert all(first >= second - 1e-5 for first, second in itertools.pairwise(sizes))


def test_pairs_of_tied_and_of_null_bases_are_never_chosen():
    weight = torch.zeros(6, 7)
    weight.diagonal().copy_(torch.tensor([5.0, 3.0, 3.0, 2.0, 1.0, 0.0]))
    bases = factorize(weight)
    groups = coefficient_groups(bases.p)
    assert free_bases(groups, 6).tolist() == [0, 3, 4]
    gradient = draw((6, 7), 0)[1]
    rows, columns, *_ = choose_pairs(gradient, bases, groups, 6)
    assert {*rows.tolist(), *columns.tolist()} == {0, 3, 4}
    with pytest.raises(ValueError, match="expansion_rank is 7, but it allows 6 terms of the kind 'pairs' at most"):
        choose_pairs(gradient, bases, groups, 7)
    assert len(choose_pairs(gradient, bases, groups, None).rows) == 6


@settings(max_examples=30)
@given(shape=SHAPES, seed=SEEDS, kind=st.sampled_from(["pairs", "gradient", "random"]), leading=st.integers(0, 7))
def test_the_share_is_that_of_the_projection_onto_the_span_of_all_directions(shape, seed, kind, leading):
    weight, first, second = (matrix.double() for matrix in draw(shape, seed))
    bases = factorize(weight)
    leading = min(leading, bases.rank)
    trained = torch.arange(leading) if leading else None
    chosen = choose(Wanted(kind, 1, torch.float64), first, bases, None, trained)
    sight = Sight(bases, trained, chosen.factors(bases))
    alone, seen = sight.products(sight.read(first), sight.read(second))
    left, right = chosen.factors(bases)
    diagonal = [torch.outer(bases.u[:, i], bases.vh[i]) for i in range(leading)]
    terms = [torch.outer(a, b) for a, b in zip(left.T, right, strict=True)]
    signal = float((first * second).sum())
    expected = projection_share(first, second, diagonal + terms)
    torch.testing.assert_close(seen / signal, expected, rtol=1e-6, atol=1e-7 / abs(signal))
    if diagonal:
        expected = projection_share(first, second, diagonal)
        torch.testing.assert_close(alone / signal, expected, rtol=1e-6, atol=1e-7 / abs(signal))
    else:
        assert alone == 0


def test_tied_coefficients_see_the_mean_of_their_group():
    weight = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0]))
    bases, (_, first, second) = factorize(weight), draw((4, 4), 3)
    groups = coefficient_groups(bases.p)
    nothing = bases.u[:, :0], bases.vh[:0]
    sight = Sight(bases, groups, nothing)
    alone, seen = sight.products(sight.read(first), sight.read(second))
    one = [torch.outer(bases.u[:, i], bases.vh[i]) for i in range(4)]
    expected = projection_share(first, second, [one[0], one[1] + one[2], one[3]]) * float((first * second).sum())
    assert alone == seen == pytest.approx(expected, rel=1e-5)


def test_directions_are_the_leading_singular_pairs_of_what_the_coefficients_do_not_see():
    weight, gradient, _ = (matrix.double() for matrix in draw((5, 6), 1))
    bases = factorize(weight)
    diagonal = torch.stack([bases.u[:, i] @ gradient @ bases.vh[i] for i in range(3)])
    rest = gradient - sum(d * torch.outer(bases.u[:, i], bases.vh[i]) for i, d in enumerate(diagonal))
    u, _, vh = torch.linalg.svd(rest, full_matrices=False)
    a, b = choose_directions(gradient, bases, torch.arange(3), 2)
    for k in range(2):
        torch.testing.assert_close(torch.outer(a[:, k], b[k]), torch.outer(u[:, k], vh[k]))
    whole, _ = choose_directions(gradient, bases, None, 1)
    torch.testing.assert_close(whole[:, 0].abs(), torch.linalg.svd(gradient)[0][:, 0].abs())


def test_a_gradient_of_few_directions_gives_no_more():
    bases, one = factorize(draw((4, 5), 0)[0]), torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 6))
    with pytest.raises(ValueError, match="expansion_rank is 2, but its mean gradient has 1 directions"):
        choose_directions(one, bases, None, 2)
    assert choose_directions(one, bases, None, 4, exact=False)[0].shape == (4, 1)


def test_random_directions_are_unit_vectors_and_the_same_for_the_same_seed():
    a, b = random_directions(5, 7, 3, seed=4)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(3))
    torch.testing.assert_close(b.norm(dim=1), torch.ones(3))
    assert all(torch.equal(x, y) for x, y in zip((a, b), random_directions(5, 7, 3, seed=4), strict=True))
    assert not torch.equal(a, random_directions(5, 7, 3, seed=5)[0])


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.zeros(3, 4), "its mean gradient is zero everywhere"),
        (torch.full((3, 4), float("nan")), "12 of the 12 values of its mean gradient are NaN or infinite"),
        (torch.eye(3, 4) / 0, "of its mean gradient are NaN or infinite"),
    ],
)
@pytest.mark.parametrize("kind", ["pairs", "gradient", "random"])
def test_a_gradient_that_says_nothing_is_refused(gradient, message, kind):
    with pytest.raises(ValueError, match=message):
        choose(Wanted(kind, 1, torch.float32), gradient, factorize(draw((3, 4), 0)[0]), None, None)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6),
    scale=st.floats(1e-6, 1e6),
    stored=st.integers(0, 9),
)
def test_terms_come_back_from_their_record(pairs, scale, stored):
    rows, columns = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1))
    record = json.loads(json.dumps(Expansion(scale, rows, columns, stored).record()))
    back = Expansion.from_record("layer", record, 10)
    assert (back.scale, back.stored, back.count) == (scale, stored, len(pairs) + stored)
    assert torch.equal(back.rows, rows)
    assert torch.equal(back.columns, columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, "scale=None, which is no finite number other than zero"),
        ({"scale": True}, "scale=True"),
        ({"scale": 0}, "scale=0"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"stored": -1}, "stored=-1, which is no number of terms"),
        ({"stored": 10**30}, "stored=1000"),
        ({"stored": "1"}, "stored='1'"),
        ({"pairs": None}, "pairs=None, which is not written as '12,40 3,7'"),
        ({"pairs": "1,2,3"}, "pairs='1,2,3'"),
        ({"pairs": "1,2 3"}, "pairs='1,2 3'"),
        ({"pairs": "-1,2"}, "pairs='-1,2'"),
        ({"pairs": "1,99999999999999999999999"}, "pairs='1,9999"),
        ({"pairs": "a,b"}, "pairs='a,b'"),
        ({"pairs": "1,4"}, "pairs base 4, but the layer has 4 bases, counted from 0.*another model"),
    ],
)
def test_a_damaged_record_is_named(change, message):
    record = {"scale": 1.0, "pairs": "1,2", "stored": 0}
    with pytest.raises(ValueError, match=f"neck.0: the adapter's expansion_record.*{message}"):
        Expansion.from_record("neck.0", {**record, **change}, 4)


def test_where_the_halves_agree_on_no_signal_there_is_no_share():
    assert share_of(1.0, 4.0) == 0.25
    assert share_of(1.0, 0.0) is None
    assert share_of(1.0, -4.0) is None
