from .cells import GRIDS as GRIDS
from .cells import Cell as Cell
from .published_figures import published as published
from .replication import Replication as Replication
from .replication import replicate as replicate
from .simulated import demo as demo
from .tables import Table as Table
from .training import Training as Training
