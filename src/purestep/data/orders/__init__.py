"""Orders: a sampler is a pure map from (epoch, position) to index.

An order holds no position, so nothing needs to be drawn, stored or replayed to know what stands at one: the state of
a run through the data is two integers, and neither workers nor ranks can change the order.

>>> order = shuffled(1_000_000_000_000, seed=0)
>>> order(3, 5)                          # the sixth example of the fourth epoch, without drawing the others
>>> order(3, torch.arange(128))          # the first 128 of them
>>> order.shard(rank, world)             # the part of one rank; likewise skip, take, repeat, batched, as_sampler
"""

from purestep.data.orders._map import LONGEST
from purestep.data.orders.algebra import Batches, IndexOrder
from purestep.data.orders.balanced import grouped, stratified
from purestep.data.orders.basic import sequential, shuffled, subset, with_replacement
from purestep.data.orders.mixed import MixedOrder, mixed
from purestep.data.orders.sampler import OrderSampler
from purestep.data.orders.weighted import weighted

__all__ = [
    "LONGEST",
    "Batches",
    "IndexOrder",
    "MixedOrder",
    "OrderSampler",
    "grouped",
    "mixed",
    "sequential",
    "shuffled",
    "stratified",
    "subset",
    "weighted",
    "with_replacement",
]
