"""From a path to a tokenizer, whichever of the kinds it is."""

from absl import logging
from etils import epath

from minillm.core.errors import UserError
from minillm.data.json_tokenizer import JSON_NAME, JsonTokenizer
from minillm.data.sentencepiece_tokenizer import MODEL_NAME, SentencePieceTokenizer
from minillm.data.special_tokens import Declarations, read_bytes, read_declarations
from minillm.data.tokenizer import BPETokenizer
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.data.vocabulary import differences

# T5 and XLM-R have their own names for a SentencePiece model.
_MODEL_NAMES = (MODEL_NAME, "spiece.model", "sentencepiece.bpe.model")
# Vocabularies without the rules of cutting: transformers has those in its Python classes.
_WITHOUT_RULES = ("vocab.json", "merges.txt", "tekken.json", "qwen.tiktoken", "vocab.txt")


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Load a tokenizer; no code of the folder is run.

    Of a folder with `tokenizer.json` and `tokenizer.model`, the JSON is taken: it is what
    transformers runs, and alone holds the tokens added after training. Where the two do not
    hold the same tokens a warning says so.

    Args:
        path: a folder of a model or a tokenizer, or one of its two files. Beginning, end and
            padding come from tokenizer_config.json, special_tokens_map.json,
            generation_config.json and config.json beside it, in this order.

    Raises:
        UserError: nothing there, no tokenizer, a broken file, or no end token.
    """
    path = epath.Path(path)
    if not path.exists():
        raise _none(path, "which does not exist")
    if not path.is_dir():
        return _from_file(path)
    json_file = path / JSON_NAME
    models = [path / name for name in _MODEL_NAMES if (path / name).exists()]
    if not json_file.exists():
        if not models:
            there = [name for name in _WITHOUT_RULES if (path / name).exists()]
            raise _none(path, f"a folder with {', '.join(there)}" if there else "a folder without")
        return _from_file(models[0])
    tokenizer = _from_file(json_file)
    if models:
        _warn_of_differences(tokenizer, models[0])
    return tokenizer


def _from_file(path: epath.Path) -> Tokenizer:
    data = read_bytes(path)
    declared = read_declarations(path.parent)
    if path.suffix == ".json" or data[:1] == b"{":
        return JsonTokenizer(data, declared)
    own = BPETokenizer.of_model(data)
    return own if own is not None else SentencePieceTokenizer(data, declared)


def _warn_of_differences(tokenizer: Tokenizer, model: epath.Path) -> None:
    try:
        other = SentencePieceTokenizer(read_bytes(model), Declarations(place=str(model.parent)))
    except UserError as error:
        logging.warning("%s is taken; the file beside it cannot be read: %s", JSON_NAME, error)
        return
    # Which pieces are special is the JSON's to say; the model knows of fewer, and has fewer.
    found = [
        line
        for i, line in differences(other, tokenizer)
        if i < other.vocab_size and None not in (other.token_bytes(i), tokenizer.token_bytes(i))
    ]
    if found:
        logging.warning(
            "%s: tokenizer.json and %s hold other tokens (%s); tokenizer.json is taken",
            model.parent,
            model.name,
            "; ".join(found[:3]),
        )


def _none(path: epath.Path, what: str) -> UserError:
    return UserError(
        field="tokenizer_path",
        got=f"{path}, {what}",
        wanted=f"a folder with {JSON_NAME} or {MODEL_NAME}, or one of the two files",
        fix="correct the path, or make one with launch/train_tokenizer.py; other kinds are "
        "written as tokenizer.json by transformers' AutoTokenizer (load it and save it)",
    )
