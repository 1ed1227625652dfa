"""The parts of a build that pyproject.toml cannot say."""

from setuptools import setup
from setuptools.command.build_py import build_py

DATA_ONLY = ("attriboard.suites", "attriboard.reference")


class WithoutPrograms(build_py):
    """Leaves the programs beside the suites, in benchmarks/, out of the wheel."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if package not in DATA_ONLY or module[1] == "__init__"]


setup(cmdclass={"build_py": WithoutPrograms})
