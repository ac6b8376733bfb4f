"""Pictures small enough to check by eye, and the line of the moving average against Pillow.

In the pictures `#` is ink and the first row is the top. Unless a test says otherwise its prices are the whole
numbers 1..height of the price area, so that price p lies at level p - 1 counted from the bottom.
"""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pricepix import REASONS, ImageSpec, render_windows
from pricepix.render import kernels

NAN = np.nan
INF = np.inf


def art(image) -> str:
    assert np.isin(image, (0, 255)).all()
    return "\n".join("".join("#" if pixel else "." for pixel in row) for row in image)


def picture(text: str) -> str:
    return textwrap.dedent(text).strip()


def render(bars, averages=None, at_limit=None, **fields):
    """Render one window of bars (open, high, low, close[, volume]); image and name of the reason."""
    bars = np.array([(*bar, 1.0)[:5] for bar in bars], dtype=float)
    averages = None if averages is None else np.array(averages, dtype=float).reshape(1, len(bars), -1)
    at_limit = None if at_limit is None else np.array(at_limit, dtype=bool)[None]
    ma = () if averages is None else tuple(range(1, averages.shape[2] + 1))
    k = fields.get("aggregate", 1)
    spec = ImageSpec(lookback=len(bars), ma=tuple(k * n for n in ma), **fields)
    result = render_windows(bars[None], spec, ma=averages, at_limit=at_limit)
    assert result.images.shape == (1, *spec.shape)
    assert result.images.dtype == result.reason.dtype == np.uint8
    return result.images[0], REASONS[int(result.reason[0])]


def draw(*args, **kwargs) -> str:
    image, reason = render(*args, **kwargs)
    assert reason == "valid"
    return art(image)


def refuse(*args, **kwargs) -> str:
    image, reason = render(*args, **kwargs)
    assert reason != "valid"
    assert not image.any()
    return reason


# ---- style jkx: bars


def test_one_bar():
    assert draw([(2, 5, 1, 4)], height=5) == picture("""
        .#.
        .##
        .#.
        ##.
        .#.
    """)


def test_bars_stand_side_by_side():
    assert draw([(2, 5, 1, 4), (4, 4, 3, 3), (3, 3, 3, 3)], height=5) == picture("""
        .#.......
        .####....
        .#..#####
        ##.......
        .#.......
    """)


def test_each_missing_field_takes_its_own_ink_with_it():
    bars = [(1, 5, 1, 5), (NAN, 4, 2, 3), (3, 4, 2, NAN), (NAN, 4, 2, NAN), (3, NAN, 2, 3), (3, 4, NAN, 3)]
    assert draw(bars, height=5) == picture("""
        .##...............
        .#..#..#..#.......
        .#..####..#.......
        .#..#..#..#.......
        ##................
    """)


def test_bar_that_is_not_drawn_still_scales():
    assert draw([(2, 2, 1, 1), (NAN, NAN, 5, 3)], height=5) == picture("""
        ......
        ......
        ......
        ##....
        .##...
    """)


def test_high_below_low_has_no_stem_but_ticks():
    assert draw([(1, 5, 1, 5), (2, 1, 5, 4)], height=5) == picture("""
        .##...
        .#...#
        .#....
        .#.##.
        ##....
    """)


def test_open_and_close_may_leave_the_stem():
    assert draw([(5, 3, 2, 1)], height=5) == picture("""
        ##.
        ...
        .#.
        .#.
        ..#
    """)


def test_ties_go_to_the_even_level():
    # The range is 4 on 3 rows: 2 lies at level 0.5 and goes down to 0, 4 at level 1.5 and goes up to 2.
    assert draw([(1, 5, 1, 5), (2, 2, 2, 2), (4, 4, 4, 4)], height=3) == picture("""
        .##...###
        .#.......
        ##.###...
    """)


def test_sign_of_a_price_means_nothing():
    bars = [(2, 5, 1, 4), (4, 4, 3, 3)]
    negative = [tuple(-p for p in bar) for bar in bars]
    assert draw(negative, [-2, -5], height=5) == draw(bars, [2, 5], height=5)


def test_only_one_price_is_flat_but_two_are_a_picture():
    assert refuse([(NAN, NAN, NAN, 3)], height=5) == "flat"
    # a bar without high and low is not drawn, even if it alone holds the scale
    assert draw([(NAN, NAN, 1, 2)], height=2) == "...\n..."


# ---- style jkx: moving averages


def line(levels, height=7, **fields) -> str:
    """A line of averages over bars that draw nothing, for they lack their high, but hold the scale."""
    bars = [(NAN, NAN, 1, height)] * len(levels)
    return draw(bars, np.array(levels, dtype=float) + 1, height=height, **fields)


def test_level_average():
    assert line([1, 1, 1], height=3) == picture("""
        .........
        .#######.
        .........
    """)


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        (
            1,
            """
            ......
            ......
            ......
            ......
            ......
            ...##.
            .##...
            """,
        ),
        (
            2,
            """
            ......
            ......
            ......
            ......
            ....#.
            ..##..
            .#....
            """,
        ),
        (
            3,
            """
            ......
            ......
            ......
            ....#.
            ...#..
            ..#...
            .#....
            """,
        ),
        (
            6,
            """
            ....#.
            ....#.
            ...#..
            ...#..
            ..#...
            ..#...
            .#....
            """,
        ),
    ],
)
def test_rising_average(to, expected):
    assert line([0, to]) == picture(expected)


def test_falling_average_is_the_rising_one_upside_down_not_mirrored():
    assert line([0, 4], height=5) == picture("""
        ....#.
        ...#..
        ...#..
        ..#...
        .#....
    """)
    assert line([4, 0], height=5) == picture("""
        .#....
        ..#...
        ...#..
        ...#..
        ....#.
    """)


@pytest.mark.parametrize("height", [25, 32, 51, 64, 76, 96])
def test_segment_equals_pillow_for_all_ends(height):
    bottom = height - 1
    ours, theirs = np.zeros((2, height, height, 4), np.uint8)
    for y0 in range(height):
        for y1 in range(height):
            kernels.draw_segment(ours[y1], 0, y0, y1, bottom)
            canvas = Image.new("L", (4, height))
            ImageDraw.Draw(canvas).line((0, y0, 3, y1), fill=255, width=1)
            theirs[y1] = np.asarray(canvas)[::-1]
        assert np.array_equal(ours, theirs), f"from level {y0}"
        ours[:] = 0


def test_average_with_holes():
    # An isolated value inside draws nothing, at the last bar one pixel.
    assert line([2, 2, NAN, 0, NAN, 1, NAN, 0], height=3) == picture("""
        .####...................
        ........................
        ......................#.
    """)


def test_missing_average_leaves_the_bars_alone():
    bars = [(2, 5, 1, 4), (4, 4, 3, 3)]
    assert draw(bars, [NAN, NAN], height=5) == draw(bars, height=5)


def test_average_outside_the_bars_takes_part_in_the_scale():
    assert draw([(2, 2, 2, 2), (2, 2, 2, 2)], [1, 3], height=3) == picture("""
        ....#.
        ######
        .#....
    """)


def test_two_averages():
    assert line([[0, 2], [0, 2]], height=3) == picture("""
        .####.
        ......
        .####.
    """)


# ---- style jkx: volume


def panels(volumes, **fields) -> tuple[str, str]:
    """Price area, which a blank row ends, and volume panel of height 15: 11 + 1 + 3 rows."""
    rows = draw([(1, 11, 1, 11, v) for v in volumes], height=15, volume=True, **fields).split("\n")
    assert set(rows[11]) == {"."}
    return "\n".join(rows[:11]), "\n".join(rows[12:])


def test_volume_bars():
    # Heights are v / 6 * 3: 1, 3 and 5 tie. A positive volume is at least one pixel, 0 and missing are none.
    price, volume = panels([6, 1, 0, NAN, 3, 4, 5, 0.001])
    assert volume == picture("""
        .#......................
        .#...........#..#..#....
        .#..#........#..#..#..#.
    """)
    assert price == draw([(1, 11, 1, 11)] * 8, height=11)


@pytest.mark.parametrize("volumes", [[0, 0], [NAN, NAN], [0, NAN], [1e-320, 0]])
def test_without_volume_the_panel_is_blank(volumes):
    price, volume = panels(volumes)
    assert "#" in price
    assert "#" not in volume


def test_volume_stands_under_a_bar_that_is_not_drawn():
    rows = draw([(1, 3, 1, 3, 1), (*[NAN] * 4, 1)], height=5, volume=True)
    assert rows == picture("""
        .##...
        .#....
        ##....
        ......
        .#..#.
    """)


def test_sign_of_a_volume_means_nothing():
    assert panels([6, -3, 1])[1] == panels([6, 3, 1])[1]


# ---- chart pixel


def test_pixel_chart_keeps_the_ends_of_the_stem():
    bars = [(2, 5, 1, 4), (NAN, 4, 2, NAN), (3, 1, 5, 3), (3, NAN, 1, 3)]
    assert draw(bars, height=5, chart="pixel") == picture("""
        .#.....#....
        ..#.#.......
        ......###...
        ##..#.......
        .#.....#....
    """)


def test_pixel_chart_draws_averages_by_pixels():
    assert line([0, 2, NAN, 1, NAN, 2], height=3, chart="pixel") == picture("""
        ....#...........#.
        ..........#.......
        .#................
    """)


def test_pixel_chart_keeps_the_top_of_the_volume():
    assert panels([6, 1, 0, NAN, 4], chart="pixel")[1] == picture("""
        .#.............
        .............#.
        ....#..........
    """)


# ---- merged bars


def test_merged_bars():
    bars = [(2, 3, 2, 3, 1), (3, 5, 1, NAN, 2), (4, 4, NAN, 4, NAN), (NAN, NAN, 3, 3, 6)]
    merged = [(2, 5, 1, NAN, 3), (4, 4, 3, 3, 6)]
    assert draw(bars, height=5, aggregate=2) == draw(merged, height=5)
    assert draw(bars, height=15, volume=True, aggregate=2) == draw(merged, height=15, volume=True)
    # the average of a merged bar is that at its last bar
    assert draw(bars, [9, 2, 9, 4], height=5, aggregate=2) == draw(merged, [2, 4], height=5)


# ---- style image_trading


def test_image_trading_has_ticks_of_one_pixel():
    assert draw([(2, 5, 1, 4), (4, 4, 3, 3)], height=5, style="image_trading") == picture("""
        .#....
        .####.
        .#..##
        ##....
        .#....
    """)


def test_image_trading_draws_averages_and_volume_when_asked():
    image = draw([(1, 3, 1, 3, 2), (3, 3, 1, 1, 1)], [1, 2], height=5, style="image_trading", volume=True)
    assert image == picture("""
        .####.
        .#.##.
        ###.##
        ......
        .#..#.
    """)


UP_FIRST = [[True, False], [False, False]]
DOWN_LAST = [[False, False], [False, True]]
BOTH = [[False, True], [True, False]]


@pytest.mark.parametrize("scale", ["joint", "per_field"])
def test_flat_window_lies_at_its_limit(scale):
    how = {"height": 6, "style": "image_trading", "scale": scale}
    bars = [(7, 7, 7, 7)] * 2
    at_up = picture("""
        ......
        ......
        ######
        ......
        ......
        ......
    """)
    at_down = picture("""
        ......
        ......
        ......
        ......
        ######
        ......
    """)
    # 3/4 and 1/4 of level 5, truncated
    assert draw(bars, at_limit=UP_FIRST, **how) == at_up
    assert draw(bars, at_limit=DOWN_LAST, **how) == at_down
    assert draw(bars, at_limit=BOTH, **how) == at_up
    assert refuse(bars, at_limit=np.zeros((2, 2)), **how) == "flat"
    assert refuse(bars, **how) == "flat"


def test_what_is_missing_in_a_flat_window_stays_empty():
    bars = [(7, 7, 7, 7), (7, 7, NAN, 7), (NAN, 7, 7, 7)]
    at_limit = [[True, False, False], [False] * 3]
    assert draw(bars, at_limit=at_limit, height=3, style="image_trading") == picture("""
        .........
        ###....##
        .........
    """)


def test_limits_mean_nothing_to_a_window_that_moves_nor_to_jkx():
    bars = [(2, 5, 1, 4), (4, 4, 3, 3)]
    how = {"height": 5, "style": "image_trading"}
    assert draw(bars, at_limit=UP_FIRST, **how) == draw(bars, **how)
    assert refuse([(7, 7, 7, 7)] * 2, at_limit=UP_FIRST, height=5) == "flat"


def test_per_field_scales_each_field_by_itself_and_truncates():
    # levels: open 0 2 4, high 4 2 0, low 0 3 4, close 4 0 3.6; the stems of the later bars vanish
    bars = [(10, 8, 0, 2), (11, 7, 3, 1), (12, 6, 4, 1.9)]
    assert draw(bars, height=5, style="image_trading", scale="per_field") == picture("""
        .##...#..
        .#......#
        .#.#.....
        .#.......
        ##...#...
    """)


# ---- style cnn_for_trading


def test_cnn_for_trading_truncates():
    # The range is 4 on 3 rows: 2 lies at level 0.5, 4 at level 1.5, and both go down.
    assert draw([(1, 5, 1, 5), (2, 4, 2, 4)], height=3, style="cnn_for_trading") == picture("""
        .##...
        .#..##
        ##.##.
    """)


def test_cnn_for_trading_draws_averages_as_dashes():
    bars = [(1, 5, 1, 5), (2, 4, 2, 4)]
    assert draw(bars, [3, 5], height=3, style="cnn_for_trading") == picture("""
        .####.
        ##..##
        ##.##.
    """)
    assert draw(bars, [3, NAN], height=3, style="cnn_for_trading") == picture("""
        .##...
        ##..##
        ##.##.
    """)


COLUMNS_32 = [
    *([7], [*range(7, 32)], [31]),
    *([13], [*range(5), *range(13, 26)], [25]),
    *([19], [*range(2), *range(19, 26)], [25]),
]
COLUMNS_64 = [
    *([13], [*range(13, 64)], [63]),
    *([26], [*range(11), *range(25, 51)], [50]),
    *([38], [*range(5), *range(38, 51)], [50]),
]


@pytest.mark.parametrize(("height", "expected"), [(32, COLUMNS_32), (64, COLUMNS_64)])
def test_cnn_for_trading_with_volume(height, expected):
    # levels of each column; the smallest volume draws nothing, the last is 0.51 of the way to the largest
    bars = [(1, 5, 1, 5, 10), (2.1, 4, 2, 4, 20), (3, 4, 3, 4, 15.1)]
    image, reason = render(bars, height=height, style="cnn_for_trading", volume=True)
    assert reason == "valid"
    assert [np.flatnonzero(column[::-1]).tolist() for column in image.T] == expected


def test_cnn_for_trading_skips_windows_with_many_bars_whose_open_is_their_mean():
    mean, other = (2, 3, 1, 2), (1, 3, 1, 3)
    how = {"height": 32, "style": "cnn_for_trading"}
    assert "#" in draw([mean] + [other] * 4, **how)
    assert refuse([mean] * 2 + [other] * 3, **how) == REASONS[7]


# ---- no picture


ALL_STYLES = [
    {"style": "jkx"},
    {"style": "image_trading"},
    {"style": "image_trading", "scale": "per_field"},
    {"style": "cnn_for_trading"},
]
ONE_SCALE = [how for how in ALL_STYLES if "scale" not in how]


@pytest.mark.parametrize("how", ALL_STYLES)
def test_windows_without_a_picture(how):
    ok, none = (1, 4, 1, 3), (NAN, NAN, NAN, NAN)
    assert refuse([none, none], height=32, **how) == "no_price"
    assert refuse([(2, 2, 2, 2)] * 2, height=32, **how) == "flat"
    for field in range(4):
        for infinity in (INF, -INF):
            bad = list(ok)
            bad[field] = infinity
            assert refuse([ok, bad, none], height=32, **how) == "infinite"


@pytest.mark.parametrize("how", ONE_SCALE)
def test_infinity_counts_only_where_it_is_drawn(how):
    bars = [(1, 4, 1, 3, 2), (2, 4, 1, 3, INF)]
    assert draw(bars, height=32, **how) == draw([bar[:4] for bar in bars], height=32, **how)
    assert refuse(bars, height=32, volume=True, **how) == "infinite"
    assert refuse([bar[:4] for bar in bars], [INF, 2], height=32, **how) == "infinite"


@pytest.mark.parametrize("how", ONE_SCALE)
def test_average_alone_is_no_picture(how):
    assert refuse([(NAN, NAN, NAN, NAN)] * 2, [1, 2], height=32, **how) == "no_price"


@pytest.mark.parametrize("how", [{"style": "jkx"}, {"style": "image_trading"}])
def test_average_that_moves_over_flat_prices_is_a_picture(how):
    assert "#" in draw([(2, 2, 2, 2)] * 2, [1, 2], height=32, **how)


def test_range_too_small_to_scale_is_flat():
    tiny = 5e-324
    assert refuse([(tiny, 2 * tiny, tiny, tiny)], height=32) == "flat"


@pytest.mark.parametrize(
    "how", [{"style": "image_trading", "scale": "per_field"}, {"style": "cnn_for_trading"}]
)
def test_compatibility_styles_need_every_price(how):
    for field in range(4):
        bar = [2.0, 4, 1, 3]
        bar[field] = NAN
        assert refuse([(1, 4, 1, 3), bar], height=32, **how) == "missing_price"


def test_per_field_needs_every_field_to_move():
    bars = [(1, 5, 1, 3), (2, 5, 2, 4)]
    assert refuse(bars, height=32, style="image_trading", scale="per_field") == "flat_field"


def test_cnn_for_trading_needs_volume_that_moves():
    def bars(a, b):
        return [(1, 4, 1, 3, a), (2, 4, 1, 3, b)]

    how = {"height": 32, "style": "cnn_for_trading"}
    for volumes in ((5, 5), (0, 0), (5, NAN)):
        assert refuse(bars(*volumes), volume=True, **how) == "constant_volume"
        assert "#" in draw(bars(*volumes), **how)


def test_codes_of_the_reasons():
    assert REASONS[0] == "valid"
    assert sorted(REASONS) == list(range(8))
    assert len(set(REASONS.values())) == 8
