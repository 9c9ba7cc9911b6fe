"""The widget for an action in words, which several nodes share, and its check."""

from comfy_api.latest import io


def action_input(tooltip: str) -> io.Input:
    return io.String.Input("action", default="open the door", multiline=True, tooltip=tooltip)


def check_action(action: str | None) -> bool | str:
    """For `validate_inputs`; None stands for a connected action, which is known only when the node runs."""
    if action is not None and not action.strip():
        return 'Say in words what happens, such as "open the door".'
    return True
