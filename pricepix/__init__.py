"""pricepix: OHLCV history in, the binary chart images of "(Re-)Imag(in)ing Price Trends" out.

Names load on first use, so that ``import pricepix`` costs nothing that is not used: torch, dask and
lightning are never imported before something needs them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
