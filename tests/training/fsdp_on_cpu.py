"""`training.fit` with the FSDP that `accelerate launch` was configured for, on CPUs too, where accelerate falls back to DDP."""

import runpy

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

initialise = AcceleratorState.__init__


def initialise_sharded(self, *args, fsdp_plugin=None, **kwargs) -> None:
    initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    self.distributed_type = DistributedType.FSDP
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)


if __name__ == "__main__":
    AcceleratorState.__init__ = initialise_sharded
    runpy.run_module("training.fit", run_name="__main__")
