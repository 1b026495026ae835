"""Fine-tuning: the lower reference."""

from benchsuite.method import Method, register


@register
class Finetune(Method):
    """Plain training of one network on task after task; nothing protects what was learnt before.

    L = CE_t. Each task has its own head, the backbone is shared and free. The base class does all of this.
    """

    family = "reference"
