"""Small pipeline folders as diffusers lays them out, and tokenizers to go into them."""

import json
import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

FLUX_1 = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.30.0.dev0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FLUX_2 = {
    "_class_name": "Flux2Pipeline",
    "_diffusers_version": "0.36.0.dev0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Mistral3ForConditionalGeneration"],
    "tokenizer": ["transformers", "PixtralProcessor"],
    "transformer": ["diffusers", "Flux2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
}
KLEIN = {
    **FLUX_2,
    "_class_name": "Flux2KleinPipeline",
    "is_distilled": True,
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
    "tokenizer": ["transformers", "Qwen2TokenizerFast"],
}


def write_index(directory, index):
    text = index if isinstance(index, str) else json.dumps(index, indent=2)
    (directory / "model_index.json").write_text(text)


def write_unigram(directory):
    """A tokenizer.json of T5's kind, of 57 pieces, and what T5 declares beside it."""
    letters = [(f"{letter}", -4.0) for letter in string.ascii_lowercase]
    words = [(f"▁{letter}", -3.5) for letter in string.ascii_lowercase]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*special, *letters, *words, ("▁the", -2.0), ("ing", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([name for name, _ in special])
    _write_tokenizer(directory, tokenizer, "<pad>", "</s>")


def write_byte_level(directory):
    """A tokenizer.json of Qwen's and Mistral's kind, of 258 pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|end|>"])
    _write_tokenizer(directory, tokenizer, "<|pad|>", "<|end|>")


def _write_tokenizer(directory, tokenizer, pad, end):
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    declared = {"pad_token": pad, "eos_token": end}
    (directory / "tokenizer_config.json").write_text(json.dumps(declared))
