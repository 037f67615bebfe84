"""Next-token training from scratch on your own text or problems.

python launch/train.py --data_path notes.txt --output_dir runs/mine
python launch/train.py --use_mock --output_dir runs/mock --num_epochs 1
"""

import os
from collections.abc import Sequence

from absl import flags

from minillm.core.errors import UserError
from minillm.stages import cli
from minillm.stages.pretrain import PretrainConfig, pretrain, with_sizes

DATA = flags.DEFINE_string("data_path", None, ".txt, .json or .jsonl files, comma separated.")
OUTPUT = flags.DEFINE_string("output_dir", "runs/train", "Where model, rows and tokenizer go.")
TOKENIZER = flags.DEFINE_string("tokenizer_path", None, "A tokenizer, or a model's folder.")
MOCK = flags.DEFINE_bool("use_mock", False, "Train on text and problems that come with minillm.")
VOCAB = flags.DEFINE_integer("vocab_size", None, "Pieces of a tokenizer trained here.")
WIDTH = flags.DEFINE_integer("hidden_size", None, "Model width.")
HEADS = flags.DEFINE_integer("num_heads", None, "Heads; together they fill the width.")
SETTINGS = {
    "model__num_layers": flags.DEFINE_integer("num_layers", None, "Layers."),
    "model__intermediate_size": flags.DEFINE_integer("intermediate_size", None, "MLP width."),
    "rows__row_length": flags.DEFINE_integer("max_seq_length", None, "Tokens a row."),
    "run__batch_size": flags.DEFINE_integer("batch_size", None, "Rows a step."),
    "epochs": flags.DEFINE_float("num_epochs", None, "Passes over the data."),
    "run__optimizer__learning_rate": flags.DEFINE_float("learning_rate", None, "Its peak."),
    "run__seed": flags.DEFINE_integer("seed", None, "Of weights and order."),
}
cli.define_config("train")


def main(argv: Sequence[str]) -> None:
    if VOCAB.value is not None and TOKENIZER.value is not None:
        raise UserError(
            field="vocab_size", got="a tokenizer as well", wanted="one of the two", fix="drop one"
        )
    chosen = {name: flag.value for name, flag in SETTINGS.items()}
    config = cli.read_config(PretrainConfig, tokenizer__vocab_size=VOCAB.value, **chosen)
    config = with_sizes(config, hidden_size=WIDTH.value, num_heads=HEADS.value)
    pretrain(
        OUTPUT.value,
        config,
        data_path=DATA.value,
        tokenizer_path=TOKENIZER.value,
        use_mock=MOCK.value,
    )
    model = os.path.join(OUTPUT.value, "model")
    print(f"checkpoint: {os.path.join(model, 'checkpoints')}")
    print(f"generate:   python launch/generate_math_solutions.py --model_path {model} --random")


if __name__ == "__main__":
    cli.run(main)
