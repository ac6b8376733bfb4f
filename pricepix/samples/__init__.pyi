from .ashare import simulate_market as simulate_market
from .daily import simulate as simulate
from .real_bars import stocks as stocks
