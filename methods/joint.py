"""Joint training: the upper reference that has no order of tasks."""

from benchsuite.method import Method, register
from benchsuite.method.replay import mixed_batches
from benchsuite.protocol import Recipe


@register
class Joint(Method):
    """One network trained once on the images of all tasks together, each with its own head.

    L = mean over a mini-batch, drawn from all tasks, of CE under the head of each image's task. Every image is seen as often
    as in the sequence. Where tasks differ in size, each task gets the same share of the images drawn.
    Only the last row of the accuracy matrix exists, so backward transfer is not defined.
    """

    family = "reference"
    trains_jointly = True

    def unsupported_reason(self, recipe: Recipe) -> str | None:
        return mixed_batches(recipe)
