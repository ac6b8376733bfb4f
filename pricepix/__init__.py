"""pricepix: OHLCV history in, the binary chart images of "(Re-)Imag(in)ing Price Trends" out.

Names load on first use, so that ``import pricepix`` costs nothing that is not used: torch, dask and
lightning are never imported before something needs them.
"""

import lazy_loader

from pricepix.bars import display as _display
from pricepix.images import explorers as _explorers


def _draw_sample(spec):  # type: ignore[no-untyped-def]
    """Draw a sample of a spec for its page in a notebook. The drawer stands above ImageSpec, so it is handed down."""
    from pricepix.images.sample import sample_image

    return sample_image(spec)


def _explore(images, **options):  # type: ignore[no-untyped-def]
    """Open the page of some images. It stands above all sets of images, so it is handed down too."""
    from pricepix.explore import explore

    return explore(images, **options)


_display.register_drawer(_draw_sample)
_explorers.register_explorer(_explore)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
