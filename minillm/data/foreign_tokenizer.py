"""What the tokenizers of other models have in common, whichever library runs them."""

from typing import Any, ClassVar

from etils import epath

from minillm.core.manifest import write_atomically
from minillm.data.special_tokens import Declarations, Roles


class ForeignTokenizer:
    """A file as it was read, what lies beside it, and what follows from the two for every id.

    Attributes:
        FILE_NAME: of the file in a folder.

    Args:
        data: the file's bytes.
        declared: what the files beside it say of special tokens.
    """

    FILE_NAME: ClassVar[str]
    _roles: Roles
    _bytes: list[bytes | None]

    def __init__(self, data: bytes, declared: Declarations) -> None:
        self._data = data
        self._declared = declared

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self._bytes)

    @property
    def pad_id(self) -> int:
        """See `Tokenizer`."""
        return self._roles.pad_id

    @property
    def bos_id(self) -> int | None:
        """See `Tokenizer`."""
        return self._roles.bos_id

    @property
    def adds_bos(self) -> bool:
        """`add_bos_token` of the configuration, or else what the file itself does.

        The flag comes first, since the models with one were trained by a transformers that
        followed it; since version 5 it writes none. Without it a SentencePiece model puts its
        beginning there if it has one, and a tokenizer.json if its post-processor does.
        """
        return self._roles.adds_bos

    @property
    def eos_id(self) -> int:
        """See `Tokenizer`."""
        return self._roles.eos_ids[0]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """See `Tokenizer`."""
        return self._roles.eos_ids

    def token_bytes(self, token_id: int) -> bytes | None:
        """See `Tokenizer`; None too for an id that no token has."""
        return self._bytes[token_id]

    def save(self, directory: epath.PathLike) -> epath.Path:
        """See `Tokenizer`: the file as it was read, and those beside it."""
        target = epath.Path(directory) / self.FILE_NAME
        write_atomically(target, self._data)
        self._declared.save(target.parent, self._roles)
        return target

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._data, self._declared)
