"""Text to tokens: LaTeX, plain text and Unicode notation become one small alphabet.

Bounds (a formula beyond them is refused, not shortened): MAX_CHARACTERS, MAX_TOKENS,
MAX_DIGITS. Every pattern below is matched at one place and has no nested repetition, so the
time is linear in the length.
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARACTERS = 2_000
MAX_TOKENS = 400
MAX_DIGITS = 60


class FormulaError(ValueError):
    """The text is no formula that this package reads. Never shown as an error of the user's."""


class Token(NamedTuple):
    """kind is number, name, function, command, begin, end, text or op."""

    kind: str
    text: str
    value: Fraction | None = None


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = words(
    "sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh arsinh arcosh artanh "
    "ln log exp sqrt abs det tr arg re im conj max min gcd lcm floor ceil"
)
SYNONYMS = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "arctg": "arctan", "tg": "tan",
    "arcsinh": "arsinh", "arccosh": "arcosh", "arctanh": "artanh", "asinh": "arsinh",
    "acosh": "arcosh", "atanh": "artanh", "cosec": "csc", "lg": "log10", "trace": "tr",
    "Re": "re", "Im": "im", "Arg": "arg", "Log": "log",
}  # fmt: skip
GREEK = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu "
    "xi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Phi Psi Omega"
)
# Names found inside a run of letters; the short ones only as a run of their own, since they
# stand in too many words.
SHORT = frozenset(("re", "im", "tr", "Re", "Im", "lg", "tg"))
WORDS = (FUNCTIONS | SYNONYMS.keys() | {"pi", "theta", "lambda"}) - SHORT
LONGEST_WORD = max(map(len, WORDS))
SEPARATORS = {"or": "or", "and": "and"}

SPACING = words(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr quad qquad displaystyle "
    "textstyle limits nolimits middle"
)
COMMAND_OPS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "±", "mp": "∓", "le": "<=",
    "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "lt": "<",
    "gt": ">", "ne": "!=", "neq": "!=", "to": "->", "rightarrow": "->", "in": "in",
    "cup": "cup", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrace": "\\{",
    "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "prime": "'", "circ": "°", "degree": "°",
    "lor": "or", "vee": "or", "land": "and", "wedge": "and", "equiv": "=",
}  # fmt: skip
UNICODE_OPS = {
    "·": "*", "⋅": "*", "×": "*", "∙": "*", "−": "-", "–": "-", "÷": "/", "⁄": "/", "±": "±",
    "∓": "∓", "≤": "<=", "⩽": "<=", "≥": ">=", "⩾": ">=", "≠": "!=", "→": "->", "∈": "in",
    "∪": "cup", "°": "°", "′": "'", "’": "'", "∨": "or", "∧": "and",
}  # fmt: skip
UNICODE_COMMANDS = {
    "∫": "int", "∑": "sum", "∏": "prod", "√": "sqrt", "π": "pi", "∞": "infty", "∂": "partial",
    "∅": "emptyset", "ℝ": "reals",
}  # fmt: skip
UNICODE_LETTERS = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta",
    "η": "eta", "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu",
    "ξ": "xi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "χ": "chi", "ψ": "psi",
    "ω": "omega", "Δ": "Delta", "Ω": "Omega",
}  # fmt: skip
VULGAR = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4)}
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣⁱ", "0123456789+-()nxi", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))

PATTERN = re.compile(
    r"""
    (?P<space>\s+|~|\\[,;:!>\ ]|\$)
  | (?P<row>\\\\)
  | \\(?P<edge>begin|end)\s*\{(?P<environment>[A-Za-z]+)\*?\}(?:\{[lcr|]*\})?
  | \\(?:text|mathrm|operatorname|mathbf|mathit|mathsf|textbf|textit|mbox|boldsymbol|mathbb)
      \*?\s*\{(?P<styled>[^{}]*)\}
  | (?P<repeating>\d+\.\d*)\\overline\{(?P<period>\d+)\}
  | (?P<grouped>\d{1,3}(?:\{,\}\d{3}|\\,\d{3})+)
  | (?P<number>\d+(?:\.\d+)?|\.\d+)
  | (?P<word>[A-Za-z]+)
  | \\(?P<command>[A-Za-z]+)
  | (?P<escaped>\\[{}|])
  | (?P<percent>\\?%)
  | (?P<wide>\*\*|<=|>=|!=|->|\+/-|\+-)
  | (?P<single>[-+*/^_=<>()\[\]{}|,;!'&])
  | (?P<raised>[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣⁱ]+)
  | (?P<lowered>[₀₁₂₃₄₅₆₇₈₉]+)
  | (?P<unicode>[^\x00-\x7f])
    """,
    re.VERBOSE,
)
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,.])")


def op(text: str) -> Token:
    return Token("op", text)


def tokenize(text: str) -> list[Token]:
    """The tokens of one formula.

    Raises:
        FormulaError: too long, or a character that has no place in a formula.
    """
    if len(text) > MAX_CHARACTERS:
        raise FormulaError(f"{len(text)} characters; at most {MAX_CHARACTERS} are read")
    tokens: list[Token] = []
    at = depth = 0
    while at < len(text):
        # 1,000 is a thousand, but (1,000) and {1,200} are pairs.
        grouped = THOUSANDS.match(text, at) if depth == 0 else None
        found = grouped or PATTERN.match(text, at)
        if found is None:
            raise FormulaError(f"unreadable character {text[at]!r}")
        if grouped:
            tokens.append(literal(grouped.group().replace(",", "")))
        else:
            tokens.extend(_tokens_of(found))
        depth += _depth_change(found.group())
        at = found.end()
        if len(tokens) > MAX_TOKENS:
            raise FormulaError(f"more than {MAX_TOKENS} tokens")
    return tokens


def _depth_change(piece: str) -> int:
    if piece in ("(", "[", "{", "\\{"):
        return 1
    return -1 if piece in (")", "]", "}", "\\}") else 0


def literal(digits: str) -> Token:
    if len(digits) > MAX_DIGITS:
        raise FormulaError(f"a literal of {len(digits)} digits; at most {MAX_DIGITS} are read")
    return Token("number", digits, Fraction("0" + digits if digits.startswith(".") else digits))


def _tokens_of(found: re.Match[str]) -> list[Token]:
    kind = found.lastgroup or ""
    piece = found.group()
    if kind == "space":
        return []
    if kind == "row":
        return [op("\\\\")]
    if kind == "environment":
        return [Token(found["edge"], found["environment"])]
    if kind == "styled":
        return _styled(found["styled"])
    if kind == "period":
        return [_repeating(found["repeating"], found["period"])]
    if kind == "grouped":
        return [literal(re.sub(r"\D", "", piece))]
    if kind == "number":
        return [literal(piece)]
    if kind == "word":
        return split_word(piece)
    if kind == "command":
        return _command(found["command"])
    if kind == "escaped":
        return [op("|" if piece == "\\|" else piece)]
    if kind == "percent":
        return [op("%")]
    if kind == "wide":
        return [op({"**": "^", "+/-": "±", "+-": "±"}.get(piece, piece))]
    if kind == "raised":
        inside = tokenize("".join(RAISED[c] for c in piece))
        return [op("^"), op("{"), *inside, op("}")]
    if kind == "lowered":
        return [op("_"), literal("".join(LOWERED[c] for c in piece))]
    if kind == "unicode":
        return _unicode(piece)
    return [op(piece)]


def _styled(content: str) -> list[Token]:
    words = " ".join(content.split())
    if not words:
        return []
    if words in SEPARATORS:
        return [op(SEPARATORS[words])]
    name = SYNONYMS.get(words, words)
    if name in FUNCTIONS:
        return [Token("function", name)]
    if len(words) == 1 and words.isalpha():
        return [Token("command", "reals")] if words == "R" else [Token("name", words)]
    return [Token("text", words.lower())]


def _repeating(head: str, period: str) -> Token:
    if len(head) + len(period) > MAX_DIGITS:
        raise FormulaError("a repeating decimal that is too long")
    places = len(head) - head.index(".") - 1
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10**places)
    return Token("number", head + period, Fraction(head + "0") + tail)


def split_word(word: str) -> list[Token]:
    """Letters are a product (xy), function names are found inside (xsinx), prose is text."""
    if word in SEPARATORS:
        return [op(SEPARATORS[word])]
    if word in ("infinity", "oo"):
        return [Token("command", "infty")]
    if word in SHORT:
        return [_known_word(word)]
    pieces: list[Token] = []
    letters = at = 0
    while at < len(word):
        for length in range(min(LONGEST_WORD, len(word) - at), 1, -1):
            part = word[at : at + length]
            if part in WORDS:
                pieces.append(_known_word(part))
                at += length
                break
        else:
            pieces.append(Token("name", word[at]))
            letters += 1
            at += 1
    if letters >= 4:
        return [Token("text", word.lower())]
    return pieces


def _known_word(part: str) -> Token:
    if part == "pi":
        return Token("command", "pi")
    if part in GREEK:
        return Token("name", part)
    return Token("function", SYNONYMS.get(part, part))


def _command(name: str) -> list[Token]:
    if name in SPACING:
        return []
    if name in COMMAND_OPS:
        return [op(COMMAND_OPS[name])]
    known = SYNONYMS.get(name, name)
    if known in FUNCTIONS and known != "sqrt":
        return [Token("function", known)]
    if name in GREEK:
        return [Token("name", name)]
    if name == "R":
        return [Token("command", "reals")]
    return [Token("command", name)]


def _unicode(character: str) -> list[Token]:
    if character in UNICODE_OPS:
        return [op(UNICODE_OPS[character])]
    if character in UNICODE_COMMANDS:
        return [Token("command", UNICODE_COMMANDS[character])]
    if character in UNICODE_LETTERS:
        return [Token("name", UNICODE_LETTERS[character])]
    if character in VULGAR:
        return [Token("number", character, Fraction(*VULGAR[character]))]
    raise FormulaError(f"unreadable character {character!r}")
