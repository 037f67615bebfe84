"""What the tokenizer learns from: which texts stay whole, where words end, which letters count."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import sentencepiece

# Commands that mean one thing each: a model should not have to spell them.
_LATEX = r"""
\frac \dfrac \sqrt \cdot \times \div \pm \mp \boxed \text \mathrm \mathbb \mathbf \operatorname
\left \right \quad \begin \end \begin{pmatrix} \end{pmatrix} \begin{bmatrix} \end{bmatrix}
\begin{vmatrix} \end{vmatrix} \begin{cases} \end{cases} \begin{align} \end{align}
\begin{align*} \end{align*} \begin{aligned} \end{aligned} \begin{equation} \end{equation}
\int \iint \oint \sum \prod \lim \partial \nabla \infty \prime \circ \ldots \cdots \vdots
\sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan \sinh \cosh \tanh \exp \log \ln
\det \dim \ker \operatorname{rank} \operatorname{Res} \operatorname{tr} \min \max \gcd \bmod
\le \leq \ge \geq \ne \neq \approx \equiv \sim \propto \in \notin \subset \subseteq \cup \cap
\setminus \emptyset \forall \exists \implies \iff \land \lor \neg \to \mapsto \rightarrow
\Rightarrow \therefore \mid \overline \bar \hat \vec \tilde \dot \ddot \Re \Im \langle \rangle
\alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \kappa \lambda \mu \nu \xi
\pi \rho \sigma \tau \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Sigma \Phi
\Psi \Omega
"""
LATEX_COMMANDS: tuple[str, ...] = tuple(_LATEX.split())

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
BYTES = 256
# The rest of the characters, the rarest, are written in bytes.
COVERAGE = 0.9995
LONGEST_WORD = 64

# Operators, brackets, sub- and superscripts: each is a word of its own, so no piece joins two
# of them and "x^{2}+1" is always cut at the same places.
_OPERATORS = (
    r"!-/:-@\[-`{-~\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7"
    r"\u2010-\u27bf\u2900-\u2aff"
)
# Controls, and the characters SentencePiece keeps for itself in training, go to bytes.
_UNLEARNABLE = r"\x00-\x1f\x7f-\x9f\u2581\u2585\ufffd\ufeff"
# A word takes the space before it along, but a digit does not: a number's first digit would
# otherwise be another token than the same digit further right.
_WORD = re.compile(
    rf"\d| ?[^\s\d{_OPERATORS}{_UNLEARNABLE}]{{1,{LONGEST_WORD}}}| ?[{_OPERATORS}]| "
)


def smallest_vocabulary(commands: Sequence[str]) -> int:
    """Special pieces, bytes, commands, and room for one character and one merge."""
    return len(SPECIALS) + BYTES + len(commands) + 2


def command_pattern(commands: Sequence[str]) -> re.Pattern[str]:
    r"""Finds commands in a text, the longest first: `\int` is not `\in` and a t."""
    longest_first = sorted(commands, key=lambda command: (-len(command), command))
    # The lookahead that never holds stands for "no commands at all".
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def count_words(texts: Iterable[str], commands: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each word, and each command, occurs. Words never reach across a command."""
    words: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    pattern = command_pattern(commands)
    for text in texts:
        seen.update(pattern.findall(text))
        for part in pattern.split(text):
            words.update(_WORD.findall(part))
    return words, seen


def within_alphabet(words: Counter[str], slots: int) -> Counter[str]:
    """The words, cut at characters too rare to deserve one of `slots` pieces of their own."""
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    enough = COVERAGE * letters.total()
    # The space always has its piece: SentencePiece would write it as the bytes of its stand-in.
    kept = {" "}
    covered = letters[" "]
    for letter, count in sorted(letters.items(), key=lambda item: (-item[1], item[0])):
        if len(kept) >= slots or covered >= enough:
            break
        if letter not in kept:
            kept.add(letter)
            covered += count
    cut: Counter[str] = Counter({" ": 1})
    for word, count in words.items():
        for part in "".join(c if c in kept else "\n" for c in word).split("\n"):
            if part:
                cut[part] += count
    return cut


def train_model(words: Counter[str], vocab_size: int, commands: Sequence[str]) -> bytes:
    """A serialised SentencePiece BPE model; the same bytes for the same words and commands."""
    # Ties between merges fall by order of appearance: a fixed order makes them repeatable.
    lines = (f"{word}\t{count}" for word, count in sorted(words.items()))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        input_format="tsv",
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        user_defined_symbols=list(commands),
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        split_by_unicode_script=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
