"""ImageSpec: what can be drawn, what is refused and how that is said, and a digest that never moves."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricepix import ImageSpec
from pricepix.spec import MAX_BARS, MAX_HEIGHT, MAX_REACH

# Written down once. A digest stands in every store, cache and checkpoint: if one of these moves, all that was
# ever made with the spec is orphaned.
DIGESTS = {
    "jkx5": "d35b2091027c1df129d4104e664cfdb3",
    "jkx20": "2a016556a42a998a8934f9b62b12d8ef",
    "jkx60": "1cb8bc41aaf96e0887daa10eeb1fdb79",
    "it9": "d66dad34040cc0cdd0ddab7dc72985db",
    "it49": "c751e5131e39bdb0684faf4fd06a78cb",
    "cnnft5": "9b2e3c3280f280db73960131a099ada2",
    "cnnft20": "4f3c25255a2c358b00e46715563d25d8",
}
EVERY_FIELD_SET = {
    "lookback": 60,
    "height": 77,
    "style": "jkx",
    "chart": "pixel",
    "ma": (9, 30),
    "ma_warmup": "omit",
    "volume": True,
    "aggregate": 3,
    "scale": "joint",
    "rebuild": "returns",
    "max_missing": 4,
}
EVERY_FIELD_SET_DIGEST = "13ba6bfc1205f7c8a768c95d9463edbb"


# ---- presets


@pytest.mark.parametrize(
    ("name", "shape", "style", "ma", "volume"),
    [
        ("jkx5", (32, 15), "jkx", (5,), True),
        ("jkx20", (64, 60), "jkx", (20,), True),
        ("jkx60", (96, 180), "jkx", (60,), True),
        ("it9", (27, 27), "image_trading", (), False),
        ("it49", (147, 147), "image_trading", (), False),
        ("cnnft5", (32, 15), "cnn_for_trading", (20,), True),
        ("cnnft20", (64, 60), "cnn_for_trading", (20,), True),
    ],
)
def test_presets_are_the_published_images(name, shape, style, ma, volume):
    spec = ImageSpec.preset(name)
    assert (spec.shape, spec.style, spec.ma, spec.volume) == (shape, style, ma, volume)
    assert spec.width == 3 * spec.bars == 3 * spec.lookback
    assert (spec.scale, spec.chart, spec.rebuild, spec.aggregate) == ("joint", "bar", None, 1)
    assert ImageSpec.presets()[name] == spec == ImageSpec.of(name) == ImageSpec.of(spec)


def test_all_presets_are_known_by_name():
    assert set(ImageSpec.presets()) == set(DIGESTS)


@pytest.mark.parametrize(
    ("name", "nearest"), [("jkx_20", "jkx20"), ("JKX20", "jkx20"), ("it-49", "it49"), ("cnnft", "cnnft5")]
)
def test_unknown_preset_names_the_nearest(name, nearest):
    with pytest.raises(
        ValueError, match=rf"no preset '{name}'; did you mean '{nearest}'\? Choose from jkx5, "
    ):
        ImageSpec.preset(name)
    with pytest.raises(ValueError, match="no preset"):
        ImageSpec.of(name)


def test_preset_like_nothing_lists_all():
    with pytest.raises(ValueError, match=r"no preset ''; choose from jkx5, jkx20, .*cnnft20$"):
        ImageSpec.preset("")


# ---- every field refuses what it cannot mean, and says so

WHOLE = "give a whole number"
REFUSED = [
    ({"lookback": 0}, r"lookback=0: give a whole number from 1 to "),
    ({"lookback": -5}, "lookback=-5: give a whole number from 1 to"),
    ({"lookback": MAX_REACH + 1}, f"give a whole number from 1 to {MAX_REACH:,}"),
    ({"lookback": 20.0}, f"lookback=20.0: {WHOLE}"),
    ({"lookback": "20"}, f"lookback='20': {WHOLE}"),
    ({"lookback": True}, f"lookback=True: {WHOLE}"),
    ({"lookback": None}, f"lookback=None: {WHOLE}"),
    ({"lookback": np.float64(20)}, WHOLE),
    ({"lookback": MAX_BARS + 1, "height": 50}, rf"draws {MAX_BARS + 1} bars, more than the {MAX_BARS}"),
    ({"lookback": 7}, r"no standard height for lookback=7 \(standard ones: 5 bars: 32, 20 bars: 64"),
    ({"height": 1}, rf"height=1 cannot be drawn without volume: choose 2 to {MAX_HEIGHT} rows"),
    ({"height": 4, "volume": True}, r"height=4 cannot be drawn with volume: choose 5 to"),
    ({"height": -3}, "height=-3 cannot be drawn"),
    ({"height": MAX_HEIGHT + 1}, "cannot be drawn"),
    ({"height": 64.0}, f"height=64.0: {WHOLE}"),
    ({"height": False}, f"height=False: {WHOLE}"),
    ({"height": None}, f"height=None: {WHOLE}"),
    (
        {"style": "jxk"},
        r"style='jxk' is not known \(did you mean 'jkx'\?\): choose one of 'jkx', ",
    ),
    ({"style": ["jkx"]}, "is not known"),
    ({"style": None}, "style=None is not known"),
    ({"chart": "candle"}, "chart='candle' is not known: choose one of 'bar', 'pixel'"),
    (
        {"chart": "pixel", "style": "image_trading"},
        "chart='pixel' belongs to style 'jkx', not to",
    ),
    ({"chart": "pixel", "style": "cnn_for_trading"}, "use chart='bar'"),
    ({"ma": 20}, r"ma=20 is not a tuple of windows: give e.g. ma=\(20,\)"),
    ({"ma": "20"}, "ma='20' is not a tuple of windows"),
    ({"ma": None}, r"ma=None is not a tuple of windows.*ma=\(\) for none"),
    ({"ma": (20, 0)}, "ma=0: give a whole number from 1 to"),
    ({"ma": (10**12,), "ma_warmup": "omit"}, "give a whole number from 1 to"),
    ({"ma": (20.0,)}, f"ma=20.0: {WHOLE}"),
    ({"ma": (5, 20, 5)}, r"ma=\(5, 5, 20\) names a window twice"),
    ({"ma_warmup": "skip"}, "ma_warmup='skip' is not known: choose one of 'drop', 'omit'"),
    ({"volume": 1}, "volume=1 is not True or False"),
    ({"volume": "yes"}, "volume='yes' is not True or False"),
    ({"aggregate": 0}, "aggregate=0: give a whole number from 1 to"),
    ({"aggregate": 3}, "aggregate=3 does not divide lookback=20"),
    ({"aggregate": 2, "ma": (5,)}, "ma window 5 is not a multiple of aggregate=2"),
    ({"scale": "log"}, "scale='log' is not known: choose one of 'joint', 'per_field'"),
    ({"scale": "per_field"}, "scale='per_field' belongs to style 'image_trading', not to 'jkx'"),
    (
        {"scale": "per_field", "style": "image_trading", "ma": (5,)},
        "draws neither moving averages nor volume",
    ),
    ({"scale": "per_field", "style": "image_trading", "volume": True}, "use ma=.* or scale='joint'"),
    ({"rebuild": "return"}, r"rebuild='return' is not known \(did you mean 'returns'\?\)"),
    ({"rebuild": False}, "rebuild=False is not known: choose one of None, 'returns'"),
    ({"max_missing": -1}, "max_missing=-1: give a whole number of at least 0"),
    ({"max_missing": 0.5}, f"max_missing=0.5: {WHOLE}"),
    (
        {"style": "cnn_for_trading", "volume": True, "height": 48},
        "only for heights 32 and 64, not for ",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_refuses_and_says_why(values, message):
    with pytest.raises(ValueError, match=message):
        ImageSpec(**{"lookback": 20, **values})
    with pytest.raises(ValueError, match=message):
        ImageSpec.from_dict({"lookback": 20, **values})
    if "lookback" not in values:
        with pytest.raises(ValueError, match=message):
            ImageSpec(20).replace(**values)


def test_every_field_is_refused_somewhere():
    assert {key for values, _ in REFUSED for key in values} == {field.name for field in fields(ImageSpec)}


def test_unknown_field_names_the_nearest():
    with pytest.raises(TypeError, match=r"has no field 'lookbak'; did you mean 'lookback'\? Choose from"):
        ImageSpec.from_dict({"lookbak": 20})
    with pytest.raises(TypeError, match="has no field 'heigth'; did you mean 'height'"):
        ImageSpec(20).replace(heigth=64)


@pytest.mark.parametrize(
    ("given_", "error"), [(None, TypeError), (20, TypeError), ([("lookback", 20)], TypeError)]
)
def test_spec_from_something_else(given_, error):
    with pytest.raises(error, match="spec must be an ImageSpec, a preset's name or a dict, not "):
        ImageSpec.of(given_)
    with pytest.raises(error, match="is built from a dict of fields, not from "):
        ImageSpec.from_dict(given_)


def test_dict_without_a_lookback():
    with pytest.raises(ValueError, match=r"needs lookback; got only \['height'\]"):
        ImageSpec.from_dict({"height": 32})


# ---- what follows from the fields


@pytest.mark.parametrize(
    ("values", "bars", "shape", "history"),
    [
        ({"lookback": 20}, 20, (64, 60), 0),
        ({"lookback": 20, "ma": (5, 20)}, 20, (64, 60), 19),
        ({"lookback": 20, "ma": (20,), "rebuild": "returns"}, 20, (64, 60), 20),
        ({"lookback": 60, "ma": (60,), "aggregate": 3}, 20, (96, 60), 57),
        ({"lookback": 60, "ma": (60,), "aggregate": 3, "rebuild": "returns"}, 20, (96, 60), 60),
        ({"lookback": 60, "height": 64, "aggregate": 20}, 3, (64, 9), 0),
        ({"lookback": 9, "style": "image_trading"}, 9, (27, 27), 0),
        ({"lookback": 18, "style": "image_trading", "aggregate": 2}, 9, (27, 27), 0),
        ({"lookback": 1, "height": 2}, 1, (2, 3), 0),
    ],
)
def test_derived_sizes(values, bars, shape, history):
    spec = ImageSpec(**values)
    assert (spec.bars, spec.shape, spec.history) == (bars, shape, history)
    assert spec.packed_bytes == -(-shape[0] * shape[1] // 8)


def test_numpy_values_become_plain_ones():
    spec = ImageSpec(
        np.int64(20), np.int32(64), ma=[np.int16(20), 5], volume=np.bool_(True), max_missing=np.uint8(3)
    )
    assert spec == ImageSpec(20, 64, ma=(5, 20), volume=True, max_missing=3)
    assert {type(value) for value in spec.to_dict().values()} <= {int, str, bool, list, type(None)}
    assert spec.digest == ImageSpec(20, 64, ma=(5, 20), volume=True, max_missing=3).digest


# ---- identity


def test_equal_specs_are_one_key_and_unequal_ones_are_not():
    spec = ImageSpec(20)
    assert spec == ImageSpec(20, 64)
    assert hash(spec) == hash(ImageSpec(20, 64))
    variants = [{}, {"height": 65}, {"chart": "pixel"}, {"ma": (20,)}, {"ma": (20,), "ma_warmup": "omit"}]
    variants += [{"volume": True}, {"aggregate": 2}, {"rebuild": "returns"}, {"max_missing": 0}]
    variants += [{"max_missing": 1}, {"style": "cnn_for_trading"}, {"style": "image_trading"}]
    variants += [{"style": "image_trading", "scale": "per_field"}, {"lookback": 5, "height": 64}]
    specs = [spec.replace(**changes) for changes in variants]
    assert len(set(specs)) == len({s.digest for s in specs}) == len(variants)


def test_frozen():
    spec = ImageSpec(20)
    with pytest.raises(FrozenInstanceError):
        spec.height = 32


@pytest.mark.parametrize("name", DIGESTS)
def test_digests_never_move(name):
    assert ImageSpec.preset(name).digest == DIGESTS[name]


def test_digest_of_every_field_never_moves():
    assert set(EVERY_FIELD_SET) == {field.name for field in fields(ImageSpec)}
    assert ImageSpec(**EVERY_FIELD_SET).digest == EVERY_FIELD_SET_DIGEST


def test_digest_is_that_of_another_process():
    """Python salts its hashes anew in every process; none of that may reach the digest."""
    code = (
        "from pricepix.spec import ImageSpec\n"
        f"print(ImageSpec.from_dict({EVERY_FIELD_SET!r}).digest)\n"
        "print(*[spec.digest for spec in ImageSpec.presets().values()])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [EVERY_FIELD_SET_DIGEST, *(s.digest for s in ImageSpec.presets().values())]


# ---- round trips


@st.composite
def drawable(draw):
    """Any spec that can be drawn."""
    style = draw(st.sampled_from(["jkx", "cnn_for_trading", "image_trading"]))
    scale = draw(st.sampled_from(["joint", "per_field"])) if style == "image_trading" else "joint"
    k = draw(st.integers(1, 5))
    volume = scale == "joint" and draw(st.booleans())
    heights = (
        st.sampled_from([32, 64]) if style == "cnn_for_trading" and volume else st.integers(5, MAX_HEIGHT)
    )
    ma = draw(st.lists(st.integers(1, 300), max_size=4, unique=True)) if scale == "joint" else []
    return ImageSpec(
        lookback=k * draw(st.integers(1, MAX_BARS)),
        height=draw(heights),
        style=style,
        chart=draw(st.sampled_from(["bar", "pixel"])) if style == "jkx" else "bar",
        ma=[k * n for n in ma],
        ma_warmup=draw(st.sampled_from(["drop", "omit"])),
        volume=volume,
        aggregate=k,
        scale=scale,
        rebuild=draw(st.sampled_from([None, "returns"])),
        max_missing=draw(st.none() | st.integers(0, 99)),
    )


@given(drawable())
def test_round_trips(spec):
    through_json = json.loads(json.dumps(spec.to_dict()))
    for copy in (
        ImageSpec.from_dict(spec.to_dict()),
        ImageSpec.from_dict(through_json),
        ImageSpec.of(through_json),
        pickle.loads(pickle.dumps(spec)),
        spec.replace(),
        eval(repr(spec)),  # the repr is the call that makes it
    ):
        assert copy == spec
        assert hash(copy) == hash(spec)
        assert copy.digest == spec.digest


@given(drawable(), drawable())
def test_digests_are_equal_exactly_where_specs_are(a, b):
    assert (a == b) == (a.digest == b.digest)


def test_replace_keeps_the_rest():
    spec = ImageSpec.preset("jkx20")
    plain = spec.replace(volume=False, ma=())
    assert plain == ImageSpec(20, 64)
    assert spec.volume  # the original is as it was
    assert plain.replace(volume=True, ma=(20,)) == spec


def test_replacing_the_lookback_keeps_the_height():
    """A height is a decision, which replace(lookback=60) does not touch; height=0 decides anew."""
    assert ImageSpec(20).replace(lookback=60).shape == (64, 180)
    assert ImageSpec(20).replace(lookback=60, height=0).shape == (96, 180)


def test_kept_digest_does_not_travel_to_a_variant():
    spec = ImageSpec.preset("jkx20")
    before = spec.digest
    assert spec.replace(volume=False).digest != before
    assert spec.replace(volume=False).replace(volume=True).digest == before
