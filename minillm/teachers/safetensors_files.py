"""The tensors of a Hugging Face folder's safetensors files, checked before the first is read."""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from minillm.core.errors import UserError

# What weights are stored as. Files may hold other types beside them, such as integer buffers.
DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What peft writes: changes to the weights of another model.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_LFS_POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class _Tensor:
    path: epath.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    place: int


class TensorFiles:
    """The tensors of one folder: `{stem}.safetensors`, or the files that its index names.

    All headers are read and checked here; no tensor is.

    Args:
        directory: on a disk; the format's own reader opens no bucket.
        stem: of the files' names.

    Attributes:
        names: of all tensors, in order of the files and within each of their places.
        paths: the files, by name.

    Raises:
        UserError: no such files, an index that does not fit them, or a file that is cut off,
            damaged or no safetensors file at all.
    """

    def __init__(self, directory: epath.PathLike, *, stem: str = "model") -> None:
        self.directory = epath.Path(directory)
        single = self.directory / f"{stem}.safetensors"
        index = self.directory / f"{stem}.safetensors.index.json"
        # Where a folder has both, transformers reads the single file too.
        if _exists(single):
            listed: dict[str, str] = {}
            self.paths = [single]
        elif _exists(index):
            listed = _read_index(index)
            self.paths = [self.directory / name for name in sorted(set(listed.values()))]
            _require_all(index, self.paths)
        else:
            raise _no_weights(self.directory, stem)
        self._tensors: dict[str, _Tensor] = {}
        for path in self.paths:
            for name, tensor in _read_header(path, len(self._tensors)).items():
                if name in self._tensors:
                    raise UserError(
                        field=f"{path}: tensor {name}",
                        got=f"a second one of that name, beside {self._tensors[name].path.name}",
                        wanted="every tensor once",
                        fix="write or download the folder again",
                    )
                self._tensors[name] = tensor
        for name, file in listed.items():
            found = self._tensors.get(name)
            if found is None or found.path.name != file:
                raise UserError(
                    field=f"{index}: tensor {name}",
                    got=f"{file}, which does not hold it",
                    wanted="the file that does" if found is None else found.path.name,
                    fix="write or download the folder again: index and files are not of one model",
                )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """As the format writes it; `DTYPES` has those of weights."""
        return self._tensors[name].dtype

    def itemsize(self, name: str) -> int:
        """Bytes of one value."""
        return np.dtype(DTYPES[self.dtype(name)]).itemsize

    def place(self, name: str) -> int:
        """How many tensors stand before it, in the order in which files are read fastest."""
        return self._tensors[name].place

    def file(self, name: str) -> epath.Path:
        """The file that the tensor stands in."""
        return self._tensors[name].path

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The values [start, stop) of a tensor in row-major order, flat; all by default.

        Only they are read. The format's own reader would either map the file, and what is mapped
        counts as memory of this process, or read the whole tensor for any part of it.
        """
        tensor = self._tensors[name]
        stop = math.prod(tensor.shape) if stop is None else stop
        dtype = np.dtype(DTYPES[tensor.dtype])
        offset = tensor.offset + start * dtype.itemsize
        try:
            values = np.fromfile(tensor.path, dtype, count=stop - start, offset=offset)
        except OSError as error:
            raise unreadable(tensor.path, error) from None
        if values.size != stop - start:
            raise UserError(
                field=f"{tensor.path}: tensor {name}",
                got=f"{values.size} of {stop - start} values",
                wanted="the file as it was when its header was read",
                fix="let nothing write to the folder meanwhile, and start again",
            )
        return values


def _exists(path: epath.Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise unreadable(path, error) from None


def _read_index(path: epath.Path) -> dict[str, str]:
    """Which file holds each tensor."""
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise _no_index(path, str(error)) from None
    except OSError as error:
        raise unreadable(path, error) from None
    if text.encode().startswith(_LFS_POINTER):
        raise _lfs_pointer(path)
    try:
        index = json.loads(text, object_pairs_hook=_without_repetition)
    # ValueError: no JSON, or a number of more digits than Python reads.
    except (ValueError, RecursionError) as error:
        raise _no_index(path, str(error)) from None
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise _no_index(path, "no weight_map with the tensors' files in it")
    for name, file in listed.items():
        # A name with a folder in it could lead anywhere on the disk.
        if not isinstance(file, str) or epath.Path(file).name != file or not file:
            raise UserError(
                field=f"{path}: tensor {name}",
                got=repr(file),
                wanted="the name of a file in the same folder",
                fix="write or download the folder again",
            )
    return listed


def _require_all(index: epath.Path, paths: list[epath.Path]) -> None:
    missing = [path.name for path in paths if not _exists(path)]
    if missing:
        raise UserError(
            field=str(index),
            got=f"files that are not there: {some(missing)}",
            wanted=f"all {len(paths)} files that it names",
            fix="download the missing ones into the same folder",
        )


def _read_header(path: epath.Path, first: int) -> dict[str, _Tensor]:
    """Every tensor of a file, by name in order of place; `first` were in files before."""
    try:
        # The format's own reader checks the header as a whole: types and shapes against offsets,
        # no gap, no overlap, nothing beyond the end of the file.
        with safe_open(path, framework="np") as checked:
            names = checked.offset_keys()
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise unreadable(path, error) from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    return {
        name: _Tensor(
            path,
            header[name]["dtype"],
            tuple(header[name]["shape"]),
            8 + length + header[name]["data_offsets"][0],
            first + number,
        )
        for number, name in enumerate(names)
    }


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        count = collections.Counter(name for name, _ in pairs)
        twice = [name for name in found if count[name] > 1]
        raise ValueError(f"there twice: {some(twice)}")
    return found


def some(names: list[str], limit: int = 5) -> str:
    """Names as an error lists them: the first few, and how many more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _damaged(path: epath.Path, error: Exception) -> UserError:
    with path.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        return _lfs_pointer(path)
    size = path.stat().length
    return UserError(
        field=str(path),
        got=f"{size:,} bytes that are no whole safetensors file ({_words(error)})"
        if size
        else "an empty file",
        wanted="a safetensors file, complete",
        fix="download or copy it again, and compare sizes",
    )


def _lfs_pointer(path: epath.Path) -> UserError:
    return UserError(
        field=str(path),
        got="a Git LFS pointer in place of the data",
        wanted="the file that it stands for",
        fix="run `git lfs pull` in the folder",
    )


def _no_index(path: epath.Path, got: str) -> UserError:
    return UserError(
        field=str(path),
        got=got,
        wanted='an index: {"weight_map": {tensor: file}}',
        fix="download or copy it again",
    )


def unreadable(path: epath.Path, error: OSError) -> UserError:
    """The error of a file of a model's folder that is there and cannot be read."""
    return UserError(
        field=str(path),
        got=_words(error),
        wanted="a file that can be read",
        fix="check the path and its permissions",
    )


def _no_weights(directory: epath.Path, stem: str) -> UserError:
    try:
        present = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        return unreadable(directory, error)
    pickles = [name for name in present if epath.Path(name).suffix in _PICKLES]
    parts = [name for name in present if name.endswith(".safetensors")]
    fix = "give a folder with weights, or download them into it"
    got = "no weights"
    if any(name in present for name in ADAPTER_FILES):
        return adapter(directory)
    if parts == [f"{stem}-00001-of-00001.safetensors"]:
        got = f"{parts[0]}, without an index"
        fix = f"rename it to {stem}.safetensors"
    elif parts:
        got = f"{some(parts)}, without an index"
        fix = f"download {stem}.safetensors.index.json too"
    elif pickles:
        got = f"a pickle checkpoint ({some(pickles)}); to read one is to run the code in it"
        fix = "get the model's safetensors files, or have its library convert it where you trust it"
    return UserError(
        field=str(directory),
        got=got,
        wanted=f"{stem}.safetensors, or {stem}.safetensors.index.json and the files it names",
        fix=fix,
    )


def adapter(directory: epath.Path) -> UserError:
    """The error of a folder that holds an adapter and no model."""
    return UserError(
        field=str(directory),
        got="an adapter, which changes the weights of another model",
        wanted="a whole model",
        fix="merge the adapter into its base model (peft: merge_and_unload), and save that",
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
