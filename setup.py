"""Packages: those of `hf_era`, and the folder `recipes`, which lies beside it in a checkout and inside it once installed."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["hf_era*"]), "hf_era.recipes"], package_dir={"hf_era.recipes": "recipes"})
