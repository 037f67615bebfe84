"""Small tokenizers of the kinds that real models come with, trained on the spot."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from minillm.data.corpus import builtin_text_path

TEXT = builtin_text_path().read_text(encoding="utf-8")[:20_000]
LINES = [
    *TEXT.splitlines(keepends=True),
    "café naïve Ελλάδα привет 中文\n" * 4,
    "x³ ½ 👩‍👩‍👧\r\n" * 4,
]
LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
GEMMA_SYMBOLS = ["<start_of_turn>", "<table>", "\n", "\n\n", "▁▁", "▁▁▁▁"]
GPT2 = None  # the library's own
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PIECES = [
    "",
    " ",
    "  two  spaces ",
    "\r\n",
    "\n\n\t \r",
    "\x00",
    "a\x00b\x01\x7f\x80",
    "▁ a▁b",
    "<s> </s> <unk> <pad> <0x41>",
    "<|im_end|><|endoftext|><|begin_of_text|>",
    "x³ − 2x² + ½ ≤ √2 · π ∫∑∂",
    "e\u0301 n\u0303\u0323 \u0301 \u1112\u1161\u11ab \u0958",
    "👩‍👩‍👧 🇩🇪 \U0010ffff \ufffd \ufeff",
    "中文 кириллица עברית हिन्दी ﬁ ①",
    r"\frac{\partial f}{\partial x} = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    "31415926535897932384626433832795028841971",
    "\u00a0\u2003\u3000\x85\u2028",
    "the sum of the Series I'm we'll IT'S",
]
TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(" ▁\\{}<>0123456789\n\r\t\x00aeinrt\u0301"),
    )
) | st.lists(st.sampled_from([*PIECES, " the", "12", "<s>", "<think>"])).map("".join)


def byte_level(pattern: str | None, *, nfc: bool = False, size: int = 500) -> Tokenizer:
    """Byte-level BPE, cut by a pattern; GPT-2's without one."""
    made = Tokenizer(models.BPE())
    if nfc:
        made.normalizer = normalizers.NFC()
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    made.pre_tokenizer = own
    if pattern is not None:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, own])
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )
    return made


def gpt2(folder: Path) -> Path:
    """SmolLM's way: a beginning has a name, but nothing puts it before a text."""
    made = byte_level(GPT2)
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return written(folder, made, names)


def smollm2(folder: Path) -> Path:
    """Digits one by one, then GPT-2's pattern; tokens of repositories that are no special ones."""
    made = byte_level(GPT2)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken(name, normalized=False) for name in ("<repo_name>", "\t\t", "｜▁")])
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return written(folder, made, names)


def llama3(folder: Path) -> Path:
    """A beginning put there by the post-processor, several ends, no padding, and words that are
    pieces whether or not merges make them."""
    made = byte_level(LLAMA3)
    made.model.ignore_merges = True
    made.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    begin = made.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    made.post_processor = processors.Sequence([made.post_processor, template])
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    ids = {"bos_token_id": begin, "eos_token_id": [begin + 1, begin + 2]}
    return written(folder, made, names, generation=ids)


def qwen2(folder: Path) -> Path:
    """NFC, no beginning, and added tokens that are no special ones."""
    made = byte_level(QWEN2, nfc=True)
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken("<think>", normalized=False)])
    names = {
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>"],
    }
    return written(folder, made, names)


def converted(model: bytes, controls: int) -> Tokenizer:
    """The BPE of a SentencePiece model, with bytes for what it does not know."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    merges = [
        (vocabulary[a + b], a, b)
        for a in vocabulary
        for b in vocabulary
        if a + b in vocabulary and min(vocabulary[a], vocabulary[b]) >= controls
    ]
    pairs = [(a, b) for _, a, b in sorted(merges)]
    return Tokenizer(
        models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )


def llama2_json(folder: Path) -> Path:
    """BPE over "▁" with a space before the text, as converted from `llama2_model`."""
    made = converted(llama2_model(), controls=3)
    _like_llama2(made)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return written(folder, made, LLAMA_NAMES)


def phi3(folder: Path) -> Path:
    """Llama 2's, with an end of its own and tokens that take the white space after them."""
    made = converted(llama2_model(), controls=3)
    _like_llama2(made)
    made.add_special_tokens(["<unk>", "<s>"])
    # Not special in that file: the end of Llama, which is a text here.
    made.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    chat = ("<|endoftext|>", "<|assistant|>", "<|user|>")
    made.add_special_tokens(
        [AddedToken(name, rstrip=name != chat[0], normalized=False) for name in chat]
    )
    names = {
        "add_bos_token": False,
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    }
    return written(folder, made, names)


def _like_llama2(made: Tokenizer) -> None:
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def gemma_json(folder: Path) -> Path:
    """As converted from `gemma_model`: what its user gave are added tokens, and pieces too."""
    made = converted(gemma_model(), controls=4)
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_special_tokens(["<pad>", "</s>", "<s>", "<unk>"])
    made.add_tokens([AddedToken(name, normalized=False) for name in GEMMA_SYMBOLS])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    return written(folder, made, {**LLAMA_NAMES, "pad_token": "<pad>"})


def metaspace(folder: Path) -> Path:
    """BPE whose pre-tokenizer writes spaces as "▁", with one before the first word alone."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        [word for line in LINES for word in line.split(" ")],
        trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False),
    )
    document = json.loads(made.to_str())
    # The trainer takes bytes for special tokens; in a finished tokenizer they are pieces.
    document["added_tokens"] = document["added_tokens"][:3]
    document["post_processor"] = {"type": "BertProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return written(folder, Tokenizer.from_str(json.dumps(document)), names)


def unigram(folder: Path) -> Path:
    """Unigram with T5's normaliser and specials that are pieces of the model."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        LINES,
        trainers.UnigramTrainer(
            vocab_size=400,
            special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return written(folder, made, names)


def written(folder: Path, made: Tokenizer, names: dict, generation: dict | None = None) -> Path:
    """A model's folder as far as its tokenizer goes."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def edit(folder: Path, name: str, change: Callable[[dict], Any]) -> None:
    """Change the JSON object in a file; an empty one where there is none."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


def sentencepiece_model(**options) -> bytes:
    """A trained SentencePiece model's bytes."""
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 500,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, **{**settings, **options}
    )
    return model.getvalue()


def llama2_model() -> bytes:
    """unk 0, bos 1, eos 2, no padding, a space before the text, nothing normalised."""
    return sentencepiece_model(
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True
    )


def gemma_model(symbols: Sequence[str] = GEMMA_SYMBOLS) -> bytes:
    """pad 0, eos 1, bos 2, unk 3, no space before the text, pieces of the user's."""
    return sentencepiece_model(
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=list(symbols),
    )


def t5_model() -> bytes:
    """Unigram that folds text (NFKC) and white space; no beginning, no bytes."""
    return sentencepiece_model(
        model_type="unigram",
        vocab_size=400,
        byte_fallback=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )


JSON = {
    "gpt2": gpt2,
    "smollm2": smollm2,
    "llama3": llama3,
    "qwen2": qwen2,
    "llama2": llama2_json,
    "phi3": phi3,
    "gemma": gemma_json,
    "metaspace": metaspace,
    "unigram": unigram,
}
MODELS = {"llama2": llama2_model, "gemma": gemma_model, "t5": t5_model}
