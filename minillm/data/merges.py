"""How a BPE model arrives at its pieces, one rule at a time: what a reader wants to see."""

import dataclasses
import itertools

import sentencepiece

from minillm.data import tokenizer_training as training

SPACE = "\u2581"  # stands for the space in SentencePiece's pieces
SPACE_BYTES = ("<0xE2>", "<0x96>", "<0x81>")  # the same character itself, in UTF-8


@dataclasses.dataclass(frozen=True)
class MergeStep:
    """One rule applied to a text.

    Attributes:
        piece: what the rule made; empty for the start, where every character stands alone.
        rank: the rule's number in the order of learning, the lower the earlier; -1 at the start.
        pieces: the whole text after this step.
    """

    piece: str
    rank: int
    pieces: tuple[str, ...]


def merge_steps(sp: sentencepiece.SentencePieceProcessor, text: str) -> list[MergeStep]:
    """The way from single characters to the model's pieces.

    The first step holds characters and whole LaTeX commands. Each further step joins a pair into
    the piece that was learned earliest of all that could be made then; joins into the same piece
    in a row are one step.
    """
    # Learned pieces stand behind the bytes, in the order of learning.
    first = sp.piece_to_id("<0xFF>") + 1
    ranks = {sp.id_to_piece(i): i - first for i in range(first, sp.vocab_size())}
    symbols = _symbols(sp, text)
    steps = [MergeStep("", -1, _shown(sp, symbols))]
    while True:
        pairs = itertools.pairwise(symbols)
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(pairs) if a + b in ranks]
        if not found:
            return steps
        rank, at = min(found)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        if steps[-1].rank == rank:
            steps.pop()
        steps.append(MergeStep(symbols[at], rank, _shown(sp, symbols)))


def _symbols(sp: sentencepiece.SentencePieceProcessor, text: str) -> list[str]:
    """What merging starts from: characters, commands whole, spaces as pieces write them."""
    commands = range(len(training.SPECIALS), sp.piece_to_id("<0x00>"))
    pattern = training.command_pattern([sp.id_to_piece(i) for i in commands])
    # The space mark itself goes by its bytes' names: a symbol that no rule takes part in.
    written = {" ": SPACE, SPACE: "".join(SPACE_BYTES)}
    symbols: list[str] = []
    at = 0
    for match in pattern.finditer(text):
        symbols += [written.get(letter, letter) for letter in text[at : match.start()]]
        symbols.append(match.group())
        at = match.end()
    return symbols + [written.get(letter, letter) for letter in text[at:]]


def _shown(sp: sentencepiece.SentencePieceProcessor, symbols: list[str]) -> tuple[str, ...]:
    """Symbols as pieces: what is no piece of the vocabulary stands there in bytes."""
    shown: list[str] = []
    for symbol in symbols:
        if symbol == "".join(SPACE_BYTES):
            shown += SPACE_BYTES
        elif sp.piece_to_id(symbol) == sp.unk_id():
            shown += [f"<0x{byte:02X}>" for byte in symbol.encode()]
        else:
            shown.append(symbol)
    return tuple(shown)
