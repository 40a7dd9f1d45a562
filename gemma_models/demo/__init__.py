"""The main job as one command: `python -m gemma_models.demo`."""
