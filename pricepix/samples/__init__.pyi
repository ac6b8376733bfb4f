from .ashare import simulate_market as simulate_market
from .bundled import bundled as bundled
from .daily import simulate as simulate
from .real_bars import stocks as stocks
