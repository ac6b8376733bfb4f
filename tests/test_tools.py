"""Commands that look first: estimate, doctor, which-script, sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import pricepix as pp
from pricepix import samples
from pricepix.bars import MarketCache, write_market_cache
from pricepix.cli import main
from pricepix.samples.ashare import simulate_arrays
from pricepix.workflow.doctor import doctor
from pricepix.workflow.estimate import estimate
from pricepix.workflow.which_script import which_script


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def panel():
    return pp.Panel.from_table(samples.simulate(40, 900, seed=2), progress=False, adjust="multiply")


# ---- estimate


@pytest.mark.parametrize("layout", ["uint8", "bits"])
def test_an_estimate_is_near_what_a_build_makes(panel, tmp_path, layout):
    found = estimate(panel, "jkx5", (5, 20), layout=layout)
    store = pp.render_universe(panel, "jkx5", tmp_path / "s", (5, 20), layout=layout, progress=False)
    size = sum(p.stat().st_size for p in (tmp_path / "s").rglob("*") if p.is_file())
    assert found.exact
    assert found.images == len(store)
    assert found.dropped == store.attrs["drop_counts"]
    assert found.sampled < found.images
    # Fewer windows a day lie beside each other in the sample, so that it compresses a little less.
    assert 0.9 * size < found.store_bytes < 1.6 * size
    assert found.seconds > 0
    assert found.fits
    assert json.loads(json.dumps(found.to_dict()))["images"] == len(store)


def test_an_estimate_of_a_sample_counts_the_sample(panel):
    found = estimate(panel, "jkx5", every="week", sample=0.5)
    windows = pp.WindowIndex.from_panel(panel, "jkx5", "week", sample=0.5)
    assert found.images == len(windows)


def test_an_estimate_of_a_market_cache_is_scaled(tmp_path):
    market = simulate_arrays(60, 30, seed=1)
    write_market_cache(tmp_path, market, dtype=np.float64)
    found = estimate(str(tmp_path), "it49", (49,), every="day")
    assert not found.exact
    assert found.instruments == 60
    panel = MarketCache(tmp_path).panel(on_bad="drop_bar")
    windows = pp.WindowIndex.from_panel(panel, "it49", "day")
    assert found.images == pytest.approx(len(windows), rel=0.15)
    assert "about" in str(found)
    assert "market cache" in run("estimate", tmp_path, "--preset", "it49", "--tz", "UTC", code=2)


def test_the_command_reads_a_table(tmp_path):
    table = tmp_path / "bars.parquet"
    run("sample", table)
    text = run("estimate", table, "--preset", "jkx20", "--adjust", "multiply", "--layout", "bits")
    assert "of 12 instruments" in text
    assert "bytes an image" in text
    assert "none of the" in run("estimate", table, "--lookback", 800, "--height", 32, code=1)


def test_too_small_a_disk_is_an_exit_code(tmp_path, monkeypatch):
    from pricepix.workflow import estimate as module

    monkeypatch.setattr(module, "_free", lambda folder: 10)
    run("sample", tmp_path / "bars.csv")
    assert "NOT ENOUGH" in run("estimate", tmp_path / "bars.csv", "--preset", "jkx5", code=1)


# ---- doctor


def test_doctor_names_versions_and_what_is_missing(tmp_path, monkeypatch):
    from pricepix.workflow import doctor as module

    real = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "obstore" else real(name))
    found = doctor(tmp_path)
    parts = found.to_dict()
    assert list(parts) == ["versions", "cpu", "kernels", "disk", "gpu", "optional parts"]
    assert parts["versions"]["pricepix"]["value"] == pp.__version__
    assert parts["optional parts"]["cloud"]["advice"] == "pip install 'pricepix[cloud]'"
    assert "MB/s" in parts["disk"]["writing"]["value"]
    assert "-> pip install 'pricepix[cloud]'" in str(found)
    assert not list(tmp_path.iterdir())
    json.dumps(parts)


def test_every_extra_is_known_to_the_doctor():
    import tomllib
    from pathlib import Path

    from pricepix.workflow import doctor as module

    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())
    extras = set(project["project"]["optional-dependencies"]) - {"all"}
    assert set(module._OPTIONAL) <= extras


def test_doctor_without_a_folder(tmp_path):
    assert "make it first" in run("doctor", "--folder", tmp_path / "none", code=1)
    assert "versions" in run("doctor", "--folder", tmp_path)


# ---- which-script


@pytest.mark.parametrize("name", pp.ImageSpec.presets())
def test_images_of_a_preset_are_known(panel, tmp_path, name):
    spec = pp.ImageSpec.preset(name)
    images = pp.PanelImages(panel, spec, horizons=(5,)).read(slice(0, 20_000, 400))
    np.save(tmp_path / "images.npy", images)
    found = which_script(tmp_path / "images.npy")
    drawn = " and ".join(w for w, on in (("average", spec.ma), ("volume", spec.volume)) if on) or "bars alone"
    assert (spec.style, drawn) in {(c.style, c.drawn) for c in found.possible}
    others = {c.style for c in found.possible} - {spec.style}
    # Without averages and volumes a square image is the same in both styles where opens lie in their bars' range.
    assert others <= {"jkx", "cnn_for_trading"} if spec.style == "image_trading" else not others
    assert name in str(found)


def test_a_scale_for_each_field_is_told(panel):
    spec = pp.ImageSpec(20, height=60, style="image_trading", scale="per_field")
    found = which_script(pp.PanelImages(panel, spec, horizons=(5,)).read(slice(0, 10_000, 200)) // 255)
    assert [c.style for c in found.possible] == ["image_trading scale per_field"]


def test_averages_and_volumes_are_told_apart(panel):
    for ma, volume, drawn in (((20,), False, "average"), ((), True, "volume"), ((), False, "bars alone")):
        spec = pp.ImageSpec(20, height=64, ma=ma, volume=volume)
        found = which_script(pp.PanelImages(panel, spec, horizons=(5,)).read(slice(0, 20_000, 500)))
        assert ("jkx", drawn) in {(c.style, c.drawn) for c in found.possible}
        assert ("jkx", "average and volume") not in {(c.style, c.drawn) for c in found.possible}


def test_images_of_nobody(panel, tmp_path):
    images = pp.PanelImages(panel, "jkx20", horizons=(5,)).read(slice(0, 2000, 100)).copy()
    images[3, 30, 2] = 255 - images[3, 30, 2]
    images[3, 10:20, 5] = 255
    np.save(tmp_path / "images.npy", images)
    text = run("which-script", tmp_path / "images.npy", code=1)
    assert "none of them drew all" in text
    assert "19 of 20" in text
    found = which_script(np.random.default_rng(0).integers(0, 2, (5, 64, 60)))
    assert not found.possible


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((2, 3)), "two rows or more|two values"),
        (np.zeros((2, 64, 61), np.uint8), "three columns a bar"),
        (np.arange(2 * 64 * 60).reshape(2, 64, 60) % 256, "hold 256 values"),
        (np.zeros((0, 64, 60)), "expected images"),
    ],
)
def test_what_is_no_image(array, match):
    if array.shape == (2, 3):
        assert not which_script(array).possible
        return
    with pytest.raises(ValueError, match=match):
        which_script(array)


def test_files_that_are_none(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable"):
        which_script(tmp_path / "x.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a readable"):
        which_script(tmp_path / "objects.npy")
    with pytest.raises(ValueError, match=r"expected an \.npy"):
        which_script(tmp_path / "x.png")


def test_sample_writes_tables(tmp_path):
    for name in ("a.csv", "a.parquet"):
        assert "build-store" in run("sample", tmp_path / name)
        assert pp.Panel.from_table(tmp_path / name, adjust="multiply", progress=False).n_instruments == 12
    assert "neither" in run("sample", tmp_path / "a.txt", code=2)


# ---- completion


def test_commands_choices_presets_and_paths_complete():
    from click.shell_completion import ShellComplete

    def after(*words):
        completer = ShellComplete(main, {}, "pricepix-cli", "_PRICEPIX_CLI_COMPLETE")
        found = completer.get_completions(list(words[:-1]), words[-1])
        return [(item.type, item.value) for item in found]

    assert ("plain", "estimate") in after("est")
    assert after("estimate", "bars.csv", "--layout", "b") == [("plain", "bits")]
    assert after("estimate", "bars.csv", "--preset", "jkx") == [("plain", f"jkx{n}") for n in (5, 20, 60)]
    assert after("verify", "st") == [("file", "st")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_line_gives_a_script(shell):
    code = "import sys; sys.argv[0] = 'pricepix-cli'; from pricepix.cli import main; main(prog_name='pricepix-cli')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_PRICEPIX_CLI_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Couldn't detect Bash" in done.stderr or "not supported for Bash" in done.stderr:
        pytest.skip("no bash to ask for its version")
    assert "pricepix-cli" in done.stdout
    assert f"_PRICEPIX_CLI_COMPLETE={shell}_complete" in done.stdout


def test_tools_speak_json(tmp_path):
    """A line each, whether a program looks at the machine, at bars, or at somebody's images."""

    def told(*words):
        done = CliRunner().invoke(main, ["--json", *map(str, words)])
        assert done.exit_code == 0, done.output
        (line,) = done.stdout.splitlines()
        return json.loads(line)

    bars, images = tmp_path / "bars.parquet", tmp_path / "images.npy"
    assert told("sample", bars) == {"path": str(bars), "bars": 7578}
    found = told("estimate", bars, "--preset", "jkx5", "--adjust", "multiply")
    assert (found["bars"], found["fits"]) == (7578, True)
    panel = pp.Panel.from_table(bars, adjust="multiply", progress=False)
    np.save(images, pp.PanelImages(panel, "jkx5").read(slice(0, 20)))
    found = told("which-script", images)
    assert (found["images"], found["height"], found["width"]) == (20, 32, 15)
    assert found["possible"][0]["style"].startswith("jkx")
    assert told("doctor")["versions"]
    assert told("presets")["jkx20"]["lookback"] == 20
    assert told("init-config", tmp_path / "c.yaml") == {"path": str(tmp_path / "c.yaml")}
    assert told("warm-up", "--part", "bars")["cache"]
