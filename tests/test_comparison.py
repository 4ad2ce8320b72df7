"""The table and the plot of trainings with several seeds."""

import math

import pytest
from benchmarks.comparison import Entry, plot, table, within_spread
from PIL import Image


def entry(name, *results, **options):
    return Entry(name, list(results), 1234, 2_500_000_000, 0.5, 3 * 2**30, **options)


def test_spread_is_that_of_a_sample():
    assert entry('a', 1.0, 2.0, 6.0).mean == 3
    assert entry('a', 1.0, 2.0, 6.0).spread == pytest.approx(math.sqrt(7))
    assert entry('a', 1.0).spread == 0


@pytest.mark.parametrize(('results', 'equal'), [((0.7, 0.9), True), ((0.1, 0.2), False)])
def test_what_is_as_good_as_the_best(results, equal):
    assert within_spread(entry('a', *results), entry('best', 0.8, 1.0)) is equal


def test_one_seed_says_nothing_of_a_spread():
    assert not within_spread(entry('a', 0.9), entry('best', 0.9))


def test_table():
    entries = [
        entry('best', 0.8, 1.0),
        entry('close', 0.7, 0.9),
        entry('worse', 0.1, 0.1, finite=False),
    ]
    assert list(table(entries, 'AP'))[2:] == [
        '| best | 0.900 ± 0.141 | 1,234 | 2.500 | 0.500 | 3.00 |',
        '| close | 0.800 ± 0.141 = | 1,234 | 2.500 | 0.500 | 3.00 |',
        '| worse | 0.100 ± 0.000 (loss not finite) | 1,234 | 2.500 | 0.500 | 3.00 |',
    ]


def test_plot(tmp_path):
    path = tmp_path / 'plots/operators.png'
    plot([entry('one', 0.8, 1.0), entry('two', 0.7, 0.9)], 'AP', 'Title', path)
    width, height = Image.open(path).size
    assert width > 2 * height
