"""`python -m tasks`: the command line, also under `accelerate launch … -m tasks`."""

from tasks.cli import app

if __name__ == "__main__":
    app(prog_name="reprogram")
