"""Derivatives of trees, by the rules, without simplification beyond zeros and ones."""

from collections.abc import Callable

from minillm.grading.arithmetic import NotEvaluable
from minillm.grading.tree import (
    ONE,
    ZERO,
    Add,
    Apply,
    Bag,
    Constant,
    Derivative,
    Divide,
    Integral,
    Limit,
    Listing,
    Matrix,
    Multiply,
    Negate,
    Number,
    Power,
    Relation,
    Series,
    Symbol,
    Tree,
    Tuple,
    free_symbols,
    number,
    walk,
)

MAX_NODES = 4_000
TWO = number(2)


def differentiate(node: Tree, variable: str) -> Tree:
    """d(node)/d(variable).

    An indefinite integral over the variable gives its integrand; over another, nothing known.

    Raises:
        NotEvaluable: a function without a derivative here, or a result beyond MAX_NODES.
    """
    result = _derivative(node, variable)
    if sum(1 for _ in walk(result)) > MAX_NODES:
        raise NotEvaluable("a derivative that is too long")
    return result


def add(*terms: Tree) -> Tree:
    kept = tuple(term for term in terms if term != ZERO)
    return Add(kept) if len(kept) > 1 else kept[0] if kept else ZERO


def multiply(*factors: Tree) -> Tree:
    if ZERO in factors:
        return ZERO
    kept = tuple(factor for factor in factors if factor != ONE)
    return Multiply(kept) if len(kept) > 1 else kept[0] if kept else ONE


def _derivative(node: Tree, x: str) -> Tree:
    match node:
        case Symbol(name) if name == x:
            return ONE
        case Integral(body, variable, None, None) if variable == x:
            return body
        case Integral(_, variable, low, high) if low is not None and high is not None:
            return _leibniz(node, x)
        case Integral():
            raise NotEvaluable("an integral over another variable")
        case Derivative():
            return _derivative(resolve(node), x)
    if x not in free_symbols(node) and not any(isinstance(n, Integral) for n in walk(node)):
        return ZERO
    match node:
        case Add(terms):
            return add(*(_derivative(term, x) for term in terms))
        case Negate(operand):
            inner = _derivative(operand, x)
            return ZERO if inner == ZERO else Negate(inner)
        case Multiply(factors):
            return add(
                *(
                    multiply(*factors[:place], _derivative(factor, x), *factors[place + 1 :])
                    for place, factor in enumerate(factors)
                )
            )
        case Divide(above, below):
            top, bottom = _derivative(above, x), _derivative(below, x)
            if bottom == ZERO:
                return Divide(top, below)
            numerator = add(multiply(top, below), Negate(multiply(above, bottom)))
            return Divide(numerator, Power(below, TWO))
        case Power(base, exponent):
            return _power(base, exponent, x)
        case Apply(function, arguments):
            return _chain(function, arguments, x)
        case Matrix(rows):
            return Matrix(tuple(tuple(_derivative(e, x) for e in row) for row in rows))
        case Tuple(items):
            return Tuple(tuple(_derivative(item, x) for item in items))
    raise NotEvaluable(f"no derivative of {type(node).__name__}")


def _leibniz(node: Integral, x: str) -> Tree:
    assert node.low is not None and node.high is not None
    if x in free_symbols(node.body) - {node.variable}:
        raise NotEvaluable("a parameter under the integral")
    parts = []
    for end, sign in ((node.high, 1), (node.low, -1)):
        rate = _derivative(end, x) if x in free_symbols(end) else ZERO
        part = multiply(substitute(node.body, node.variable, end), rate)
        parts.append(part if sign > 0 or part == ZERO else Negate(part))
    return add(*parts)


def _power(base: Tree, exponent: Tree, x: str) -> Tree:
    inner = _derivative(base, x)
    if x not in free_symbols(exponent):
        lowered: Tree = Power(base, add(exponent, Negate(ONE)))
        if isinstance(exponent, Number):
            lower = exponent.value - 1
            lowered = ONE if lower == 0 else Power(base, number(lower))
        return multiply(exponent, lowered, inner)
    rate = _derivative(exponent, x)
    if base == Constant("e"):
        return multiply(Power(base, exponent), rate)
    if inner == ZERO:
        return multiply(Power(base, exponent), Apply("ln", (base,)), rate)
    logarithmic = add(multiply(rate, Apply("ln", (base,))), Divide(multiply(exponent, inner), base))
    return multiply(Power(base, exponent), logarithmic)


def _chain(function: str, arguments: tuple[Tree, ...], x: str) -> Tree:
    if function == "root":
        return _power(arguments[0], Divide(ONE, arguments[1]), x)
    if len(arguments) != 1:
        raise NotEvaluable(f"no derivative of {function}")
    argument = arguments[0]
    inner = _derivative(argument, x)
    if inner == ZERO:
        return ZERO
    return multiply(outer(function, argument), inner)


def outer(function: str, u: Tree) -> Tree:
    """The derivative of a function of one variable, at u."""

    def of(name: str) -> Tree:
        return Apply(name, (u,))

    square = Power(u, TWO)
    match function:
        case "sin":
            return of("cos")
        case "cos":
            return Negate(of("sin"))
        case "tan":
            return Power(of("sec"), TWO)
        case "sec":
            return Multiply((of("sec"), of("tan")))
        case "csc":
            return Negate(Multiply((of("csc"), of("cot"))))
        case "cot":
            return Negate(Power(of("csc"), TWO))
        case "exp":
            return of("exp")
        case "ln":
            return Divide(ONE, u)
        case "sqrt":
            return Divide(ONE, Multiply((TWO, of("sqrt"))))
        case "arcsin":
            return Divide(ONE, Apply("sqrt", (Add((ONE, Negate(square))),)))
        case "arccos":
            return Negate(Divide(ONE, Apply("sqrt", (Add((ONE, Negate(square))),))))
        case "arctan":
            return Divide(ONE, Add((ONE, square)))
        case "sinh":
            return of("cosh")
        case "cosh":
            return of("sinh")
        case "tanh":
            return Divide(ONE, Power(of("cosh"), TWO))
        case "arsinh":
            return Divide(ONE, Apply("sqrt", (Add((square, ONE)),)))
        case "arcosh":
            return Divide(ONE, Apply("sqrt", (Add((square, Negate(ONE))),)))
        case "artanh":
            return Divide(ONE, Add((ONE, Negate(square))))
        case "abs":
            return Divide(u, of("abs"))
    raise NotEvaluable(f"no derivative of {function}")


def resolve(node: Tree) -> Tree:
    """The tree with every d/dx and every prime carried out; the rest stands."""
    if not any(isinstance(part, Derivative) for part in walk(node)):
        return node
    if isinstance(node, Derivative):
        body = resolve(node.body)
        names = free_symbols(body)
        variable = node.variable
        if variable is None:
            # (x^3)' has one variable; with parameters beside it, it is x by custom.
            if len(names) > 1 and "x" not in names:
                raise NotEvaluable("a derivative whose variable is not clear")
            variable = "x" if "x" in names or not names else next(iter(names))
        for _ in range(node.order):
            body = differentiate(body, variable)
        return body
    return rebuild(node, resolve)


def substitute(node: Tree, name: str, value: Tree) -> Tree:
    """The tree with a variable replaced; bound variables of that name are left alone."""
    if node == Symbol(name):
        return value
    if isinstance(node, Series | Limit | Integral) and node.variable == name:
        return node
    return rebuild(node, lambda child: substitute(child, name, value))


def rebuild(node: Tree, change: Callable[[Tree], Tree]) -> Tree:
    """The same node over changed children."""
    match node:
        case Add(items):
            return Add(tuple(map(change, items)))
        case Multiply(items):
            return Multiply(tuple(map(change, items)))
        case Tuple(items):
            return Tuple(tuple(map(change, items)))
        case Bag(items):
            return Bag(tuple(map(change, items)))
        case Listing(items, separator):
            return Listing(tuple(map(change, items)), separator)
        case Relation(operators, sides):
            return Relation(operators, tuple(map(change, sides)))
        case Apply(function, items):
            return Apply(function, tuple(map(change, items)))
        case Divide(left, right):
            return Divide(change(left), change(right))
        case Power(left, right):
            return Power(change(left), change(right))
        case Negate(operand):
            return Negate(change(operand))
        case Matrix(rows):
            return Matrix(tuple(tuple(map(change, row)) for row in rows))
        case Derivative(body, variable, order):
            return Derivative(change(body), variable, order)
        case Integral(body, variable, low, high):
            ends = [end if end is None else change(end) for end in (low, high)]
            return Integral(change(body), variable, *ends)
        case Limit(body, variable, point, side):
            return Limit(change(body), variable, change(point), side)
        case Series(kind, body, variable, low, high):
            return Series(kind, change(body), variable, change(low), change(high))
    return node
