"""Run by test_precompute.py once a process: what `precompute` makes of the folders in argv[1], a
JSON object, in argv[2]."""

import json
import sys
import time

from minillm.core import hosts
from minillm.core.sharding import MeshConfig
from minillm.stages import precompute as stage
from minillm.stages.scoring import Scorer
from tests.stages.precompute_inputs import ROWS_PER_SHARD


def main() -> None:
    folders, output, together, sizes, pause = sys.argv[1:]
    if together == "together":
        hosts.join_hosts()
    score = Scorer.__call__

    def slowly(self, params, rows):
        time.sleep(float(pause))
        return score(self, params, rows)

    Scorer.__call__ = slowly
    made = stage.precompute(
        output,
        stage.PrecomputeConfig(
            candidates=6,
            batch_size=4,
            rows_per_shard=ROWS_PER_SHARD,
            mesh=MeshConfig(**json.loads(sizes)),
        ),
        **json.loads(folders),
    )
    print(made.fingerprint)


if __name__ == "__main__":
    main()
