"""Run by test_hosts.py once a process: the first host does what argv[1] says, then the other."""

import sys

from minillm.core import hosts
from minillm.core.errors import UserError


def main() -> None:
    hosts.join_hosts()
    try:
        with hosts.first_host_first("rows packed"):
            if hosts.is_first_host() and sys.argv[1] == "fail":
                raise ValueError("no space left")
            print("inside")
    except (UserError, ValueError) as error:
        print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
