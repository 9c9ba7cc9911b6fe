"""When two sentences name the same action, and which verb they use."""

from training.playroom.actions import ALL_ACTIONS, fold

_PLAYROOM_VERBS = {action.phrase(): action.verb for action in ALL_ACTIONS}


def plain(action: str, source: str) -> str:
    """A sentence without what does not count: case, outer spaces, final full stop; in the playroom also the paraphrase."""
    return fold(action) if source == "playroom" else " ".join(action.lower().strip().rstrip(".").split())


def verb(action: str, source: str) -> str:
    """The playroom's verb, such as "push left", where the sentence is one of the playroom's; otherwise the first word."""
    words = plain(action, source)
    return (_PLAYROOM_VERBS.get(words) if source == "playroom" else None) or words.partition(" ")[0]
