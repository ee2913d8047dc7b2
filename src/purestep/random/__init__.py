"""Random numbers as functions of a key: counter-based Philox 4x32-10, in integer operations of torch.

The same key gives the same bits on any device and in any mode (eager, compiled, vmapped), and no generator is read or
advanced. A key is an int64 tensor of shape ``(2,)`` that holds two unsigned 32-bit words. What is drawn is a function
of ``(key, site, place)``: ``site`` tells one call site from another, ``start`` says where in its stream a draw begins.
"""

from purestep.random._examples import examples
from purestep.random.discrete import categorical, permutation, randint
from purestep.random.distributions import bernoulli, exponential, gumbel, normal, truncated_normal
from purestep.random.keys import call_key, fold_in, key, split
from purestep.random.rejection import binomial, gamma, poisson
from purestep.random.words import bits, uniform

__all__ = [
    "bernoulli",
    "binomial",
    "bits",
    "call_key",
    "categorical",
    "examples",
    "exponential",
    "fold_in",
    "gamma",
    "gumbel",
    "key",
    "normal",
    "permutation",
    "poisson",
    "randint",
    "split",
    "truncated_normal",
    "uniform",
]
