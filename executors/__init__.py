"""Where and how a plan runs. Light to import; knows nothing of experiments."""
