"""Times and durations to and from text, and the ends of periods."""

from __future__ import annotations

import numpy as np
import pytest

from pricepix.bars.times import (
    DAY_NS,
    EARLIEST,
    LATEST,
    MINUTE_NS,
    NO_TIME,
    as_time,
    duration_ns,
    format_duration,
    format_time,
    format_times,
    period_ends,
    time_range,
)

NEW_YORK = "America/New_York"


def ns(*times: str) -> np.ndarray:
    return np.array(times, "M8[ns]").astype(np.int64)


def test_days_are_written_as_dates_and_other_times_with_their_clock():
    assert format_times(ns("2020-01-02", "2020-01-03"), None) == ["2020-01-02", "2020-01-03"]
    assert format_times(ns("2020-01-02", "2020-01-03T09:35"), None) == [
        "2020-01-02 00:00",
        "2020-01-03 09:35",
    ]
    assert format_times(ns("2020-01-02T14:35"), None, "%H.%M") == ["14.35"]
    assert format_times(ns(), NEW_YORK) == []
    # A missing time has no time of day.
    assert format_times(np.array([NO_TIME, DAY_NS]), "UTC")[1] == "1970-01-02"


def test_the_zone_decides_what_a_day_is():
    midnights = ns("2020-01-02T05:00", "2020-07-02T04:00")
    assert format_times(midnights, NEW_YORK) == ["2020-01-02", "2020-07-02"]
    assert format_times(midnights, "UTC") == ["2020-01-02 05:00", "2020-07-02 04:00"]
    assert format_times(midnights[:1] + MINUTE_NS, NEW_YORK, "%Y-%m-%dT%H:%M%z") == ["2020-01-02T00:01-0500"]
    assert format_time(int(midnights[1]), NEW_YORK) == "2020-07-02 00:00:00-04:00"


@pytest.mark.parametrize(
    ("period", "ends"),
    [
        ("1993:2000", ("1993", "2000")),
        ("2000", ("2000", "2000")),
        ("2000-03:", ("2000-03", None)),
        (" : 2000-03 ", (None, "2000-03")),
        ("2000-02-16 09:35..2000-03", ("2000-02-16 09:35", "2000-03")),
        ("2000-02-16 09:35", ("2000-02-16 09:35", "2000-02-16 09:35")),
        ("2000-02-16 09:35:10", ("2000-02-16 09:35:10", "2000-02-16 09:35:10")),
        (("2000", None), ("2000", None)),
        ([1, 2], (1, 2)),
    ],
    ids=str,
)
def test_ends_of_a_period(period, ends):
    assert period_ends(period) == ends


@pytest.mark.parametrize("period", ["2000:2001:2002", "2000..2001..2002", ("2000",), 5, b"00", None], ids=str)
def test_what_is_not_a_period(period):
    with pytest.raises(ValueError, match="give 'START:END' or"):
        period_ends(period)


def test_a_time_range_holds_both_of_its_ends():
    assert time_range(None, None, None) == (EARLIEST, LATEST)
    first, last = time_range("2020-03", "2020-03", NEW_YORK)
    assert first == as_time("2020-03-01", NEW_YORK)
    assert last == as_time("2020-04-01", NEW_YORK) - 1
    # The clocks went forward.
    assert last - first + 1 == 31 * DAY_NS - 60 * MINUTE_NS


@pytest.mark.parametrize(
    ("ns", "text"),
    [(2 * DAY_NS, "2 d"), (5 * MINUTE_NS, "5 min"), (90 * MINUTE_NS, "90 min"), (3, "3 ns"), (0, "0 ns")],
)
def test_durations_are_written_in_the_largest_whole_unit(ns, text):
    assert format_duration(ns) == text
    assert duration_ns(text) == ns
