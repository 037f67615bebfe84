"""The logit store: a teacher's targets for one dataset of rows, on disk."""

from minillm.store.candidates import top_candidates
from minillm.store.reader import JoinedRows, StoreReader
from minillm.store.schema import SpanStoreConfig, SpanTargets, TeacherTargets
from minillm.store.spans import span_targets
from minillm.store.writer import write_span_store, write_store

__all__ = [
    "JoinedRows",
    "SpanStoreConfig",
    "SpanTargets",
    "StoreReader",
    "TeacherTargets",
    "span_targets",
    "top_candidates",
    "write_span_store",
    "write_store",
]
