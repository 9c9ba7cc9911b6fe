"""The web page: imagine, verify, name and roll out in a browser. Needs the extra `space`.

`bwm space` serves it on this machine and `hub_cards/space/app.py` on the Hub; nothing else imports this package.
"""

from bwm_pipelines.space.serve import serve

__all__ = ["serve"]
