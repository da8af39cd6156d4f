"""``python -m vimdeploy`` is the command ``vimdeploy``."""

from vimdeploy.cli.app import main

if __name__ == "__main__":
    main()
