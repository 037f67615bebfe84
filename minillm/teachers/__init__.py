"""Teachers: whatever gives logits for tokens, loaded from where it lies."""

from minillm.teachers.fingerprint import fingerprint_of_files
from minillm.teachers.load import (
    MOCK,
    check_folder,
    describe_teacher,
    load_teacher,
    tokenizer_folder,
)
from minillm.teachers.teacher import Teacher, require_decoder

__all__ = [
    "MOCK",
    "Teacher",
    "check_folder",
    "describe_teacher",
    "fingerprint_of_files",
    "load_teacher",
    "require_decoder",
    "tokenizer_folder",
]
