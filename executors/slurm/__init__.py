"""A Slurm cluster, through a tunnel to one of its login nodes."""
