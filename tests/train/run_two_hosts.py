"""Run by test_two_hosts.py once a process: a training on the rows in argv[1], into argv[2]."""

import sys
from dataclasses import replace

from minillm.core import hosts
from minillm.core.sharding import MeshConfig
from minillm.data.tokenizer import BPETokenizer
from minillm.stages.training import RunConfig, run_training
from minillm.train.loop import LoopConfig
from tests.stages.tiny import MODEL


def main() -> None:
    work, output, together = sys.argv[1:]
    if together == "together":
        hosts.join_hosts()
    size = BPETokenizer.load(work).vocab_size
    made = run_training(
        output,
        replace(MODEL, vocab_size=size),
        RunConfig(
            loop=LoopConfig(steps=4, log_every=1, checkpoint_every=2),
            batch_size=4,
            mesh=MeshConfig(data=-1, fsdp=2 if together == "together" else 1),
        ),
        rows=f"{work}/rows",
        tokenizer=f"{work}/tokenizer.model",
    )
    print(made.counts["train_tokens"])


if __name__ == "__main__":
    main()
