# %% [markdown]
# # What does a day of an A-share look like?
#
# Forty-eight bars of five minutes with a lunch break, a price limit at which trading stops, halts, special
# treatment. Which of these windows become images, and how do they look?

# %%
import matplotlib.pyplot as plt
import numpy as np

import pricepix as pp

market = pp.samples.simulate_market(
    "commoncache", instruments=40, days=12, seed=3, limit=0.10, volatility=0.9
)
market

# %% [markdown]
# A market cache is a folder of memory-mapped arrays, the usual form of such data. `panel()` adjusts prices,
# marks bars at their limit, and masks what may not end a window.

# %%
panel = market.panel()
windows = pp.WindowIndex.from_panel(panel, "it49", "day")
windows

# %% [markdown]
# An image a day: the last 49 bars of every stock. How many of them were at the limit tells a calm day from
# one that got stuck.

# %%
images = pp.PanelImages(panel, "it49", horizons=(), every="day")
stuck = np.zeros(len(images), int)
for k, row in enumerate(images.index.iter_rows(named=True)):
    own = panel.select(instruments=[row["instrument"]])
    end = int(np.searchsorted(own.time, images.time[k]))
    at_limit = own.fields["up_limit"] + own.fields["down_limit"]
    stuck[k] = np.nansum(at_limit[end - 48 : end + 1])

chosen = [*np.flatnonzero(stuck == 0)[:2], *np.argsort(stuck)[::-1][:2]]
figure, axes = plt.subplots(2, 2, figsize=(6.4, 6.8))
for ax, k in zip(axes.flat, chosen, strict=True):
    name, day = images.instruments[images.instrument_index[k]], panel.stamp(int(images.time[k]))[:10]
    ax.imshow(images.read([k])[0], cmap="gray", interpolation="none")
    ax.set(title=f"{name}, {day}\n{stuck[k]} of 49 bars at the limit", xticks=[], yticks=[])
    ax.title.set_fontsize(10)
plt.show()

# %% [markdown]
# Below, a stock that opened at its limit or ran into it: a line at the edge of the picture, and little
# volume. A network will see that tomorrow's first bars often continue, and a backtest will count the gain;
# but nobody could have bought there. `factor.evaluate` leaves out entries at the limit, and counts them.
#
# This market is simulated: prices stick at their limits by construction. What is real are the rules, and what
# they do to an image. More: [market caches, sessions and limits](../sources.md#a-market-cache).
