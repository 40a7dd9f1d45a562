"""Kernels in Triton, for what is dear and no library has: imported where a GPU computes, with `Trainer.fusion`."""
