"""The one error class for what the user can mend."""


class UserError(ValueError):
    """Bad input, found before any work starts.

    The message always has the same four parts, so that a reader knows where to look and what
    to type instead. Launch scripts print it on one line, without a traceback, and exit with 2.

    Attributes:
        field: the flag, configuration key, file or record that is wrong.
        got: what stands there.
        wanted: what would be accepted.
        fix: what to do about it.
    """

    def __init__(self, *, field: str, got: object, wanted: object, fix: str) -> None:
        super().__init__(f"{field}: got {got}; wanted {wanted}; fix: {fix}")
        self.field = field
        self.got = got
        self.wanted = wanted
        self.fix = fix

    def __reduce__(self) -> tuple:
        # Keyword-only arguments: without this the error cannot cross a process boundary.
        return _rebuild, (self.field, self.got, self.wanted, self.fix)


def _rebuild(field: str, got: object, wanted: object, fix: str) -> UserError:
    return UserError(field=field, got=got, wanted=wanted, fix=fix)
