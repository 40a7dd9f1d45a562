"""A thin layer over submitit, for a launch script on a login node."""
