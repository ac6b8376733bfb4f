"""The GPU renderer: the CPU's pixels, byte for byte.

Tests of pixels run on a GPU where torch sees one. Elsewhere `make test-gpu-kernel` runs them in two ways that complete
each other: in CUDA's simulator, which interprets every thread of a block, with few and small images; and with the
kernel compiled for the CPU as one thread a block, with all of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types

import numba
import numpy as np
import pytest
from golden_files import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from test_render_properties import spoiled_windows

from pricepix import ImageSpec, Panel, WindowIndex, render_panel, render_windows
from pricepix.render import cuda
from pricepix.render import draw as api
from pricepix.render.cuda import OUTSIDE, CudaRenderer

torch = pytest.importorskip("torch")

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0"
COMPILED = os.environ.get("PRICEPIX_CUDA_ON_CPU") == "1"
WHOLE_FILES = os.environ.get("PRICEPIX_CUDA_GOLDEN") == "all"
on_device = pytest.mark.skipif(
    not SIMULATED and not COMPILED and not torch.cuda.is_available(),
    reason="torch sees no GPU; make test-gpu-kernel runs this on the CPU",
)
OF_THE_STARTER = "about the process that starts this one"
NEEDS_STREAMS = "only a GPU has streams"
on_host = pytest.mark.skipif(SIMULATED or COMPILED, reason=OF_THE_STARTER)
if COMPILED:
    import cuda_on_cpu

    cuda_on_cpu.install()


# ---- golden files


def some(kind, limit):
    """In the simulator one window each of at most `limit` kinds, else all of them."""
    if not SIMULATED or WHOLE_FILES:
        return np.arange(len(kind))
    return np.sort(np.unique(kind, return_index=True)[1])[:: max(1, -(-len(np.unique(kind)) // limit))]


def assert_gpu_draws(case, spec, limit):
    pick = some(case.kind, limit)
    ma = None if case.ma is None else case.ma[pick]
    at_limit = None if case.at_limit is None else case.at_limit[pick]
    renderer = CudaRenderer.from_windows(case.ohlcv[pick], spec, ma, at_limit)
    reason = torch.empty(len(pick), dtype=torch.uint8, device=renderer.device)
    rows = np.arange(1, len(pick) + 1) * spec.lookback - 1
    images = renderer.render(rows, reason=reason).cpu().numpy()
    valid = case.valid[pick]
    assert np.array_equal(reason.cpu().numpy() == 0, valid)
    assert valid.any()
    differs = (images != case.images[pick]).any(axis=(1, 2)) & valid
    assert not differs.any(), f"{case.name}: {case.kind[pick][differs][:5]}"
    assert not images[~valid].any()


@on_device
@pytest.mark.parametrize("bars", [5, 20, 60])
def test_golden_jkx(golden, bars):
    height = {5: 32, 20: 64, 60: 96}[bars]
    for case in cases(f"jkx_{bars}", golden(f"jkx_{bars}")):
        ma = () if case.ma is None else (bars,)
        spec = ImageSpec(bars, height, ma=ma, volume=case.volume)
        assert_gpu_draws(case, spec, 12 if case.volume and ma else 3)


@on_device
@pytest.mark.parametrize("bars", [5, 20])
def test_golden_cnn_for_trading(golden, bars):
    for case in cases(f"cnnft_{bars}", golden(f"cnnft_{bars}")):
        ma = () if case.ma is None else (20,)
        assert_gpu_draws(case, ImageSpec(bars, style="cnn_for_trading", ma=ma, volume=case.volume), 6)


@on_device
@pytest.mark.parametrize("bars", [9, 49])
def test_golden_image_trading(golden, bars):
    (case,) = cases(f"imagetrading_{bars}", golden(f"imagetrading_{bars}"))
    assert_gpu_draws(case, ImageSpec.preset(f"it{bars}").replace(scale="per_field"), 6)


@on_device
@pytest.mark.parametrize("bars", [5, 20, 60])
def test_golden_rebuilt_from_returns(golden, bars):
    file = golden(f"jkx_e2e_{bars}")
    spec = ImageSpec.preset(f"jkx{bars}").replace(rebuild="returns")
    raw = file["raw"]
    n = len(raw) if not SIMULATED or WHOLE_FILES else 4
    panel = Panel.from_arrays(
        *(raw[:, :, field].T for field in range(5)),
        total_return=raw[:, :, 5].T,
        on_bad="keep",
        progress=False,
    )
    renderer = CudaRenderer(panel, spec)
    rows = panel.offsets[1 : n + 1] - 1
    assert np.array_equal(renderer.render(rows).cpu().numpy(), file["img"][:n])


# ---- against the CPU, on made-up windows


def cpu(panel, rows, spec):
    images, reason = np.empty((len(rows), *spec.shape), np.uint8), np.empty(len(rows), np.uint8)
    api.render_rows(panel, rows, spec, images, reason=reason)
    return images, reason


@on_device
@settings(max_examples=8 if SIMULATED else 200)
@given(spoiled_windows(n=3 if SIMULATED else 6))
def test_windows_equal_the_cpu(given_):
    spec, bars, ma, at_limit = given_
    expected = render_windows(bars, spec, ma=ma, at_limit=at_limit)
    renderer = CudaRenderer.from_windows(bars, spec, ma, at_limit)
    rows = np.arange(1, len(bars) + 1) * spec.lookback - 1
    reason = torch.empty(len(bars), dtype=torch.uint8, device=renderer.device)
    images = renderer.render(rows, reason=reason)
    assert np.array_equal(reason.cpu().numpy(), expected.reason)
    assert np.array_equal(images.cpu().numpy(), expected.images)
    assert torch.equal(renderer.reasons(rows), reason)


@pytest.fixture(scope="module")
def panel():
    """Two instruments with missing bars and fields, limit flags and returns."""
    rng = np.random.default_rng(5)
    n = 700 if SIMULATED else 6000
    close = 1000 + np.cumsum(rng.integers(-8, 9, (n, 2)), axis=0)
    open_ = close + rng.integers(-8, 9, close.shape)
    high = np.maximum(open_, close) + rng.integers(0, 9, close.shape)
    low = np.minimum(open_, close) - rng.integers(0, 9, close.shape)
    fields = [np.maximum(x, 1) * 0.01 for x in (open_, high, low, close)]
    fields.append(rng.integers(0, 60, close.shape) * 100.0)
    for values in fields:
        values[rng.random(close.shape) < 0.004] = np.nan
    for values in fields[:4]:
        values[100:360, 1] = 10.0
    flags = {f"{way}_limit": rng.random(close.shape) < 0.01 for way in ("up", "down")}
    total_return = rng.normal(0, 0.02, close.shape)
    return Panel.from_arrays(*fields, total_return=total_return, **flags, on_bad="keep", progress=False)


SPECS = {
    **ImageSpec.presets(),
    "per_field": ImageSpec.preset("it9").replace(scale="per_field"),
    "pixel, two averages": ImageSpec.preset("jkx20").replace(chart="pixel", ma=(5, 20)),
    "three averages, no volume": ImageSpec(20, 50, ma=(2, 5, 30), ma_warmup="omit"),
    "merged": ImageSpec(60, 64, ma=(60, 30), volume=True, aggregate=3),
    "rebuilt": ImageSpec.preset("jkx20").replace(rebuild="returns"),
    "rebuilt and merged": ImageSpec(20, 40, ma=(10,), volume=True, aggregate=2, rebuild="returns"),
    "tall: in strips": ImageSpec(66, 512, ma=(20,), volume=True),
    "long: in strips": ImageSpec(250, 130, volume=True, style="image_trading"),
    "one bar": ImageSpec(1, 7, volume=True),
    "smaller than a word": ImageSpec(1, 2),
}


@on_device
@pytest.mark.parametrize("name", SPECS)
def test_panels_equal_the_cpu(panel, name):
    spec = SPECS[name]
    rng = np.random.default_rng(1)
    ends = [
        np.arange(a + spec.lookback - 1, b)
        for a, b in zip(panel.offsets[:-1], panel.offsets[1:], strict=True)
    ]
    rows = rng.permutation(np.concatenate(ends))[: 2 if SIMULATED else 5000]
    # The first window of an instrument, and the last; one twice.
    rows = np.concatenate([rows, [ends[1][0], ends[1][-1], ends[1][0]]])
    images, reason = cpu(panel, rows, spec)
    renderer = CudaRenderer(panel, spec)
    got = torch.full((len(rows),), 77, dtype=torch.uint8, device=renderer.device)
    assert np.array_equal(renderer.render(rows, reason=got).cpu().numpy(), images)
    assert np.array_equal(got.cpu().numpy(), reason)


@on_device
@pytest.mark.parametrize("name", ["it9", "jkx5", "smaller than a word"])
def test_floating_images_are_the_pixels_normalised(panel, name):
    spec = SPECS[name]
    rows = np.arange(400, 403) if spec.lookback > 1 else np.arange(400, 411)
    renderer = CudaRenderer(panel, spec)
    pixels = renderer.render(rows)
    assert pixels.shape == (len(rows), *spec.shape)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        expected = ((pixels.double() / 255 - 0.07) / 0.3).to(dtype)[:, None]
        plain = renderer.render(rows, dtype=dtype, mean=0.07, std=0.3)
        last = renderer.render(rows, dtype=str(dtype), mean=0.07, std=0.3, channels_last=True)
        assert plain.dtype == last.dtype == dtype
        assert torch.equal(plain, expected)
        assert torch.equal(last, expected)
        assert plain.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(renderer.render(rows, dtype=dtype), (pixels / 255).to(dtype)[:, None])


@on_device
@settings(max_examples=5 if SIMULATED else 50)
@given(st.integers(1, 9), st.sampled_from(["it9", "one bar", "smaller than a word"]), st.integers(0, 3))
def test_nothing_is_written_beside_the_output(panel, n, name, size):
    """Batches of any length, in memory that others own around it; every pixel is written."""
    spec = SPECS[name]
    dtype = [torch.uint8, torch.bfloat16, torch.float16, torch.float32][size]
    rows = np.arange(350, 350 + n)
    renderer = CudaRenderer(panel, spec)
    length = n * spec.height * spec.width
    around = torch.full((length + 32,), 119, dtype=dtype, device=renderer.device)
    shape = (n, *spec.shape) if dtype == torch.uint8 else (n, 1, *spec.shape)
    out = around[16 : 16 + length].view(shape)
    assert renderer.render(rows, dtype=dtype, out=out) is out
    assert (around[:16] == 119).all()
    assert (around[16 + length :] == 119).all()
    expected = torch.from_numpy(cpu(panel, rows, spec)[0]).reshape(shape)
    expected = expected if dtype == torch.uint8 else (expected / 255).to(dtype)
    assert torch.equal(out.cpu(), expected)


@on_device
def test_an_index_draws_as_on_the_cpu(panel):
    spec = ImageSpec.preset("jkx5")
    windows = WindowIndex.from_panel(panel, spec)[40:52]
    images = CudaRenderer(panel, "jkx5").render(windows.row)
    assert np.array_equal(images.cpu().numpy(), render_panel(panel, windows))


@on_device
def test_rows_come_in_many_ways(panel):
    renderer = CudaRenderer(panel, "jkx5")
    rows = np.arange(300, 312)
    expected = renderer.render(rows[::3])
    for same in (rows[::3].astype(np.int32), rows[::3].tolist(), torch.from_numpy(rows[::3].copy())):
        assert torch.equal(renderer.render(same), expected)
    assert torch.equal(renderer.render(torch.from_numpy(rows).to(renderer.device)[::3]), expected)
    nothing = renderer.render(np.empty(0, np.int64))
    assert nothing.shape == (0, 32, 15)
    assert renderer.render([], dtype="bfloat16").shape == (0, 1, 32, 15)
    assert renderer.reasons([]).shape == (0,)


@on_device
def test_rows_on_the_device_that_end_no_window_are_blank(panel):
    spec = ImageSpec.preset("jkx5").replace(ma=())
    second, n = int(panel.offsets[1]), int(panel.offsets[-1])
    rows = torch.tensor([-1, 3, 4, second - 1, second, second + 3, second + 4, n - 1, n, 1 << 40])
    ends_one = [False, False, True, True, False, False, True, True, False, False]
    for made in (spec, spec.replace(rebuild="returns")):
        renderer = CudaRenderer(panel, made)
        there = rows.to(renderer.device)
        reason = renderer.reasons(there).cpu().numpy()
        assert (reason != OUTSIDE).tolist() == ends_one
        images = renderer.render(there).cpu().numpy()
        assert images.any(axis=(1, 2)).tolist() == (reason == 0).tolist()
        assert (reason[ends_one] == 0).any()


@on_device
def test_bad_input_is_named(panel):
    renderer = CudaRenderer(panel, "jkx5")
    n = int(panel.offsets[-1])
    with pytest.raises(ValueError, match=rf"2 rows end no window of 5 bars .* of {n} rows, first \[3, {n}\]"):
        renderer.render(np.array([3, 50, n]))
    with pytest.raises(TypeError, match="rows are float64, expected int64"):
        renderer.render(np.array([3.0]))
    with pytest.raises(ValueError, match=r"rows have shape \(1, 1\)"):
        renderer.render(np.array([[50]]))
    with pytest.raises(TypeError, match=r"rows are torch.int32 \(1,\), expected int64 \(b,\)"):
        renderer.render(torch.tensor([50], dtype=torch.int32, device=renderer.device))
    names = "'uint8', 'bfloat16', 'float16', 'float32'"
    with pytest.raises(TypeError, match=f"dtype='float64' cannot be rendered: choose one of {names}"):
        renderer.render([50], dtype="float64")
    with pytest.raises(ValueError, match="belong to floating images"):
        renderer.render([50], channels_last=True)
    with pytest.raises(ValueError, match="cannot normalise"):
        renderer.render([50], dtype="float32", std=0.0)
    for out in (torch.empty((1, 32, 15)), torch.empty((2, 32, 15), dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"out is .*; expected torch.uint8 \(1, 32, 15\)"):
            renderer.render([50], out=out.to(renderer.device))
    odd = torch.empty(481, dtype=torch.uint8, device=renderer.device)[1:].view(1, 32, 15)
    with pytest.raises(ValueError, match="an address that 8 divides"):
        renderer.render([50], out=odd)
    with pytest.raises(ValueError, match=r"reason is torch.int64 \(1,\).*expected uint8 \(1,\)"):
        renderer.render([50], reason=torch.zeros(1, dtype=torch.int64, device=renderer.device))


@on_device
def test_the_kernel_sees_no_memory_that_is_not_held(panel, monkeypatch):
    """What `launch` is given as a tensor it keeps for its stream; so nothing reaches the kernel in another way."""
    given = []
    launch = cuda._Gpu.launch

    def listening(gpu, shape, *arguments):
        given.append(arguments)
        launch(gpu, shape, *arguments)

    monkeypatch.setattr(cuda._Gpu, "launch", listening)
    for spec in (ImageSpec.preset("jkx5"), ImageSpec(5, rebuild="returns")):
        renderer = CudaRenderer(panel, spec)
        rows = torch.tensor([50, 60], device=renderer.device)
        renderer.render(rows)
        renderer.render(rows, dtype="bfloat16")
        renderer.reasons(rows)
    assert len(given) == 6
    for arguments in given:
        held = [each for each in arguments if isinstance(each, cuda._DeviceArray)]
        # Table, states, rows; words and pixels of the output; reasons. The rest are numbers.
        assert len(held) == 6
        assert all(isinstance(each, (tuple, np.uint64)) for each in arguments)
        for each in held:
            assert isinstance(each.tensor, torch.Tensor)
            assert _address(each.array) == each.tensor.data_ptr()


def _address(array):
    if SIMULATED or COMPILED:
        return np.asarray(array).ctypes.data
    return array.device_ctypes_pointer.value


@on_device
@pytest.mark.skipif(SIMULATED or COMPILED, reason=NEEDS_STREAMS)
@pytest.mark.parametrize("rebuild", [None, "returns"])
def test_memory_is_kept_until_another_stream_has_drawn(panel, rebuild):
    spec = ImageSpec.preset("jkx20").replace(rebuild=rebuild)
    rows = np.arange(400, 600)
    renderer = CudaRenderer(panel, spec)
    renderer.render(rows)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1 << 28)
        images = renderer.render(rows)
    del renderer
    # Memory of the same sizes, on the stream where the tables were made.
    rubbish = [torch.full((1 << shift,), 255, dtype=torch.uint8, device="cuda") for shift in range(10, 24)]
    stream.synchronize()
    assert np.array_equal(images.cpu().numpy(), cpu(panel, rows, spec)[0])
    del rubbish


# ---- what a process without a GPU says


@on_host
def test_without_a_gpu_the_error_says_so(make_walk, monkeypatch):
    panel = Panel.from_arrays(*make_walk(30).T[:, :, None], progress=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"torch .* sees no GPU.*on the CPU, use render_panel"):
        CudaRenderer(panel, "jkx5")
    monkeypatch.setitem(sys.modules, "numba.cuda", None)
    monkeypatch.delattr(numba, "cuda", raising=False)
    with pytest.raises(ImportError, match=r'needs Numba.s CUDA target: pip install "pricepix\[cuda\]"'):
        CudaRenderer(panel, "jkx5")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'needs torch: pip install "pricepix\[cuda\]"'):
        CudaRenderer(panel, "jkx5")


@on_host
def test_a_launch_keeps_its_memory_for_the_stream():
    """Torch, Numba and the kernel stand in for those of a GPU: what is asked of them, and in which order."""
    done = []

    class Tensor:
        def __init__(self, name):
            self.name = name

        def record_stream(self, stream):
            done.append(f"{self.name} for stream {stream.cuda_stream}")

    class Kernel:
        def __getitem__(self, shape):
            return lambda *arguments: done.append((shape, arguments))

    for handle in (0, 7):
        done.clear()
        gpu = cuda._Gpu.__new__(cuda._Gpu)
        gpu.simulated, gpu.device = False, torch.device("cuda", 1)
        streams = {torch.device("cuda", 1): types.SimpleNamespace(cuda_stream=handle)}
        gpu.torch = types.SimpleNamespace(cuda=types.SimpleNamespace(current_stream=streams.__getitem__))
        gpu._cuda = types.SimpleNamespace(
            external_stream=lambda of: of, legacy_default_stream=lambda: "legacy"
        )
        gpu._kernels = types.SimpleNamespace(draw=Kernel())
        gpu.launch(
            (300, 64, 1000), cuda._DeviceArray(Tensor("table"), "a"), 5, cuda._DeviceArray(Tensor("out"), "b")
        )
        assert done[0] == ((300, 64, handle or "legacy", 1000), ("a", 5, "b"))
        assert done[1:] == [f"table for stream {handle}", f"out for stream {handle}"]


@on_host
def test_a_gpu_has_one_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(numba.cuda, "is_available", lambda: True)
    second = torch.device("cuda", 1)
    for name in ("cuda", "cuda:1", 1, None, second, torch.device("cuda")):
        assert cuda.gpu_of(name) == second
    assert cuda.gpu_of("cuda:0") == cuda.gpu_of(0) == torch.device("cuda", 0) != second
    with pytest.raises(ValueError, match="device='cpu' is not a GPU"):
        cuda.gpu_of("cpu")
    monkeypatch.setattr(numba.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="torch sees cuda:1, but Numba's CUDA target does not"):
        cuda.gpu_of("cuda")


@on_host
def test_missing_fields_and_wrong_windows_are_named(make_walk):
    panel = Panel.from_arrays(*make_walk(30).T[:, :, None], progress=False)
    with pytest.raises(ValueError, match="needs total returns, but the panel has no optional fields"):
        CudaRenderer(panel, ImageSpec(5, rebuild="returns"))
    with pytest.raises(ValueError, match=r"ohlcv has shape \(2, 4, 5\), expected \(N, 5, 5\)"):
        CudaRenderer.from_windows(np.ones((2, 4, 5)), "jkx5")
    with pytest.raises(ValueError, match="use CudaRenderer"):
        CudaRenderer.from_windows(np.ones((2, 5, 5)), ImageSpec(5, rebuild="returns"))


# ---- the arithmetic of the compiled kernel


@pytest.fixture
def compile_ptx(monkeypatch):
    """Function from a kernel, its signature and an architecture to PTX."""
    if SIMULATED or COMPILED:
        pytest.skip(OF_THE_STARTER)
    cuda = pytest.importorskip("numba.cuda")
    from numba.cuda import dispatcher

    def compile_for(kernel, signature, architecture):
        # A machine without a driver has no current device to ask for its architecture.
        device = types.SimpleNamespace(compute_capability=architecture)
        monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
        return cuda.compile_ptx(kernel, signature, cc=architecture)[0]

    try:
        compile_for(lambda x: None, numba.void(numba.float64), (8, 0))
    except Exception as error:
        pytest.skip(
            f"NVVM does not run here ({type(error).__name__}): install a CUDA toolkit or pricepix[cuda]"
        )
    return compile_for


def fusible(ptx):
    """Products in float64 that a later compiler may join with a sum: PTX allows it where they meet directly."""
    products = set(re.findall(r"mul(?:\.rn)?\.f64\s+(%fd\d+)", ptx))
    moves = re.findall(r"mov\.(?:f64|b64)\s+(%fd\d+), (%fd\d+);", ptx)
    grown = True
    while grown:
        more = {to for to, source in moves if source in products} - products
        products |= more
        grown = bool(more)
    sums = re.findall(r"(?:add|sub)(?:\.rn)?\.f64\s+%fd\d+, (\S+), (\S+);", ptx)
    return [pair for pair in sums if products & set(pair)]


def kernel_for(pixel):
    """The kernel, and its signature for a size of pixel; every spec is drawn by the same."""
    from numba import float64, int64, uint8, uint64

    from pricepix.render import cuda_kernels

    params = numba.typeof(api.draw_params(ImageSpec.preset("jkx20")))
    plan = numba.typeof(cuda_kernels.Plan(*range(7)))
    pixels = getattr(numba, pixel)[::1]
    signature = numba.void(
        float64[:, ::1],
        uint8[::1],
        int64[::1],
        params,
        plan,
        uint64,
        uint64,
        uint64[::1],
        pixels,
        uint8[::1],
    )
    return cuda_kernels.draw.py_func, signature


@pytest.mark.parametrize("architecture", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("pixel", ["uint8", "uint16", "uint32"])
def test_no_product_is_fused_with_a_sum(compile_ptx, architecture, pixel):
    ptx = compile_ptx(*kernel_for(pixel), architecture)
    assert f".target sm_{architecture[0]}{architecture[1]}" in ptx
    assert "div.rn.f64" in ptx
    assert "mul.f64" in ptx or "mul.rn.f64" in ptx
    assert "cvt.rni" in ptx
    assert not re.search(r"fma\.\w+\.f64", ptx)
    assert not re.search(r"div\.(approx|full)|rcp\.", ptx)
    assert fusible(ptx) == []


@pytest.mark.parametrize("pixel", ["uint8", "uint16", "uint32"])
def test_the_kernel_fits_into_registers(compile_ptx, tmp_path, pixel):
    """What docs/gpu.md says of it; the number of registers decides how many images are drawn at once."""
    assembler = shutil.which("ptxas")
    if assembler is None:
        pytest.skip("there is no ptxas: install a CUDA toolkit")
    path = tmp_path / "kernel.ptx"
    path.write_text(compile_ptx(*kernel_for(pixel), (9, 0)))
    made = subprocess.run(
        [assembler, "-v", "-arch=sm_90", str(path), "-o", str(tmp_path / "kernel.cubin")],
        capture_output=True,
        text=True,
        check=False,
    )
    report = made.stdout + made.stderr
    if "Unsupported .version" in report:
        pytest.skip("ptxas is of an older CUDA than pricepix[cuda]")
    assert made.returncode == 0, report
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
    assert int(re.search(r"Used (\d+) registers", report)[1]) <= 80, report


def test_a_bar_is_asked_for_at_once(compile_ptx):
    """Prices and volume are all loaded before the first of them is compared: they wait for memory together."""
    ptx = compile_ptx(*kernel_for("uint8"), (9, 0))
    at_once = 0
    for block in re.split(r"^\$?\w+:", ptx, flags=re.MULTILINE):
        before = re.split(r"setp\.\w+\.f64", block)[0]
        at_once = max(at_once, len(re.findall(r"ld\.global\.[bf]64", before)))
    assert at_once >= 5


def test_a_product_and_a_sum_would_be_fused(compile_ptx):
    """That the test above can fail: this compiler does join the two where nothing stands between."""

    def kernel(x):
        x[0] = x[1] * x[2] + x[3]

    ptx = compile_ptx(kernel, numba.void(numba.float64[::1]), (8, 0))
    assert re.search(r"fma\.rn\.f64", ptx)
    assert fusible("mul.f64 %fd3, %fd1, %fd2;\nmov.f64 %fd9, %fd3;\nadd.f64 %fd4, %fd5, %fd9;")
    assert not fusible("mul.f64 %fd3, %fd1, %fd2;\nadd.f64 %fd4, %fd5, %fd1;")
