"""Containers of a Docker engine, on this machine or another."""
