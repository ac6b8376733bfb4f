# %% [markdown]
# # What does a network see?
#
# A network that forecasts returns from charts never sees a price, a date or a name. It sees a small black and
# white picture. Here are the first ones, drawn from a table of daily bars that comes with the package.

# %%
import matplotlib.pyplot as plt

import pricepix as pp

bars = pp.samples.bundled()
bars.head(3)

# %% [markdown]
# A `Panel` checks the bars and applies the split factor. `PanelImages` is every window of 20 bars of every
# stock as an image, drawn when you ask for it. `jkx20` names the image of the paper: 64 by 60 pixels, three
# columns a bar, a moving average, and the volume below.

# %%
panel = pp.Panel.from_table(bars, adjust="multiply", progress=False)
images = pp.PanelImages(panel, "jkx20", horizons=(5, 20))
images

# %% [markdown]
# One image beside the bars that it shows. The middle column of a bar runs from its low to its high, the pixel
# left of it is the open, the one to the right is the close.

# %%
instrument, day = "OAK", "2022-10-14"
image = images.image(instrument, day)
window = panel.select(instruments=[instrument], end=day)
opens, highs, lows, closes = window.bars[-20:, :4].T

figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 3.2), width_ratios=(1.1, 1))
left.vlines(range(20), lows, highs, lw=1.5)
left.hlines(opens, [k - 0.4 for k in range(20)], range(20), lw=1.5)
left.hlines(closes, range(20), [k + 0.4 for k in range(20)], lw=1.5)
left.set(title=f"{instrument}, 20 bars to {day}", xlabel="bar", ylabel="price")
right.imshow(image, cmap="gray", interpolation="none")
right.set(title="what the network sees", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# Both parts hold the same 20 bars. The image has lost the price level, and that is the point: each window is
# scaled to its own highest high and lowest low, so that a stock at 10 and one at 200 look alike.
#
# Twelve more, each with its instrument and last day and the return over the five bars that follow. A network
# is asked to tell one kind from the other; you will find that you cannot, and on these bars nobody can: they
# are a random walk.

# %%
pp.contact_sheet(images, "sheet.png", n=12, columns=4, horizon=5, seed=3)

# %% [markdown]
# Next: [what a spec changes](what-a-spec-changes.md), or the [ten minutes](../quickstart.md) that lead from
# here to a store.
