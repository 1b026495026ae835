"""Fine-tuning: the lower reference."""

from benchsuite.method import Method, register


@register
class Finetune(Method):
    """Fine-tuning: trains one network on task after task without any protection against forgetting.

    L = CE_t. Each task has its own head; all tasks train the shared backbone. The base class does all of this.
    """

    label = "Fine-tuning"
    family = "reference"
    marker = "v"
