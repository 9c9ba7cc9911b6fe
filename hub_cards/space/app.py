"""The Space. Its page is `bwm_pipelines.space`, which lies beside this file there; `bwm space` serves the same one.

`CHECKPOINT`, a variable in the Space's settings, names another checkpoint than the playroom: the id of a repository.
"""

import os

from bwm_pipelines.space import serve

serve(os.environ.get("CHECKPOINT"))
