from ._optax import as_optax as as_optax, from_optax as from_optax, FromOptax as FromOptax
from ._optimistix import EqoptMinimiser as EqoptMinimiser
