# %% [markdown]
# # What becomes of a CRSP file?
#
# From a daily file as WRDS delivers it to a factor with its returns by quintile: read, draw, train, score,
# evaluate. The file here is simulated in that shape, with a pattern planted in it, so that the last
# picture has something to show.

# %%
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import torch

import pricepix as pp
from pricepix import factor, train
from pricepix.bars.vendors.crsp import read_crsp

torch.set_num_threads(1)
simulated = pp.samples.simulate(40, 420, seed=2, bayes_accuracy=0.66, start="2010-01-04")
crsp = simulated.select(
    PERMNO=pl.col("instrument").str.slice(1).cast(pl.Int64) + 10000,
    date=pl.col("time").dt.strftime("%Y%m%d").cast(pl.Int64),
    SHRCD=11,
    EXCHCD=1,
    OPENPRC="open",
    ASKHI="high",
    BIDLO="low",
    PRC="close",
    VOL="volume",
    RET=pl.col("total_return").cast(pl.String).fill_null("C"),
    SHROUT=5000,
    CFACPR=1 / pl.col("adjustment_factor"),
)
crsp.write_csv("crsp.csv")
crsp.head(3)

# %% [markdown]
# `read_crsp` knows the conventions: letters in RET, negative prices as midpoints, share and exchange codes,
# market caps. Its report says what it met.

# %%
panel = read_crsp("crsp.csv").panel()
panel

# %% [markdown]
# As the authors of the paper do, prices of a window are rebuilt from returns, so no adjustment factor is
# needed. One image a week: the last trading day.

# %%
spec = pp.ImageSpec.preset("jkx5").replace(rebuild="returns")
daily = pp.PanelImages(panel, spec, horizons=(5,))
weekly = pp.PanelImages(panel, spec, horizons=(5,), every="week", start="2011-01-01")
network = train.CNNSpec("small", 32, 15, (train.ConvBlock(8, pool=(4, 1)), train.ConvBlock(8, pool=(2, 1))))
run = train.fit(
    daily, network, out="run", train=":2010-12-20", validation=0.1, patience=None,
    epochs=3, lr=3e-3, batch_size=128, progress=False,
)  # fmt: skip
cache = factor.score(weekly, run, "factor.zarr", progress=False)
cache

# %%
found = factor.evaluate(cache, panel, horizon=5, quantiles=5, start="2011-01-01", progress=False)
found

# %%
mean = np.array(found.figures["sorts"]["mean_forward_return"])
figure, ax = plt.subplots(figsize=(6.2, 3))
ax.bar(range(1, 6), 1e4 * mean, color="#3d85c6")
ax.axhline(0, lw=0.8, color="#7f8792")
ax.set(xlabel="quintile of the score, 5 is the highest", ylabel="mean return over 5 days,\nbasis points")
plt.show()

# %% [markdown]
# The bars rise with the score because a pattern was planted, and for no other reason: a Sharpe ratio like
# this one would mean a leak on real data, as the first note says. On a random walk they would lie around
# zero, and the notes under the tiles above are the place to look first on real data: how many dates, which of
# them the network has seen, what died.
#
# With a real file, `pricepix-cli init-config --like jkx` writes this as a configuration, and [Replicating the
# paper](../paper.md) is the whole study. More on [CRSP, Compustat and
# CSMAR](../panel.md#crsp-compustat-and-csmar).
