"""Data: an order says which example stands where, a source holds the examples, a pipeline makes the batches."""

from purestep.data._workers import WorkerDiedError
from purestep.data.arrays import from_arrays, token_windows
from purestep.data.collate import collate, padded
from purestep.data.libraries import huggingface, parquet
from purestep.data.loader import Loader, loader
from purestep.data.orders import (
    Batches,
    IndexOrder,
    MixedOrder,
    OrderSampler,
    grouped,
    mixed,
    sequential,
    shuffled,
    stratified,
    subset,
    weighted,
    with_replacement,
)
from purestep.data.pipeline import Pipeline, pipeline
from purestep.data.sources import DecodeError, Source, cache, from_tensors, memory_mapped, multi
from purestep.data.tables import dataframe, image_folder

__all__ = [
    "Batches",
    "DecodeError",
    "IndexOrder",
    "Loader",
    "MixedOrder",
    "OrderSampler",
    "Pipeline",
    "Source",
    "WorkerDiedError",
    "cache",
    "collate",
    "dataframe",
    "from_arrays",
    "from_tensors",
    "grouped",
    "huggingface",
    "image_folder",
    "loader",
    "memory_mapped",
    "mixed",
    "multi",
    "padded",
    "parquet",
    "pipeline",
    "sequential",
    "shuffled",
    "stratified",
    "subset",
    "token_windows",
    "weighted",
    "with_replacement",
]
