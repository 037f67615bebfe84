"""Train a BPE tokenizer on text or problems.

python launch/train_tokenizer.py --data_path texts/,own.jsonl --vocab_size 4096 --output_dir tok
"""

from collections.abc import Sequence

from absl import flags
from etils import epath

from minillm.core.errors import UserError
from minillm.core.manifest import require_folder
from minillm.data.corpus import builtin_text_path, read_examples
from minillm.data.tokenizer import MODEL_NAME, BPETokenizer
from minillm.stages import cli

_DATA = flags.DEFINE_string(
    "data_path", None, "Files (.txt, .json, .jsonl), patterns or folders; the built-in text if none"
)
_VOCAB = flags.DEFINE_integer("vocab_size", 1024, "Pieces in all, at most")
_OUTPUT = flags.DEFINE_string("output_dir", None, f"Folder for {MODEL_NAME}", required=True)
_SEEN = flags.DEFINE_bool(
    "only_seen_commands", True, "Leave out LaTeX commands that the text does not contain"
)


def main(argv: Sequence[str]) -> None:
    del argv
    require_folder(_OUTPUT.value)
    path = epath.Path(_OUTPUT.value) / MODEL_NAME
    if path.exists():
        raise UserError(
            field="output_dir",
            got=f"{_OUTPUT.value}, which has a {MODEL_NAME}",
            wanted="a folder without: rows and models made with that one need it",
            fix="choose another folder, or delete the file",
        )
    data = _DATA.value or builtin_text_path()
    tokenizer = BPETokenizer(_VOCAB.value, only_seen_commands=_SEEN.value)
    tokenizer.train(example.text for example in read_examples(data))
    tokenizer.save(path)
    size = tokens = 0
    for example in read_examples(data):
        size += len(example.text.encode())
        tokens += len(tokenizer.encode(example.text))
    print(f"{path}: {tokenizer.vocab_size} pieces, {size / tokens:.2f} bytes a token on its text")
    print(f"see it at work: python launch/demo_bpe.py --tokenizer_path {path} --text '...'")


if __name__ == "__main__":
    cli.run(main)
