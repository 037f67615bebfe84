"""The checker's word on an answer to a problem in free text, when it can tell.

The request is recognised by its words, the formulas in it are parsed, and the answer is tested
against them: an integral is differentiated, a solution substituted, roots are SymPy's. What is not
recognised to the last word gets no verdict, and text is never run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.grading.answers import is_unevaluated, read_answer
from minillm.grading.arithmetic import NotEvaluable
from minillm.grading.compare import number_at, numeric, same_value
from minillm.grading.differentiate import differentiate, rebuild, resolve, substitute
from minillm.grading.families import constants_beside
from minillm.grading.lexer import MAX_CHARACTERS
from minillm.grading.matching import Decide, Matcher, Values, base_name
from minillm.grading.problem_text import Request, read_problem
from minillm.grading.statements import flat, form, restates
from minillm.grading.tree import (
    UNEVALUATED,
    ZERO,
    Add,
    Apply,
    Bag,
    Call,
    Constant,
    Derivative,
    Divide,
    Integral,
    Listing,
    Multiply,
    Negate,
    Number,
    Relation,
    Symbol,
    Tree,
    contains,
    free_symbols,
    walk,
)

Roots = Callable[[Tree, Tree, str], list[tuple[str, str]] | None]
ROOT_DIGITS = 60
WRAPPERS = {
    "modulus": "abs", "magnitude": "abs", "conjugate": "conjugate", "determinant": "det",
    "trace": "trace", "transpose": "transpose",
}  # fmt: skip
COMBINED = {"add": Add, "sum": Add, "multiply": Multiply, "product": Multiply}


def check(problem: str, answer: str, decide: Decide, roots: Roots) -> bool | None:
    """True or False where the request is understood, otherwise None.

    Args:
        decide: whether two expressions are equal.
        roots: the distinct roots of a polynomial equation, as decimals.
    """
    if max(len(problem), len(answer)) > MAX_CHARACTERS:
        return None
    request = read_problem(problem)
    if not request.formulas or request.unread:
        return None
    given = read_answer(answer)
    verdict = _Check(request, given, decide, roots).verdict()
    if verdict and given is not None and _is_task(given) and restates(answer, problem):
        return False
    return verdict


def _is_task(given: Tree) -> bool:
    """Whether something is left to multiply out or to carry out."""
    if is_unevaluated(given) or _is_sum_to_carry_out(given):
        return True
    products = (part.factors for part in walk(given) if isinstance(part, Multiply))
    return any(sum(not isinstance(f, Symbol) for f in factors) > 1 for factors in products)


def _is_sum_to_carry_out(given: Tree) -> bool:
    """Whether two numbers of a sum, or the numbers of imaginary parts, are still to be added."""
    for part in walk(given):
        if isinstance(part, Add):
            kinds = [kind for term in flat(part) if (kind := _number_kind(term)) is not None]
            if len(kinds) > len(set(kinds)):
                return True
    return False


def _number_kind(term: Tree) -> str | None:
    """ "real" or "imaginary" for a number written in figures, None for anything else."""
    match term:
        case Number():
            return "real"
        case Constant("i"):
            return "imaginary"
        case Negate(operand):
            return _number_kind(operand)
        case Divide(numerator, Number()):
            return _number_kind(numerator)
        case Multiply((Number(), Constant("i"))):
            return "imaginary"
    return None


def _is_product_to_carry_out(given: Tree) -> bool:
    """Whether two factors of a product are numbers or sums."""
    return any(
        sum(isinstance(f, Number | Negate | Add) for f in flat(part)) > 1
        for part in walk(given)
        if isinstance(part, Multiply)
    )


class _Check:
    """One answer to one request."""

    def __init__(self, request: Request, given: Tree | None, decide: Decide, roots: Roots) -> None:
        self.request = request
        self.formulas = request.formulas
        self.given = given
        self.decide = decide
        self.roots = roots
        # What "add a and b" or "multiply a and b" asks for, written out.
        self.combined: Tree | None = None

    def verdict(self) -> bool | None:
        """The kinds of request from the most telling sign to the least."""
        request = self.request
        parts = [part for tree in self.formulas for part in walk(tree)]
        calls = [part for part in parts if isinstance(part, Call)]
        if any(call.primes and call.name in "yx" for call in calls):
            return self._differential_equation(calls)
        if any(isinstance(part, Integral) for part in parts):
            return self._written_integral()
        if request.says("derivative", "differentiate") or any(call.primes for call in calls):
            return self._derivative()
        if request.says("integral", "integrate", "antiderivative", "antiderivatives"):
            return self._antiderivative(self._body())
        if any(isinstance(tree, Relation) for tree in self.formulas) and self._has_equation():
            return self._equation()
        return self._computation()

    def _has_equation(self) -> bool:
        """One equation whose left side is no name being given a meaning, or a plain "solve"."""
        return len(self.formulas) == 1 and (
            self.request.says("solve", "roots", "solutions", "zeros")
            or not isinstance(self.formulas[0].sides[0], Symbol | Call)  # type: ignore[attr-defined]
        )

    def _body(self) -> Tree | None:
        """The one expression asked about, with the definitions beside it put in."""
        meanings: dict[str, Tree] = {}
        asked: list[Tree] = []
        defined: list[Tree] = []
        for tree in self.formulas:
            match tree:
                case Relation(("=",), (Symbol(name), right)):
                    meanings[name] = right
                case Relation(("=",), (Call(_, 0, _), right)):
                    defined.append(right)
                case Call(_, 0 | 1, _):
                    continue
                case _:
                    asked.append(tree)
        if not asked:
            asked = defined or list(meanings.values())
        if len(asked) == 2 and not meanings:
            kinds = {kind for word, kind in COMBINED.items() if self.request.says(word)}
            if len(kinds) == 1:
                self.combined = kinds.pop()(tuple(asked))
                asked = [self.combined]
        if len(asked) != 1:
            return None
        body = asked[0]
        for name, meaning in meanings.items():
            body = substitute(body, name, meaning)
        return None if contains(body, Relation, Call, Listing) else body

    def _answered(self) -> Values | None:
        """The values of the answer, None where it gives none or leaves the work undone."""
        if self.given is None:
            return None
        values = Matcher(self.decide, None).values(self.given)
        if values is None or any(map(is_unevaluated, values.items)):
            return None
        return values

    def _single(self) -> Tree | None:
        values = self._answered()
        return values.items[0] if values is not None and len(values.items) == 1 else None

    def _value(self, truth: Tree) -> bool | None:
        """Whether the answer is this expression, carried out."""
        if contains(truth, Relation, Listing, Call, Bag):
            return None
        if contains(truth, *UNEVALUATED) and same_value(truth, ZERO) is None:
            return None
        given = self._single()
        return given is not None and self.decide(given, truth)

    def _derivative(self) -> bool | None:
        request = self.request
        stationary = request.says("zero", "vanish") or any(
            isinstance(tree, Relation) and isinstance(tree.sides[0], Call) and tree.sides[0].primes
            for tree in self.formulas
        )
        formulas = self.formulas
        if stationary:
            self.formulas = tuple(
                tree
                for tree in formulas
                if not (isinstance(tree, Relation) and tree.sides[1] == ZERO)
            )
        body = self._body()
        variable = None if body is None else _variable(body)
        more = ("derivative", "differentiate", "first", "where", "zero", "vanish", "does")
        if body is None or variable is None or not request.only(*more):
            return None
        try:
            slope = differentiate(resolve(body), variable)
        except NotEvaluable:
            return None
        return self._solved(slope, ZERO, variable) if stationary else self._value(slope)

    def _written_integral(self) -> bool | None:
        integral = self.formulas[0]
        if not isinstance(integral, Integral) or len(self.formulas) > 1:
            return None
        if integral.low is not None:
            plain = self.request.only("integral", "definite", "integrate")
            return self._value(integral) if plain else None
        return self._antiderivative(integral.body, integral.variable)

    def _antiderivative(self, body: Tree | None, variable: str | None = None) -> bool | None:
        variable = variable or (None if body is None else _variable(body))
        more = ("integral", "indefinite", "integrate", "antiderivative", "antiderivatives",
                "general", "most")  # fmt: skip
        if body is None or variable is None or not self.request.only(*more):
            return None
        value = self._single()
        if value is None:
            return False
        known = free_symbols(body) | {variable}
        constants = constants_beside(value, known)
        if len(constants) > 1 or free_symbols(value) - known - constants:
            return False
        # "An antiderivative" is one function; every other wording asks for all of them.
        one_will_do = "an antiderivative" in " ".join(self.request.words)
        if not constants and not one_will_do:
            return False
        try:
            moves = all(same_value(differentiate(value, c), ZERO) is False for c in constants)
            return moves and self.decide(differentiate(value, variable), body)
        except NotEvaluable:
            return None

    def _equation(self) -> bool | None:
        equation = self.formulas[0]
        names = free_symbols(equation)
        more = ("solve", "equation", "quadratic", "linear", "roots", "solutions", "zeros",
                "solution", "polynomial")  # fmt: skip
        if not isinstance(equation, Relation) or equation.operators != ("=",):
            return None
        if len(names) != 1 or contains(equation, Call, *UNEVALUATED):
            return None
        if not self.request.only(*more):
            return None
        left, right = equation.sides
        return self._solved(left, right, next(iter(names)))

    def _solved(self, left: Tree, right: Tree, name: str) -> bool | None:
        """Whether the answer gives all roots of left = right, and nothing else."""
        truth = self.roots(left, right, name)
        if truth is None:
            return None
        values = self._answered()
        if values is None or (values.name and base_name(values.name) != name):
            return False
        context = numeric(ROOT_DIGITS, False).context
        wanted = [context.mpc(real, imaginary) for real, imaginary in truth]
        if len(values.items) < len(wanted) and any(abs(root.imag) > 1e-20 for root in wanted):
            # Right over the reals perhaps, and the problem does not say over what.
            return None
        return _same_numbers(values.items, wanted)

    def _differential_equation(self, calls: list[Call]) -> bool | None:
        """The answer substituted for y, and each condition y(a) = b tried."""
        equations = [tree for tree in self.formulas if isinstance(tree, Relation)]
        others = [tree for tree in self.formulas if not isinstance(tree, Relation | Call)]
        more = ("solve", "initial", "problem", "differential", "equation", "general", "solution")
        name = calls[0].name
        if others or any(c.name != name for c in calls) or not self.request.only(*more):
            return None
        values, value = self._answered(), self._single()
        if values is None or value is None or values.name not in (None, name):
            return False
        x = "x" if name == "y" else "t"
        conditions = sum(_is_condition(equation) for equation in equations)
        missing = max(call.primes for call in calls) - conditions
        constants = constants_beside(value, frozenset((x,)))
        if free_symbols(value) - constants - {x} or len(constants) != missing:
            return False
        if missing > 1:
            # Counting is not enough: two constants can be one in disguise.
            return None
        try:
            if any(same_value(differentiate(value, c), ZERO) is not False for c in constants):
                return False
            sides = [[_put(s, name, value, x) for s in e.sides] for e in equations]
        except NotEvaluable:
            return None
        return all(self.decide(*pair) for pair in sides if len(pair) == 2)

    def _computation(self) -> bool | None:
        body = self._body()
        if body is None or free_symbols(body):
            return None
        words = self.request.words
        for word, function in WRAPPERS.items():
            if word in words:
                body = Apply(function, (body,))
        if "absolute" in words:
            body = Apply("abs", (body,))
        more = ("simplify", "expand", "write", "as", "form", "number", "complex", "matrix",
                "difference", "quotient", "absolute", "multiply", "v", "av")  # fmt: skip
        if not self.request.only(*more, *WRAPPERS, *COMBINED):
            return None
        if isinstance(body, Derivative):
            body = resolve(body)
        verdict = self._value(body)
        return False if verdict and self._only_combines() else verdict

    def _only_combines(self) -> bool:
        """Whether the answer to "add a and b" is a+b, with the work left undone."""
        given = self._single()
        if self.combined is None or given is None or form(given) != form(self.combined):
            return False
        return _is_sum_to_carry_out(given) or _is_product_to_carry_out(given)


def _variable(body: Tree) -> str | None:
    names = free_symbols(body)
    if len(names) == 1:
        return next(iter(names))
    return "x" if "x" in names or not names else None


def _is_condition(equation: Relation) -> bool:
    """y(0) = 3."""
    call = equation.sides[0]
    at = call.arguments[0] if isinstance(call, Call) and len(call.arguments) == 1 else None
    return at is not None and not free_symbols(at)


def _put(node: Tree, name: str, value: Tree, x: str) -> Tree:
    """The tree with y, y', y(x), y(0) replaced by what the solution makes of them."""
    if node == Symbol(name):
        return value
    if isinstance(node, Call) and node.name == name:
        result = value
        for _ in range(node.primes):
            result = differentiate(result, x)
        return substitute(result, x, node.arguments[0]) if node.arguments else result
    return rebuild(node, lambda child: _put(child, name, value, x))


def _same_numbers(items: tuple[Tree, ...], wanted: list[Any]) -> bool:
    """Each value is a root and each root is among the values, to 30 digits."""
    arithmetic = numeric(ROOT_DIGITS, False)
    found = [number_at(item, {}, arithmetic) for item in items]
    if None in found:
        return False

    def among(one: Any, several: list[Any]) -> bool:
        return any(abs(one - other) <= 1e-30 * (1 + abs(one)) for other in several)

    return all(among(v, wanted) for v in found) and all(among(w, found) for w in wanted)
