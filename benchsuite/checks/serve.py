"""Logits from exported artifacts, in a separate process that cannot train (`benchsuite.checks.contract`).

It reads order.json in its working folder, which holds the names of method files and artifacts, and images. It writes answers.pt:
for each artifact the logits of every task, or a sentence that says why there are none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..errors import one_line

TRAINING = ("benchsuite.training.strategy", "benchsuite.training.runner", "benchsuite.training.stream")


def main() -> None:
    sys.modules.update(dict.fromkeys(TRAINING))  # type: ignore[arg-type]  # None: importing one of them fails
    from ..method.registered import methods  # only now: the modules above must be missing when methods are imported
    from ..method.serving import load
    from ..training.device import configure_process

    configure_process("cpu", threads=1)
    order = json.loads(Path("order.json").read_text())
    images = torch.tensor(order["images"], dtype=torch.uint8)
    for file in order["files"]:
        methods.load_file(Path(file))
    answers: list[list[Tensor] | str] = []
    for path in order["artifacts"]:
        try:
            network = load(path)
            answers.append([network(images, t) for t in range(len(network.tasks))])
        except Exception as error:
            answers.append(one_line(error))
    torch.save(answers, "answers.pt")


if __name__ == "__main__":
    main()
