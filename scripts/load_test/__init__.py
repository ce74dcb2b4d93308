"""Load on an OpenAI-style server, and what its clients see. scripts/load.py and scripts/soak.py are the commands."""
