"""Why a window has no image: the codes that the kernels write."""

from types import MappingProxyType
from typing import Final

VALID: Final = 0
NO_PRICE: Final = 1
FLAT: Final = 2
INFINITE: Final = 3
MISSING_PRICE: Final = 4
FLAT_FIELD: Final = 5
CONSTANT_VOLUME: Final = 6
FLAT_BARS: Final = 7

REASONS: Final = MappingProxyType(
    {
        VALID: "valid",
        NO_PRICE: "no_price",
        FLAT: "flat",
        INFINITE: "infinite",
        MISSING_PRICE: "missing_price",
        FLAT_FIELD: "flat_field",
        CONSTANT_VOLUME: "constant_volume",
        FLAT_BARS: "flat_bars",
    }
)
"""Name of every reason code; 0 is ``valid``, all others mean that the window has no image."""
