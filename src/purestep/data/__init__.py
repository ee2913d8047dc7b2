"""Data: an order says which example stands where, a source holds the examples, a pipeline makes the batches."""

from purestep.data.orders import IndexOrder, sequential, shuffled
from purestep.data.pipeline import Pipeline, pipeline
from purestep.data.sources import Source, cache, from_tensors, multi
from purestep.data.tables import dataframe, image_folder

__all__ = [
    "IndexOrder",
    "Pipeline",
    "Source",
    "cache",
    "dataframe",
    "from_tensors",
    "image_folder",
    "multi",
    "pipeline",
    "sequential",
    "shuffled",
]
