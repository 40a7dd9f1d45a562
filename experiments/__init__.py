"""Named experiments: what was asked, what ran, what happened. Light to import."""
