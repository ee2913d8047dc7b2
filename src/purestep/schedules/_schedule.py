"""The schedule: a formula and its hyperparameters, as one immutable callable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from purestep._checks import integer, listed, near_misses
from purestep.schedules._formula import Formula
from purestep.schedules._steps import as_steps, is_one_step
from purestep.schedules._values import from_plain, hashable, is_constant, same, to_plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Each name's constructor, filled by the decorator. The operators below find theirs here, in `algebra.py`.
CONSTRUCTORS: dict[str, Callable[..., Schedule]] = {}


_BLOCK = 64


class Schedule:
    """A pure function of the step: ``schedule(step)`` is a float64 tensor of the step's shape.

    It is built by a constructor, such as ``cosine(peak=0.1, total_steps=1000)``, and never changes. It is a pytree
    whose leaves are its hyperparameters, so ``torch.func.grad`` and ``torch.vmap`` go through them; its ``repr`` can
    be evaluated back; equal schedules are equal and hash alike; and schedules combine:

    - ``a * b``, ``a + b``, ``a - b``, and the same with a number; ``a / 2``; ``-a``;
    - ``a.then(b, at=n)``: ``a`` before step ``n``, and from there ``b`` on steps counted from ``n``;
    - ``a.shift(n)``, ``a.clamp(min=..., max=...)``, ``a.repeat(every=n, decay=...)``;
    - ``join([a, b, c], at=[n, m])``, ``maximum(a, b)``, ``minimum(a, b)``, functions of ``purestep.schedules``.
    """

    __slots__ = ("_block", "_constant", "_formula", "_values")
    _formula: Formula
    _values: tuple[Any, ...]
    _constant: bool  # no hyperparameter is a tensor
    _block: tuple[int, list[float]] | None  # the values from one step on, last asked for; None: each step alone

    # NumPy's scalars must leave `scalar * schedule` to the schedule, not look for an array in it.
    __array_ufunc__ = None

    def __init__(self, formula: Formula, values: tuple[Any, ...]) -> None:
        object.__setattr__(self, "_formula", formula)
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_constant", is_constant(values))
        object.__setattr__(self, "_block", (-1, []))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"a schedule never changes: cannot assign to {name!r}; replace({name}=...) returns another"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a schedule never changes: cannot delete {name!r}")

    def __call__(self, step: int | Tensor) -> Tensor:
        """Return the value at ``step``, an int or a tensor of any shape on any device, of an integer dtype or float64.

        Defined from step 0 to 2^62. A negative step is a ``ValueError`` (a tensor's values are looked at only eagerly
        and on the CPU), anything but a number of steps a ``TypeError``.
        """
        if self._constant and is_one_step(step):
            return self._looked_up(int(step))
        return self._formula(as_steps(step), self._values)

    def _looked_up(self, step: int) -> Tensor:
        """Return the value at one step, computed with those of its neighbours: a training loop asks for them next, and
        a formula takes as long for 64 steps as for one."""
        block, first = self._block, step - step % _BLOCK
        if block is not None and block[0] != first:
            values = self._block_from(first, step)
            block = None if values is None else (first, values)
            object.__setattr__(self, "_block", block)
        if block is None:
            return self._formula(as_steps(step), self._values)
        return torch.tensor(block[1][step % _BLOCK], dtype=torch.float64, device="cpu")

    def _block_from(self, first: int, step: int) -> list[float] | None:
        """Return the values of the block that begins at ``first``, or ``None`` where the formula is to be asked step by
        step: it looks at its neighbours, or has no value at some step that nobody asked for."""
        try:
            block = torch.arange(first, first + _BLOCK, device="cpu")
            values = self._formula(as_steps(block), self._values).tolist()
            alone = {p: self._formula(as_steps(first + p), self._values).item() for p in (0, step - first, _BLOCK - 1)}
        except Exception:  # whatever a user's formula raises, it raises it again where it is asked for the step alone
            return None
        same = all(math.isclose(a, values[p], rel_tol=1e-12, abs_tol=1e-300) for p, a in alone.items())
        return values if same else None

    @property
    def name(self) -> str:
        """The name of the schedule's constructor."""
        return self._formula.name

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What the schedule was built with, defaults included."""
        return dict(zip(self._formula.names, self._values, strict=True))

    def replace(self, **changes: Any) -> Schedule:
        """Return the schedule with some hyperparameters replaced, and checked again."""
        return self._formula.constructor(**(self.hyperparameters | changes))

    def __add__(self, other: Schedule | float | Tensor) -> Schedule:
        return CONSTRUCTORS["add"](self, other)

    def __radd__(self, other: float | Tensor) -> Schedule:
        return CONSTRUCTORS["add"](other, self)

    def __sub__(self, other: Schedule | float | Tensor) -> Schedule:
        return CONSTRUCTORS["subtract"](self, other)

    def __rsub__(self, other: float | Tensor) -> Schedule:
        return CONSTRUCTORS["subtract"](other, self)

    def __mul__(self, other: Schedule | float | Tensor) -> Schedule:
        return CONSTRUCTORS["multiply"](self, other)

    def __rmul__(self, other: float | Tensor) -> Schedule:
        return CONSTRUCTORS["multiply"](other, self)

    def __truediv__(self, other: float | Tensor) -> Schedule:
        return CONSTRUCTORS["divide"](self, other)

    def __neg__(self) -> Schedule:
        return -1.0 * self

    def then(self, second: Schedule, *, at: int | Tensor) -> Schedule:
        """This schedule before step ``at``; from there ``second``, on steps counted from ``at``."""
        return CONSTRUCTORS["then"](self, second, at=at)

    def shift(self, by: int | Tensor) -> Schedule:
        """This schedule ``by`` steps later, its first value held until then; ``-by`` steps earlier if negative."""
        return CONSTRUCTORS["shift"](self, by)

    def clamp(self, *, min: float | Tensor | None = None, max: float | Tensor | None = None) -> Schedule:
        """This schedule where it lies between ``min`` and ``max``, and the nearer of the two elsewhere."""
        return CONSTRUCTORS["clamp"](self, min=min, max=max)

    def repeat(self, *, every: int | Tensor, decay: float | Tensor = 1.0) -> Schedule:
        """The first ``every`` steps of this schedule, over and over, each time multiplied by another ``decay``."""
        return CONSTRUCTORS["repeat"](self, every=every, decay=decay)

    def __repr__(self) -> str:
        return self._formula.write(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self._formula is other._formula and all(map(same, self._values, other._values))

    def __hash__(self) -> int:
        return hash((self._formula, tuple(map(hashable, self._values))))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._formula.constructor, self._values)

    def to_config(self) -> dict[str, Any]:
        """Return the schedule as plain dicts, lists, numbers and strings, for JSON: see ``from_config``."""
        return {"schedule": self.name} | {name: to_plain(value) for name, value in self.hyperparameters.items()}

    def plot(self, steps: int, *, ax: Axes | None = None, logx: bool = False, logy: bool = False, **line: Any) -> Axes:
        """Draw the values at steps 0 to ``steps`` with matplotlib, and return the axes.

        Some 5000 steps are computed where there are more, the last always among them.

        Args:
            steps: the last step that is drawn.
            ax: where to draw, a new figure by default. Axes that hold a curve already get a legend.
            logx: a logarithmic axis of steps, which begins at step 1.
            logy: a logarithmic axis of values.
            line: what matplotlib's ``Axes.plot`` takes, such as ``color`` and ``linestyle``. The ``label`` is the
                schedule's ``repr`` by default.

        Raises:
            ImportError: matplotlib is not installed.
        """
        integer("steps", steps, minimum=1)
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("Schedule.plot needs matplotlib: pip install matplotlib") from error
        label = line.pop("label", repr(self))
        if ax is None:
            ax = plt.subplots(layout="constrained")[1]
            ax.set_xlabel("step")
            ax.set_title(label, fontsize="small", wrap=True)
        drawn = _spread(steps, 5000, logarithmic=logx)
        ax.plot(drawn.tolist(), self(drawn).detach().tolist(), label=label, **line)
        if logx:
            ax.set_xscale("log")
        if logy:
            ax.set_yscale("log")
        if len(ax.lines) > 1:
            if ax.get_title() == ax.lines[0].get_label():
                ax.set_title("")  # it named the one curve
            ax.legend(fontsize="small")
        return ax


def _spread(last: int, count: int, *, logarithmic: bool) -> Tensor:
    """Steps from 0 to ``last``, or from 1 at equal ratios: all of them, or some ``count`` where there are more."""
    if last <= count:
        return torch.arange(int(logarithmic), last + 1)
    if logarithmic:
        exponents = torch.linspace(0.0, math.log(last), count, dtype=torch.float64)
        return torch.cat([exponents.exp().round().long()[:-1], torch.tensor([last])]).unique()
    return torch.linspace(0, last, count, dtype=torch.float64).round().long()


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Build the schedule that ``to_config`` wrote.

    A config is ``{"schedule": name, hyperparameter: value, ...}``; a schedule inside a schedule is a config inside a
    config. The names are those of the constructors; one's own schedules must have been defined before.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a dict, as to_config returns, got {config!r} of type {type(config).__name__}")
    if "schedule" not in config:
        raise ValueError(f"config must name its constructor under 'schedule', got the keys {listed(config)}")
    name = config["schedule"]
    if not isinstance(name, str) or name not in CONSTRUCTORS:
        raise ValueError(
            f"config['schedule'] must be the name of a schedule, got {name!r}{near_misses(str(name), CONSTRUCTORS)}"
        )
    return CONSTRUCTORS[name](
        **{key: from_plain(value, from_config) for key, value in config.items() if key != "schedule"}
    )


def _restore(constructor: Any, values: tuple[Any, ...]) -> Schedule:
    # Pickled by its constructor, a function of a module; and unchecked, as a batch of schedules may be copied too.
    return Schedule(constructor.formula, values)


def _flatten(schedule: Schedule) -> tuple[list[Any], tuple[Any, ...]]:
    """Numbers, tensors, schedules are children; options, functions are context, where ``...`` keeps a child's place."""
    fixed = tuple(
        value if hyperparameter.is_fixed(value) else ...
        for hyperparameter, value in zip(schedule._formula.hyperparameters, schedule._values, strict=True)
    )
    children = [value for value, option in zip(schedule._values, fixed, strict=True) if option is ...]
    return children, (schedule._formula, fixed)


def _flatten_with_keys(schedule: Schedule) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    children, context = _flatten(schedule)
    names = [name for name, option in zip(schedule._formula.names, context[1], strict=True) if option is ...]
    return [(pytree.GetAttrKey(name), child) for name, child in zip(names, children, strict=True)], context


def _unflatten(children: Iterable[Any], context: tuple[Any, ...]) -> Schedule:
    # Nothing is checked: a transform may put anything in the place of a leaf.
    formula, fixed = context
    leaves = iter(children)
    return Schedule(formula, tuple(next(leaves) if option is ... else option for option in fixed))


pytree.register_pytree_node(
    Schedule,
    _flatten,
    _unflatten,
    serialized_type_name="purestep.schedules.Schedule",
    flatten_with_keys_fn=_flatten_with_keys,
)
