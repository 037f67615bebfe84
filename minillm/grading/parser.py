"""Tokens to a tree, by recursive descent.

The grammar, loosest first: listing, relation, union, sum, term, factor, primary. Juxtaposition is
multiplication. Notation that reaches over several tokens (integrals, limits, sums, d/dx,
matrices) is read in `notation`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

from minillm.grading import notation
from minillm.grading.lexer import FormulaError, Token, tokenize
from minillm.grading.tree import (
    ONE,
    Add,
    Apply,
    Bag,
    Call,
    Constant,
    Derivative,
    Divide,
    Interval,
    Listing,
    Matrix,
    Multiply,
    Negate,
    Number,
    PlusMinus,
    Power,
    Relation,
    Symbol,
    Text,
    Tree,
    Tuple,
    Union,
)

MAX_DEPTH = 60
END = Token("end of text", "")
RELATIONS = frozenset(("=", "<", ">", "<=", ">=", "!=", "in"))
# Names that stand for a function whenever a bracket follows; the others only before one atom,
# so that y(0) is a value of y and x(x+1) is a product.
FUNCTION_NAMES = frozenset("fghFGHP")
UNKNOWN_FUNCTIONS = frozenset("yuvwxzpqXYT")
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "sinh": "arsinh",
            "cosh": "arcosh", "tanh": "artanh"}  # fmt: skip
RENAMED = {"conj": "conjugate", "tr": "trace"}


def parse(text: str) -> Tree:
    """The tree of one formula.

    Raises:
        FormulaError: it is no formula, or one beyond the bounds on length and depth.
    """
    parser = Parser(tokenize(text))
    tree = parser.listing()
    if parser.peek() is not END:
        raise FormulaError(f"unexpected {parser.peek().text!r}")
    return tree


class Parser:
    """One pass over the tokens of one formula."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0
        self.integrals = 0
        self.differential: str | None = None
        self.bound: set[str] = set()

    def peek(self, ahead: int = 0) -> Token:
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else END

    def next(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def sees(self, *texts: str, ahead: int = 0) -> bool:
        token = self.peek(ahead)
        return token.kind == "op" and token.text in texts

    def accept(self, *texts: str) -> str | None:
        return self.next().text if self.sees(*texts) else None

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise FormulaError(f"wanted {text!r} before {self.peek().text!r}")

    @contextmanager
    def deeper(self, *, bracket: bool = False) -> Iterator[None]:
        """One level down; inside brackets, bars and differentials outside are out of sight."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"nested deeper than {MAX_DEPTH}")
        saved = self.bars, self.integrals
        if bracket:
            self.bars = self.integrals = 0
        yield
        self.bars, self.integrals = saved
        self.depth -= 1

    def listing(self) -> Tree:
        items = [self.relation()]
        separators = set()
        while separator := self.accept(",", ";", "or", "and"):
            separators.add({";": ","}.get(separator, separator))
            self.accept("or", "and")
            items.append(self.relation())
        if len(items) == 1:
            return items[0]
        return Listing(tuple(items), next((s for s in ("or", "and") if s in separators), ","))

    def relation(self) -> Tree:
        sides = [self.union()]
        operators = []
        while self.sees(*RELATIONS):
            operators.append(self.next().text)
            sides.append(self.union())
        return Relation(tuple(operators), tuple(sides)) if operators else sides[0]

    def union(self) -> Tree:
        parts = [self.sum()]
        while self.accept("cup"):
            parts.append(self.sum())
        return Union(tuple(parts)) if len(parts) > 1 else parts[0]

    def sum(self) -> Tree:
        with self.deeper():
            terms = [self.signed(self.accept("+", "-", "±", "∓") or "+")]
            while sign := self.accept("+", "-", "±", "∓"):
                terms.append(self.signed(sign))
        return Add(tuple(terms)) if len(terms) > 1 else terms[0]

    def signed(self, sign: str) -> Tree:
        if self.sees("+", "-"):
            with self.deeper():
                term = self.signed(self.next().text)
        else:
            term = self.term()
        if sign == "-":
            return Negate(term)
        return term if sign == "+" else PlusMinus(term, 1 if sign == "±" else -1)

    def term(self) -> Tree:
        above, below = [self.factor()], []
        while True:
            if self.accept("*"):
                above.append(self.signed_factor())
            elif self.accept("/"):
                below.append(self.signed_factor())
            elif self.starts_factor():
                mixed = self.peek(-1).kind == "number" and not below
                factor = self.factor()
                if mixed and notation.is_mixed(above[-1], factor):
                    above[-1] = Add((above[-1], factor))
                else:
                    above.append(factor)
            else:
                break
        product = Multiply(tuple(above)) if len(above) > 1 else above[0]
        if not below:
            return product
        return Divide(product, Multiply(tuple(below)) if len(below) > 1 else below[0])

    def signed_factor(self) -> Tree:
        if self.accept("-"):
            with self.deeper():
                return Negate(self.signed_factor())
        self.accept("+")
        return self.factor()

    def at_differential(self) -> bool:
        if self.integrals == 0 or self.peek() != Token("name", "d"):
            return False
        return self.peek(1).kind == "name"

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.kind in ("number", "function", "begin", "command"):
            return True
        if token.kind == "name":
            return not self.at_differential()
        if self.sees("|"):
            return self.bars == 0
        return self.sees("(", "[", "{", "\\{")

    def factor(self) -> Tree:
        with self.deeper():
            base = self.primary()
            # Each mark wraps the tree once more, so they count as depth.
            for _ in range(4):
                if self.sees("^"):
                    if self.sees("+", "-", ahead=1) and self.sees("}", ahead=2):
                        return base  # the side of a limit: x -> 0^+
                    base = self.raised(base)
                elif self.accept("!"):
                    base = Apply("factorial", (base,))
                elif self.sees("'"):
                    base = Derivative(base, None, self.primes())
                elif self.accept("%"):
                    base = Divide(base, Number(Fraction(100)))
                elif self.accept("°"):
                    base = notation.degrees(base)
                else:
                    break
            return base

    def raised(self, base: Tree) -> Tree:
        """base, with the superscript that comes next applied to it."""
        self.expect("^")
        if self.accept("'"):
            return Derivative(base, None, 1)
        if self.accept("°"):
            return notation.degrees(base)
        if self.sees("{") and self.sees("°", "'", ahead=1) and self.sees("}", ahead=2):
            mark = self.peek(1).text
            self.at += 3
            return notation.degrees(base) if mark == "°" else Derivative(base, None, 1)
        exponent = self.script()
        if exponent == Symbol("T") and isinstance(base, Matrix):
            return Apply("transpose", (base,))
        return Power(base, exponent)

    def script(self, *, tower: bool = True) -> Tree:
        """What follows ^ or _: a braced group, or one signed atom (x^-2, e^x, and 2^x^2)."""
        with self.deeper():
            if self.sees("{"):
                return self.group()
            if self.accept("-"):
                return Negate(self.script(tower=tower))
            self.accept("+")
            atom = self.primary()
            return self.raised(atom) if tower and self.sees("^") else atom

    def primes(self) -> int:
        count = 0
        while self.accept("'"):
            count += 1
        if count > 6:
            raise FormulaError("more than six primes")
        return count

    def primary(self) -> Tree:
        token = self.peek()
        if token.kind == "number":
            self.next()
            return Number(token.value or Fraction(0))
        if token.kind == "name":
            return self.name()
        if token.kind == "function":
            return self.function()
        if token.kind == "command":
            return notation.command(self)
        if token.kind == "begin":
            return notation.environment(self)
        if token.kind == "text":
            self.next()
            return Text(token.text)
        if self.sees("(", "["):
            return self.bracket()
        if self.sees("{", "\\{"):
            return self.group()
        if self.accept("|"):
            with self.deeper(bracket=True):
                self.bars = 1
                body = self.sum()
                self.expect("|")
            return Apply("abs", (body,))
        raise FormulaError(f"unexpected {token.text or token.kind!r}")

    def group(self) -> Tree:
        """{...} is a LaTeX group, or a set in plain text where it holds a list; \\{...\\} a set."""
        opening = self.next().text
        closing = "}" if opening == "{" else "\\}"
        if self.accept(closing):
            return Bag(())
        with self.deeper(bracket=True):
            inside = self.listing()
            self.expect(closing)
        if isinstance(inside, Listing):
            return Bag(inside.items)
        return inside if opening == "{" else Bag((inside,))

    def bracket(self) -> Tree:
        opening = self.next().text
        with self.deeper(bracket=True):
            inside = self.listing()
            closing = self.accept(")", "]")
        if closing is None:
            raise FormulaError(f"{opening!r} is not closed")
        if not isinstance(inside, Listing):
            if (opening, closing) in (("(", "]"), ("[", ")")):
                raise FormulaError("an interval needs two ends")
            row = opening == "[" and notation.matrix_of_lists((inside,))
            return row or inside
        if opening == "[" and closing == "]":
            matrix = notation.matrix_of_lists(inside.items)
            if matrix:
                return matrix
        if (opening, closing) != ("(", ")") and len(inside.items) == 2:
            low, high = inside.items
            return Interval(low, high, opening == "[", closing == "]")
        return Tuple(inside.items)

    def name(self) -> Tree:
        letter = self.next().text
        if letter == "d" and notation.at_plain_derivative(self):
            return notation.plain_derivative(self)
        if letter in ("e", "i") and letter not in self.bound and not self.sees("_"):
            return Constant(letter)
        if self.accept("_"):
            letter = f"{letter}_{notation.subscript(self)}"
        primes = self.primes()
        if self.sees("(") and self.is_call(letter, primes):
            argument = self.bracket()
            items = argument.items if isinstance(argument, Tuple) else (argument,)
            return Call(letter, primes, items)
        return Call(letter, primes, ()) if primes else Symbol(letter)

    def is_call(self, letter: str, primes: int) -> bool:
        if letter[0] in FUNCTION_NAMES or primes:
            return True
        one_atom = self.peek(1).kind in ("name", "number") and self.sees(")", ahead=2)
        return one_atom and letter[0] in UNKNOWN_FUNCTIONS and self.peek(1).text != letter

    def function(self) -> Tree:
        name = self.next().text
        name = RENAMED.get(name, name)
        base = self.script() if name == "log" and self.accept("_") else None
        power = None
        if self.accept("^"):
            power = self.script()
        arguments = self.arguments()
        if power == Negate(ONE) and name in INVERSES:
            return Apply(INVERSES[name], arguments)
        if name == "log10":
            name, base = "log", Number(Fraction(10))
        if name == "log":
            name = "ln"
        applied: Tree = Apply(name, arguments)
        if base is not None:
            applied = Divide(applied, Apply("ln", (base,)))
        return applied if power is None else Power(applied, power)

    def arguments(self) -> tuple[Tree, ...]:
        """One bracket, or the product up to the next sign, function or bracket: sin 2x cos x."""
        if self.sees("(", "["):
            inside = self.bracket()
            return inside.items if isinstance(inside, Tuple) else (inside,)
        with self.deeper():
            if self.accept("-"):
                return (Negate(self.arguments()[0]),)
            factors = [self.factor()]
            while self.starts_factor() and not self.sees("(", "[", "|", "\\{"):
                if self.peek().kind == "function" or isinstance(factors[-1], Apply | Matrix):
                    break
                factors.append(self.factor())
        return (Multiply(tuple(factors)) if len(factors) > 1 else factors[0],)
