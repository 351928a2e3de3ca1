"""Statistics are those of the papers and of scipy; p-values those of all divisions; the tests hold their level."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.stats import binom, ks_2samp, kstest

from multilevel.recipes.export.two_sample import draw_memberships, holm, ks_statistics, mmd_statistics, p_value


def by_pairs(first, second):
    """Equation 3 of Gretton et al. (2012), written out, with the kernel's width by scipy."""
    width = np.median(pdist(np.concatenate([first, second])))

    def mean(rows, columns, apart):
        values = np.exp(-cdist(rows, columns, "sqeuclidean") / (2 * width**2))
        pairs = [values[i, j] for i in range(len(rows)) for j in range(len(columns)) if not (apart and i == j)]
        return np.mean(pairs)

    return mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, False)


def independent(first, second, random, permutations):
    return draw_memberships(np.arange(first), np.arange(second), random, permutations)


def test_the_discrepancy_is_that_of_the_paper_in_every_split():
    random = np.random.default_rng(0)
    for first, second in ((9, 6), (4, 13)):
        points = np.concatenate([random.normal(size=(first, 3)), random.normal(0.5, 2, size=(second, 3))])
        members = independent(first, second, random, 3)
        expected = [by_pairs(points[column == 1], points[column == 0]) for column in members.T]
        np.testing.assert_allclose(mmd_statistics(points, members), expected, atol=1e-9)


def test_the_largest_difference_of_distributions_is_that_of_scipy():
    random = np.random.default_rng(1)
    for values in (random.normal(size=30), random.integers(0, 4, 30).astype(float), np.ones(30)):
        members = independent(12, 18, random, 5)
        expected = [ks_2samp(values[column == 1], values[column == 0]).statistic for column in members.T]
        np.testing.assert_allclose(ks_statistics(values, members), expected, atol=1e-12)


@pytest.mark.parametrize("statistics", [mmd_statistics, lambda points, members: ks_statistics(points.sum(1), members)])
def test_the_p_value_is_that_of_all_divisions(statistics):
    random = np.random.default_rng(1)
    points = np.concatenate([random.normal(size=(5, 2)), random.normal(0.8, size=(4, 2))])
    divisions = [np.isin(range(9), chosen).astype(float) for chosen in itertools.combinations(range(9), 5)]
    exact = p_value(statistics(points, np.array(divisions).T))
    assert 0.02 < exact < 0.6
    estimated = p_value(statistics(points, independent(5, 4, random, 20_000)))
    assert estimated == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))


def test_groups_stay_together_and_as_many_are_drawn_as_there_were():
    first, second = np.array([7, 7, 3, 9]), np.array([3, 5, 5])
    members = draw_memberships(first, second, np.random.default_rng(0), 200)
    assert members[:, 0].tolist() == [1, 1, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(members[0], members[1])
    np.testing.assert_array_equal(members[5], members[6])
    assert set(map(int, members[[0, 2, 3, 4, 5]].sum(0))) == {3}  # of five groups
    assert (members[2] != members[4]).any()  # 3 on one side is not 3 on the other


def p_values(repeats, draw, groups):
    """P-values of the largest difference of distributions, for samples and their groups without any difference."""
    results = []
    for seed in range(repeats):
        random = np.random.default_rng(seed)
        members = draw_memberships(*groups, random, 199)
        results.append(p_value(ks_statistics(draw(random), members)))
    return np.array(results)


def test_without_a_shift_the_test_holds_its_level():
    found = p_values(200, lambda random: random.normal(size=40), (np.arange(25), np.arange(15)))
    fewest, most = binom.interval(0.999, 200, 0.05)
    assert fewest <= np.sum(found <= 0.05) <= most
    found = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        found.append(p_value(mmd_statistics(random.normal(size=(40, 4)), independent(25, 15, random, 399))))
    assert fewest <= np.sum(np.array(found) < 0.05) <= most
    assert kstest(found, "uniform").pvalue > 0.01


def test_groups_keep_the_level_that_independent_images_lose():
    groups = np.repeat(np.arange(8), 5), np.repeat(np.arange(8), 5)

    def draw(random):
        return np.repeat(random.normal(size=16), 5) + 0.1 * random.normal(size=80)

    assert np.mean(p_values(100, draw, groups) < 0.05) < 0.15
    assert np.mean(p_values(100, draw, (np.arange(40), np.arange(40))) < 0.05) > 0.3


def test_a_shift_is_found():
    for seed in range(20):
        random = np.random.default_rng(seed)
        points = np.concatenate([random.normal(size=(40, 4)), random.normal(1.0, size=(40, 4))])
        assert p_value(mmd_statistics(points, independent(40, 40, random, 199))) < 0.05


def test_holm_rejects_step_by_step():
    random = np.random.default_rng(0)
    for count in (1, 3, 8):
        values = (random.random(count) ** 3).tolist()
        for level in (0.01, 0.05, 0.2):
            rejected, ordered = set(), sorted(range(count), key=values.__getitem__)
            for rank, test in enumerate(ordered):  # the procedure as Holm (1979) words it
                if values[test] >= level / (count - rank):
                    break
                rejected.add(test)
            assert {test for test, value in enumerate(holm(values)) if value < level} == rejected


def test_no_p_value_is_zero():
    """The observed division is one of all: equation 2 of Phipson and Smyth (2010)."""
    assert p_value(np.array([9.0, *range(9)])) == 1 / 10
    assert p_value(np.zeros(10)) == 1
