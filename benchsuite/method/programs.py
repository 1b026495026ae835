"""Served networks as programs of torch.export and ONNX, which run without this package, and the model card beside them."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import UserError
from ..record.schema import BITS, RunRecord
from ..text import markdown_text as md
from .registered import methods
from .serving import Served

FORMATS = {"torch": "pt2", "onnx": "onnx"}  # the ending of a file in each format
TOLERANCE = 1e-5  # of a program's logits, relative to the largest one of the served network, if that is above 1


class OneTask(nn.Module):
    """A served network with its task fixed: uint8 images (B, H, W, C) as the data set has them to logits (B, K_task)."""

    def __init__(self, served: Served, task: int) -> None:
        super().__init__()
        self.served, self.task = served, task

    def forward(self, images: Tensor) -> Tensor:
        return self.served(images, self.task)


def exported(served: Served, task: int, format: str) -> tuple[bytes, float]:
    """The network of one task as a file of a format (`FORMATS`), which takes any number of uint8 images (B, H, W, C) as the data
    set has them and gives logits (B, K_task); and the largest error of its logits on random images.

    Raises UserError where a package is missing, or the program does not compute what the served network computes."""
    one = program(OneTask(served, task), served.raw_size(task))
    content, run = to_onnx(one) if format == "onnx" else to_torch(one)
    error = largest_error(run, served, task)
    if not error <= TOLERANCE:
        raise UserError(f"task {task}: as {format} the logits differ by {error:.1e} of the largest one from those served")
    return content, error


@torch.no_grad()
def program(network: nn.Module, size: tuple[int, int, int]) -> ExportedProgram:
    """A network of images of one size (H, W, C), for any number of images and without the weights that it does not read."""
    images, shapes = torch.zeros((2, *size), dtype=torch.uint8), {"images": {0: Dim("batch")}}
    network(images)  # some networks compose their kernels when they first need them
    whole = torch.export.export(network, (images,), dynamic_shapes=shapes, strict=False).module()
    whole.graph.eliminate_dead_code()
    whole.delete_all_unused_submodules()
    whole.recompile()
    made = torch.export.export(whole, (images,), dynamic_shapes=shapes, strict=False)
    for name, tensor in made.constants.items():  # of a view, the file would hold all that it is a view of
        made.constants[name] = tensor.clone()
    for name, tensor in made.state_dict.items():
        made.state_dict[name] = nn.Parameter(tensor.clone()) if isinstance(tensor, nn.Parameter) else tensor.clone()
    return made


def to_torch(one: ExportedProgram) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """A program as a file of `torch.export`, and how that file runs."""
    file = io.BytesIO()
    with warnings.catch_warnings():  # about a tensor that is not contiguous, although its storage is its own
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(one, file)
    content = file.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


def to_onnx(one: ExportedProgram) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """A program as an ONNX file with the input `images` and the output `logits`, and how that file runs."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # PyTorch's exporter imports it, and onnx
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}", "pip install 'benchsuite[export]'") from None
    names = {"input_names": ["images"], "output_names": ["logits"]}
    content = torch.onnx.export(one, dynamo=True, verbose=False, **names).model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content)
    return content, lambda images: torch.tensor(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def largest_error(run: Callable[[Tensor], Tensor], served: Served, task: int) -> float:
    """The largest difference between the logits of a program and of the served network for random images, in batches of two
    sizes, relative to the largest logit if that is above 1."""
    g, errors = torch.Generator().manual_seed(task), []
    for n in (2, 5):
        images = torch.randint(256, (n, *served.raw_size(task)), generator=g, dtype=torch.uint8)
        own = served(images, task)
        errors.append(float((run(images) - own).abs().max()) / max(1.0, float(own.abs().max())))
    return max(errors)


def card(
    record: RunRecord, served: Served, files: Mapping[int, tuple[str, bytes]], errors: Mapping[int, float], form: str | None
) -> str:
    """A model card in Markdown: what the files of each task are for, what they take and give, and how to verify them.

    files: name and content, errors: the result of `largest_error`, both by task. form: of the artifact that they were made from.
    """
    job, made = record.job, record.environment
    same = record.forms.get(form or "")
    correct = same.correct if same else [c or 0 for c in record.correct[-1]]
    size = same.sizes.total if same else record.stored_bytes
    mean = sum(100 * right / task.test for right, task in zip(correct, record.tasks, strict=True)) / len(correct)
    rows = []
    for t, (name, _) in files.items():
        task, info = record.tasks[t], served.tasks[t]
        height, width, channels = served.raw_size(t)
        classes = ", ".join(map(str, task.classes))
        laid_out = ", ".join(filter(None, [f"pad {info['pad']}" if info["pad"] else "", info.get("orientation", "upright")]))
        numbers = (" ".join(f"{x:.4g}" for x in info[which]) for which in ("mean", "std"))
        rows.append(
            f"| `{name}` | {t} | {md(task.name)} | {md(task.dataset)} "
            f"| {classes} | (B, {height}, {width}, {channels}) | {laid_out} | "
            f"{' | '.join(numbers)} | {100 * correct[t] / task.test:.2f} | {task.test} |\n"
        )
    sums = "".join(f"- `{name}`: {hashlib.sha256(content).hexdigest()}\n" for name, content in files.values())
    settings = ", ".join(md(f"{name} = {value}") for name, value in job.settings.items())
    images = "".join(f"- {md(entry.name)}: {entry.digest}{'' if entry.complete else ', incomplete'}\n" for entry in record.data)
    bits = f"Its numbers were rounded to {BITS[form]} bits ({form}). " if form in BITS else ""
    says = " ".join((methods.get(job.method).__doc__ or job.method).strip().splitlines()[:1])
    run = 'torch.export.load("task-0.pt2").module()(images)  # a torch.Tensor'
    if files and next(iter(files.values()))[0].endswith("onnx"):
        run = 'onnxruntime.InferenceSession("task-0.onnx").run(None, {"images": images})  # a numpy.ndarray'
    run = run.replace("task-0", f"task-{next(iter(files))}")
    return f"""# {job.method} on {job.protocol}, tier {job.tier}, seed {job.seed}

Image classification; one file for each task, because the task of an image must be known. The method: {says} {bits}A network of a
benchmark, trained with one seed: it is there to be compared, and nothing is known of it on other images.

## Input and output

`images`: uint8 (B, H, W, C), pixels 0 to 255 as the data set has them, any batch size B. Padding, turning and normalisation,
(pixel / 255 - mean) / std, are part of the file: do not normalise before. `logits`: float32 (B, K); the position of the largest
is the position of the class in the column "Classes", which has the labels of the data set.

```python
logits = {run}
```

| File | Task | Name | Data set | Classes | Images | Laid out | Mean | Std | Accuracy (%) | Test images |
| --- | ---: | --- | --- | --- | --- | --- | --- | --- | ---: | ---: |
{"".join(rows)}
Accuracy: after the last task, on the test images of each. The mean over all {len(record.tasks)} tasks is {mean:.2f} %.

## Size

{size:,} bytes: the file that serves all {len(record.tasks)} tasks, which is what the benchmark counts. The files here have
{sum(len(content) for _, content in files.values()):,} bytes, because each stands alone.

## How to verify

The logits were compared with those of the benchmark's own file on random images when this was written: the largest difference
is {max(errors.values()):.1e} of the largest logit. SHA-256 of the files:

{sums}
They were made from the artifact with SHA-256 {record.artifact_sha256 or "unknown"}, whose record is
`{job.folder.as_posix()}/record.json`. `benchsuite verify` on the folder of that record trains it
again and compares.

- Run: {md(made.date[:10])} on {md(made.machine)}, {md(job.precision)}
- Code: revision {made.source}, torch {made.versions.get("torch", "unknown")}
- Settings: {settings}

SHA-256 of the decoded images and labels:

{images}"""
