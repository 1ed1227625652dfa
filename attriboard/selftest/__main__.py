"""``python -m attriboard.selftest`` prints docs/selftests.md."""

from .page import page

if __name__ == "__main__":
    print(page(), end="")
