"""A teacher's fingerprint, where its files tell it."""

import os

from etils import epath

from minillm.core.checkpoint import MODEL_DESCRIPTION
from minillm.model.config import Dtype
from minillm.teachers.flux import pipeline_folder
from minillm.teachers.huggingface import files_fingerprint, huggingface_folder
from minillm.teachers.huggingface_config import CONFIG
from minillm.teachers.load import MOCK
from minillm.teachers.teacher import fingerprint_with


def fingerprint_of_files(path: epath.PathLike, dtype: Dtype | None = None) -> str | None:
    """`Teacher.fingerprint` without loading it; None where that takes the weights themselves.

    Those of `mock` are in no file, and a minillm checkpoint's files hold the same weights in
    other bytes where other devices wrote them.

    Args:
        path: of a teacher that `describe_teacher` has found to be one.
        dtype: in which it would be loaded.
    """
    directory = epath.Path(path)
    if os.fspath(path) == MOCK or (directory / MODEL_DESCRIPTION).exists():
        return None
    is_model = (directory / CONFIG).exists()
    folder = huggingface_folder(directory, dtype) if is_model else pipeline_folder(directory, dtype)
    weights = files_fingerprint(folder.files, folder.config.compute_dtype)
    return fingerprint_with(folder.config, weights)
