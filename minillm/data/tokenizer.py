"""Byte-pair encoding over SentencePiece: exact on any text, digits alone, LaTeX commands whole."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece
from absl import logging
from etils import epath

from minillm.core.errors import UserError
from minillm.core.manifest import fingerprint_of, write_atomically
from minillm.data import tokenizer_training as training
from minillm.data.merges import SPACE, SPACE_BYTES, MergeStep, merge_steps
from minillm.data.sentencepiece_tokenizer import MODEL_NAME
from minillm.data.tokenizer_protocol import require_ids, require_unicode
from minillm.data.tokenizer_training import LATEX_COMMANDS


class BPETokenizer:
    """A byte-pair encoding with `decode(encode(text)) == text` for every Unicode text.

    Ids: 0 padding, 1 beginning, 2 end, 3 unknown (never produced: what has no piece is written
    in bytes), then LaTeX commands, 256 bytes, merges in the order learned, characters.

    Args:
        vocab_size: pieces in all; an upper bound, since a small corpus may not yield as many.
        latex_commands: texts that always stay one piece.
        only_seen_commands: leave out the commands that the training text does not contain, so
            that a small vocabulary is spent on what is used.
    """

    pad_id = 0
    bos_id = 1
    eos_id = 2
    unk_id = 3
    eos_ids = (eos_id,)
    adds_bos = True

    def __init__(
        self,
        vocab_size: int,
        *,
        latex_commands: Sequence[str] = LATEX_COMMANDS,
        only_seen_commands: bool = False,
    ) -> None:
        self._wanted_size = vocab_size
        self._commands = tuple(dict.fromkeys(latex_commands))
        self._only_seen = only_seen_commands
        self._processor: sentencepiece.SentencePieceProcessor | None = None

    def train(self, texts: Iterable[str]) -> "BPETokenizer":
        """Learn pieces from texts; the order of the texts makes no difference.

        Raises:
            UserError: no text, or a vocabulary too small for bytes and commands.
        """
        if not self._only_seen:
            # Before the texts are read: they may be long, and this needs none of them.
            self._check_size(self._commands)
        words, seen = training.count_words(map(require_unicode, texts), self._commands)
        commands = [c for c in self._commands if c in seen or not self._only_seen]
        self._check_size(commands)
        if not words:
            raise UserError(
                field="training text",
                got="nothing but white space and commands",
                wanted="text to learn pieces from",
                fix="give a file with words in it",
            )
        room = self._wanted_size - training.smallest_vocabulary(commands) + 2
        words = training.within_alphabet(words, room // 2)
        self._use(training.train_model(words, self._wanted_size, commands))
        if self.vocab_size < self._wanted_size:
            logging.warning(
                "vocab_size=%d is more than this text yields; the tokenizer has %d pieces",
                self._wanted_size,
                self.vocab_size,
            )
        return self

    def save(self, path: epath.PathLike) -> epath.Path:
        """Write the model file (`tokenizer.model` inside an existing directory); its path."""
        target = epath.Path(path)
        if target.is_dir():
            target = target / MODEL_NAME
        write_atomically(target, self._sp.serialized_model_proto())
        return target

    @classmethod
    def load(cls, path: epath.PathLike) -> "BPETokenizer":
        """Read a model file, or the `tokenizer.model` of a directory.

        Raises:
            UserError: no such file, no SentencePiece model, or one that would lose text.
        """
        source = epath.Path(path)
        if source.is_dir():
            source = source / MODEL_NAME
        if not source.exists():
            raise UserError(
                field="tokenizer_path",
                got=f"{source}, which does not exist",
                wanted=f"a tokenizer's model file, or a folder with {MODEL_NAME}",
                fix="correct the path, or make one with launch/train_tokenizer.py",
            )
        tokenizer = cls.of_model(source.read_bytes())
        if tokenizer is None:
            raise UserError(
                field=f"tokenizer_path {source}",
                got="a file that is no SentencePiece model, or "
                "pieces that do not keep every character",
                wanted="pad, bos, eos, unk = 0, 1, 2, 3, byte fallback, white space kept exactly",
                fix="give the file that launch/train_tokenizer.py wrote",
            )
        return tokenizer

    @classmethod
    def of_model(cls, model: bytes) -> "BPETokenizer | None":
        """The tokenizer of a model file's bytes; None where they are no such model."""
        tokenizer = cls(0)
        try:
            tokenizer._use(model)
        # Of the second kind where the library's own message quotes a piece that is no UTF-8.
        except (RuntimeError, UnicodeDecodeError):
            return None
        return tokenizer if tokenizer._keeps_text() else None

    @property
    def vocab_size(self) -> int:
        """Number of pieces there are; before training, the number asked for."""
        return self._processor.vocab_size() if self._processor else self._wanted_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every piece's text, score and kind, in order: content, not file bytes."""
        sp = self._sp
        return fingerprint_of(
            [
                [
                    sp.id_to_piece(i),
                    sp.get_score(i),
                    [sp.is_control(i), sp.is_unknown(i), sp.is_byte(i), sp.is_unused(i)],
                ]
                for i in range(sp.vocab_size())
            ]
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without beginning or end.

        Raises:
            UserError: the text holds a lone surrogate, which is no Unicode character.
        """
        sp, text = self._sp, require_unicode(text)
        if SPACE not in text:
            return sp.encode(text)
        # No piece can tell this character from the space it stands for; its bytes can.
        mark = [sp.piece_to_id(byte) for byte in SPACE_BYTES]
        ids: list[int] = []
        for index, part in enumerate(text.split(SPACE)):
            ids += mark if index else []
            ids += sp.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Special ids give nothing; broken UTF-8 gives replacement characters.

        Raises:
            UserError: an id outside the vocabulary.
        """
        sp = self._sp
        return sp.decode(require_ids(ids, sp.vocab_size()))

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """See `Tokenizer`; exact for every text."""
        ids = self.encode(text)
        sizes = (len(self.token_bytes(i) or b"") for i in ids)
        return ids, list(itertools.accumulate(sizes))

    def token_bytes(self, token_id: int) -> bytes | None:
        """See `Tokenizer`."""
        sp = self._sp
        if sp.is_control(token_id) or sp.is_unknown(token_id):
            return None
        piece = sp.id_to_piece(token_id)
        if sp.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def token_name(self, token_id: int) -> str:
        """See `Tokenizer`."""
        return self._sp.id_to_piece(token_id)

    def pieces(self, text: str) -> list[str]:
        """What `encode` cuts a text into; a space shows as "▁", a byte as "<0x0A>"."""
        return [self._sp.id_to_piece(i) for i in self.encode(text)]

    def merges(self, text: str) -> list[MergeStep]:
        """The way from single characters to `pieces(text)`.

        The first step holds characters and whole LaTeX commands. Each further step joins a pair
        into the piece that was learned earliest of all that could be made then; joins of the same
        piece in a row are one step.
        """
        return merge_steps(self._sp, require_unicode(text))

    def __getstate__(self) -> dict[str, Any]:
        model = self._processor.serialized_model_proto() if self._processor else None
        return {**self.__dict__, "_processor": model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        model = state.pop("_processor")
        self.__dict__.update(state, _processor=None)
        if model is not None:
            self._use(model)

    @property
    def _sp(self) -> sentencepiece.SentencePieceProcessor:
        if self._processor is None:
            raise UserError(
                field="tokenizer",
                got="one that has learned nothing yet",
                wanted="a trained one",
                fix="call train(texts) first, or BPETokenizer.load(path)",
            )
        return self._processor

    def _use(self, model: bytes) -> None:
        processor = sentencepiece.SentencePieceProcessor()
        processor.load_from_serialized_proto(model)
        self._processor = processor

    def _check_size(self, commands: Sequence[str]) -> None:
        smallest = training.smallest_vocabulary(commands)
        if self._wanted_size < smallest:
            raise UserError(
                field="vocab_size",
                got=self._wanted_size,
                wanted=f"at least {smallest}: {len(training.SPECIALS)} special pieces, "
                f"{training.BYTES} bytes, {len(commands)} LaTeX commands, one character, one merge",
                fix=f"raise it to {smallest} or more"
                + ("" if self._only_seen else ", or keep only_seen_commands=True"),
            )

    def _keeps_text(self) -> bool:
        sp = self._sp
        ids = (sp.pad_id(), sp.bos_id(), sp.eos_id(), sp.unk_id())
        sample = "  x³ \r\n\t\x00 "
        return ids == (0, 1, 2, 3) and self.decode(self.encode(sample)) == sample
