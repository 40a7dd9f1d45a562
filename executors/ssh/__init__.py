"""One verified SSH connection a host, on paramiko. executors.tunnel is its front."""
