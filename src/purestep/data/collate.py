"""Collating: examples, one by one, into a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import NonTensorStack, TensorDict, TensorDictBase, is_tensor_collection
from torch import Tensor
from torch.utils.data import get_worker_info

from purestep._checks import number


def collate(samples: Sequence[Any]) -> Any:
    """Return a batch of examples of one structure, stacked along a new dimension 0.

    Mappings and TensorDicts become a TensorDict of ``batch_size=[len(samples)]``, nested ones nested ones; tuples and
    lists a tuple, named tuples their kind; tensors and NumPy arrays a tensor; bools, ints and floats a tensor (bool,
    int64, float64, as torch's ``default_collate`` has them); text and bytes stay as they are, in a list, or a
    ``NonTensorStack`` where they are in a TensorDict.

    Raises:
        TypeError: something else is in an example, or two examples differ in kind.
        ValueError: there is no example, or two differ in shape, dtype, keys or length: it says where, and which.
    """
    if len(samples) == 0:
        raise ValueError("samples must be at least one example, got none")
    return _collated(list(samples), "", None)


def padded(value: float = 0) -> Any:
    """Return a :func:`collate` for examples in which some tensors are sequences of unlike lengths.

    Such tensors (and lists of numbers) are filled up with ``value`` to the longest of the batch, and a mask, bool, says
    what was there: in a mapping under the name with ``_mask`` after it, elsewhere as the second of a pair. Each tensor
    that has a dimension gets its mask, so that a batch of equal lengths looks like the others:
    ``x`` (batch, longest, ...), ``x_mask`` (batch, longest). The other dimensions must agree.

    >>> loader(sentences, batch_size=8, collate_fn=padded())
    """
    return partial(_padded, value=number("value", value))


def _padded(samples: Sequence[Any], value: float) -> Any:
    if len(samples) == 0:
        raise ValueError("samples must be at least one example, got none")
    return _collated(list(samples), "", value)


def convert(sample: Any) -> Any:
    """Return one example as it is in a batch, without the batch's dimension (torch's ``default_convert``)."""
    if isinstance(sample, Mapping):
        return TensorDict({key: convert(value) for key, value in sample.items()}, batch_size=[])
    if isinstance(sample, tuple) and hasattr(sample, "_fields"):
        return type(sample)(*(convert(value) for value in sample))
    if isinstance(sample, (tuple, list)):
        return tuple(convert(value) for value in sample)
    tensor = _as_tensor(sample)
    return sample if tensor is None or isinstance(sample, (bool, int, float)) else tensor


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return ``torch.stack(tensors)``; in a worker process, in the shared memory in which it would travel, uncopied."""
    first = tensors[0]
    plain = all(type(t) is Tensor and t.dtype == first.dtype and t.device.type == "cpu" for t in tensors)
    if get_worker_info() is None or not plain or not first.numel() or any(t.requires_grad for t in tensors):
        return torch.stack(list(tensors))
    storage = torch.UntypedStorage._new_shared(len(tensors) * first.numel() * first.element_size(), device="cpu")
    room = torch.empty(0, dtype=first.dtype).set_(storage).view(len(tensors), *first.shape)
    return torch.stack(list(tensors), out=room)


def _collated(samples: list[Any], where: str, fill: float | None) -> Any:
    first = samples[0]
    _check_kinds(samples, where)
    if isinstance(first, (Mapping, TensorDictBase)) or is_tensor_collection(first):
        return _mappings(samples, where, fill)
    if fill is not None and isinstance(first, list) and _is_numbers(samples):
        flat = torch.tensor([value for sample in samples for value in sample])  # all of one dtype, the empty ones too
        return _pad(list(flat.split([len(sample) for sample in samples])), where, fill)
    if isinstance(first, (tuple, list)):
        parts = [_collated(list(part), f"{where}[{i}]", fill) for i, part in enumerate(_columns(samples, where))]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    if isinstance(first, (str, bytes)):
        return list(samples)
    return _stacked(samples, where, fill)


def _mappings(samples: list[Any], where: str, fill: float | None) -> TensorDict:
    keys = list(samples[0].keys())
    for i, sample in enumerate(samples):
        if set(sample.keys()) != set(keys):
            raise ValueError(
                f"examples must have the same keys{_at(where)}, got {keys} in example 0 of the batch but "
                f"{list(sample.keys())} in example {i}"
            )
    batch: dict[str, Any] = {}
    for key in keys:
        made = _collated([sample[key] for sample in samples], f"{where}[{key!r}]", fill)
        if fill is not None and _is_pair(made, samples[0][key]):
            if f"{key}_mask" in keys:
                raise ValueError(
                    f"examples must have no key {f'{key}_mask'!r}{_at(where)}, which padded() gives to the mask of "
                    f"{key!r}: rename it"
                )
            batch[key], batch[f"{key}_mask"] = made
        else:
            batch[key] = NonTensorStack(*made) if isinstance(made, list) else made
    if any(isinstance(value, tuple) for value in batch.values()):
        named = [key for key, value in batch.items() if isinstance(value, tuple)]
        raise TypeError(f"examples must hold no tuple inside a mapping{_at(where)}, got one in {named}: use a mapping")
    return TensorDict(batch, batch_size=[len(samples)])


def _stacked(samples: list[Any], where: str, fill: float | None) -> Any:
    if all(isinstance(sample, (bool, int, float)) for sample in samples):
        floating = any(isinstance(sample, float) for sample in samples)
        return torch.tensor(samples, dtype=torch.float64 if floating else None)
    tensors = []
    for i, sample in enumerate(samples):
        tensor = _as_tensor(sample)
        if tensor is None:
            raise TypeError(
                f"examples must be made of tensors, arrays, numbers, text, mappings, tuples and lists{_at(where)}, got "
                f"{type(sample).__name__} in example {i} of the batch: give a collate_fn"
            )
        tensors.append(tensor)
    if fill is not None and tensors[0].ndim:
        return _pad(tensors, where, fill)
    for i, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            raise ValueError(
                f"examples must have one shape{_at(where)}, got {tuple(tensors[0].shape)} in example 0 of the batch "
                f"but {tuple(tensor.shape)} in example {i}: collate_fn=padded() pads sequences"
            )
        if tensor.dtype != tensors[0].dtype:
            raise ValueError(
                f"examples must have one dtype{_at(where)}, got {tensors[0].dtype} in example 0 of the batch but "
                f"{tensor.dtype} in example {i}"
            )
    return stacked(tensors)


def _pad(tensors: list[Tensor], where: str, fill: float) -> tuple[Tensor, Tensor]:
    for i, tensor in enumerate(tensors):
        if tensor.ndim == 0 or tensor.shape[1:] != tensors[0].shape[1:] or tensor.dtype != tensors[0].dtype:
            raise ValueError(
                f"sequences must agree in all but their length{_at(where)}, got {tuple(tensors[0].shape)} "
                f"{tensors[0].dtype} in example 0 of the batch but {tuple(tensor.shape)} {tensor.dtype} in example {i}"
            )
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    longest = int(lengths.max())
    whole = tensors[0].new_full((len(tensors), longest, *tensors[0].shape[1:]), fill)
    for row, tensor in zip(whole, tensors, strict=True):
        row[: len(tensor)] = tensor
    return whole, torch.arange(longest) < lengths[:, None]


def _columns(samples: list[Any], where: str) -> list[tuple[Any, ...]]:
    for i, sample in enumerate(samples):
        if len(sample) != len(samples[0]):
            raise ValueError(
                f"examples must have as many parts{_at(where)}, got {len(samples[0])} in example 0 of the batch but "
                f"{len(sample)} in example {i}: collate_fn=padded() pads lists of numbers"
            )
    return list(zip(*samples, strict=True))


def _check_kinds(samples: list[Any], where: str) -> None:
    kind = _kind(samples[0])
    for i, sample in enumerate(samples):
        if _kind(sample) is not kind:
            raise TypeError(
                f"examples must be of one kind{_at(where)}, got {type(samples[0]).__name__} in example 0 of the batch "
                f"but {type(sample).__name__} in example {i}"
            )


def _kind(sample: Any) -> type:
    for kind in (Mapping, tuple, list, str, bytes):
        if isinstance(sample, kind):
            return kind
    return Mapping if is_tensor_collection(sample) else Tensor


def _as_tensor(sample: Any) -> Tensor | None:
    if isinstance(sample, Tensor):
        return sample
    if isinstance(sample, float):
        return torch.tensor(sample, dtype=torch.float64)
    if isinstance(sample, (bool, int)):
        return torch.tensor(sample)
    if type(sample).__module__ == "numpy" and getattr(sample, "dtype", None) is not None:
        return None if sample.dtype.kind in "OUSVMm" else torch.as_tensor(sample)
    return None


def _is_numbers(samples: list[Any]) -> bool:
    return all(isinstance(value, (bool, int, float)) for sample in samples for value in sample)


def _is_pair(made: Any, sample: Any) -> bool:
    """Whether what a key was made into is a padded tensor and its mask, and no tuple of the example's own."""
    if isinstance(sample, list):
        return isinstance(made, tuple) and _is_numbers([sample])
    return isinstance(made, tuple) and not isinstance(sample, tuple)


def _at(where: str) -> str:
    return f" at {where}" if where else ""
