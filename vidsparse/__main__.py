"""``python -m vidsparse`` is the command ``vidsparse``."""

from vidsparse.cli import main

if __name__ == "__main__":
    main()
