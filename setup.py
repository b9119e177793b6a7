"""pyproject.toml has the rest: here stands what it cannot say, that calibImages/ is installed inside the package."""

from setuptools import find_namespace_packages, setup

DATA = {"quant.calibImages": "calibImages", "quant.calibImages.heldout": "calibImages/heldout"}

setup(
    packages=[*find_namespace_packages(include=["quant", "quant.*"], exclude=["*.__pycache__*"]), *DATA],
    package_dir=DATA,
)
