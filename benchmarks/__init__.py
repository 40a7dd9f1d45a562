"""What launching costs, beside this project's peers. Not part of what is installed."""
