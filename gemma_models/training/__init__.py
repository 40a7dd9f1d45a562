import gemma_models.megatron  # noqa: F401  # before anything imports Megatron itself
