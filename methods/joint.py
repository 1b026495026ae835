"""Joint training: the upper reference, without a sequence of tasks."""

from benchsuite.method import Method, register
from benchsuite.method.replay import mixed_batches
from benchsuite.protocol import Recipe


@register
class Joint(Method):
    """Joint: trains one network on all tasks at once, with a head for each; the upper reference.

    L = mean over a mini-batch, drawn from all tasks, of CE under the head of each image's task. Training draws as many images
    as the sequence would, and equally many from each task, whatever its size. Only the last row of the accuracy matrix exists,
    so backward transfer is not defined.
    """

    label = "Joint"
    family = "reference"
    marker = "D"
    trains_jointly = True

    def unsupported_reason(self, recipe: Recipe) -> str | None:
        return mixed_batches(recipe)
