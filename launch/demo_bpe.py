"""Show how byte-pair encoding cuts a sentence into pieces, rule by rule.

python launch/demo_bpe.py --text "The derivative of x^3 is 3x^2."
"""

import sys
from collections.abc import Iterator, Sequence

from absl import flags

from minillm.core.errors import UserError
from minillm.data.corpus import builtin_text_path, read_examples
from minillm.data.tokenizer import BPETokenizer
from minillm.stages import cli

_TEXT = flags.DEFINE_string("text", r"The derivative of \frac{x^{3}}{3} is x^{2}.", "Your sentence")
_TOKENIZER = flags.DEFINE_string("tokenizer_path", None, "A tokenizer; trained here if not given")
_DATA = flags.DEFINE_string("data", None, "What to train on; the built-in text if not given")
_VOCAB = flags.DEFINE_integer("vocab_size", 512, "Pieces in all, where one is trained here")


def main(argv: Sequence[str]) -> None:
    del argv
    text = _TEXT.value
    tokenizer = _tokenizer()
    print(f"{tokenizer.vocab_size} pieces; a space is shown as ▁, a byte as <0x..>\n")
    for number, step in enumerate(tokenizer.merges(text)):
        rule = f"{number:3d}. {step.piece:12s}" if number else f"{'start':17s}"
        print(rule, f"{len(step.pieces):4d} |", *_marked(step.pieces, step.piece))
    ids = tokenizer.encode(text)
    print(f"\nids: {ids}")
    print(f"{len(text)} characters, {len(text.encode())} bytes, {len(ids)} tokens")
    back = tokenizer.decode(ids)
    print(f"back: {back!r}, {'the same text' if back == text else 'NOT the same text'}")


def _tokenizer() -> BPETokenizer:
    if _TOKENIZER.value:
        if _DATA.value or flags.FLAGS["vocab_size"].present:
            raise UserError(
                field="tokenizer_path",
                got="--data or --vocab_size as well",
                wanted="a trained tokenizer, or how to train one",
                fix="drop one",
            )
        return BPETokenizer.load(_TOKENIZER.value)
    examples = read_examples(_DATA.value or builtin_text_path())
    tokenizer = BPETokenizer(_VOCAB.value, only_seen_commands=True)
    return tokenizer.train(example.text for example in examples)


def _marked(pieces: Sequence[str], made: str) -> Iterator[str]:
    for piece in pieces:
        bold = sys.stdout.isatty() and piece == made
        yield f"\033[1;32m{piece}\033[0m" if bold else piece


if __name__ == "__main__":
    cli.run(main)
