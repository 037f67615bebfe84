"""The logit store: a teacher's targets for one dataset of rows, on disk."""

from minillm.store.candidates import top_candidates
from minillm.store.reader import JoinedRows, StoreReader
from minillm.store.schema import TeacherTargets
from minillm.store.writer import write_store

__all__ = ["JoinedRows", "StoreReader", "TeacherTargets", "top_candidates", "write_store"]
