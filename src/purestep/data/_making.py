"""Making a batch from a block, wherever that happens: in the loop, in a thread, in a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from tensordict import TensorDictBase, is_tensor_collection
from torch import Tensor

from purestep.data._plans import Block, item_keys
from purestep.data.sources import DecodeError, Source, parameter_among

OnError = Literal["raise", "skip"]


class Made(NamedTuple):
    """What comes back: the batch, or the error raised in its place, to be raised again in the loop's thread.

    Attributes:
        batch: None too where every example was skipped, or the block was one to discard.
        skipped: what is said of each example that could not be decoded.
        exhausted: the worker's stream of examples has ended.
    """

    batch: Any
    error: Exception | None
    block: Any
    skipped: tuple[str, ...] = ()
    exhausted: bool = False


class MakeFromSource:
    """Fetches the examples of a block from a source, and transforms them.

    An error is a result too, or it would lose its type on the way.
    """

    def __init__(self, source: Source, transform: Callable[..., Any] | None, seed: int, on_error: OnError) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.fetch_draws = bool(getattr(source, "draws", False))
        self.transform_draws = transform is not None and parameter_among(transform, ("keys",)) is not None

    @property
    def draws(self) -> bool:
        """Whether anything here is a function of the seed."""
        return self.fetch_draws or self.transform_draws

    def __call__(self, block: Block) -> Made:
        left = block.place_only()
        try:
            batch, skipped = self._made(block)
        except Exception as error:
            error.add_note(f"in the batch that ends at position {block.end} of epoch {block.epoch}")
            return Made(None, error, left)
        return Made(batch, None, left, skipped)

    def _made(self, block: Block) -> tuple[Any, tuple[str, ...]]:
        indices, weights = block.indices, block.weights
        keys = item_keys(self.seed, block.epoch, block.positions) if self.draws else None
        skipped: tuple[str, ...] = ()
        try:
            batch = self._fetch(indices, keys)
        except DecodeError:
            if self.on_error == "raise":
                raise
            good, skipped = self._readable(indices, keys)
            if not good:
                return None, skipped
            indices = indices[good]
            keys, weights = (None if part is None else part[good] for part in (keys, weights))
            batch = self._fetch(indices, keys)
        count = indices.shape[0]  # len() of a tensor takes microseconds
        _check_batch(batch, count, f"{type(self.source).__name__}.fetch")
        if weights is not None:
            if "weight" in batch.keys():  # noqa: SIM118 (a TensorDict's `in` is not for keys)
                raise ValueError(
                    "source must not have a 'weight' of its own where the order has positions that count nothing: "
                    "take .shard(..., uneven='ragged')"
                )
            batch["weight"] = weights.to(getattr(self.source, "device", None) or weights.device)
        if self.transform is not None:
            batch = self.transform(batch, keys=keys) if self.transform_draws else self.transform(batch)
            _check_batch(batch, count, "transform")
        return (batch[:0] if block.empty else batch), skipped

    def _fetch(self, indices: Tensor, keys: Tensor | None) -> TensorDictBase:
        return self.source.fetch(indices, keys=keys) if self.fetch_draws else self.source.fetch(indices)  # type: ignore[call-arg]

    def _readable(self, indices: Tensor, keys: Tensor | None) -> tuple[list[int], tuple[str, ...]]:
        """Return which of the examples can be read, one by one, and what is said of the others."""
        good, skipped = [], []
        for i in range(len(indices)):
            try:
                self._fetch(indices[i : i + 1], None if keys is None else keys[i : i + 1])
                good.append(i)
            except DecodeError as error:
                skipped.append(str(error))
        return good, tuple(skipped)


def _check_batch(batch: Any, count: int, where: str) -> None:
    if not is_tensor_collection(batch):
        raise TypeError(f"{where} must return a TensorDict, got {type(batch).__name__}")
    if batch.batch_size != (count,):
        raise ValueError(f"{where} must return a TensorDict of batch_size [{count}], got {list(batch.batch_size)}")
