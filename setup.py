"""Compile the modules that have a .pxd beside them; where no compiler is found they stay plain Python, and `select` takes longer."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# Plain Python and compiled code shall give the same bits: no operation may be fused with the next.
EXACT = ["-O2", "-ffp-contract=off"]

modules = sorted(file.with_suffix("") for package in ("bandit", "serving") for file in Path(package).rglob("*.pxd"))
extensions = [Extension(".".join(name.parts), [f"{name}.py"], extra_compile_args=EXACT, optional=True) for name in modules]
# Types are those of the .pxd alone; no index counts from the end; division by zero is infinite, as NumPy's numbers have it.
DIRECTIVES = {"annotation_typing": False, "wraparound": False, "cdivision": True}

setup(ext_modules=cythonize(extensions, build_dir="build", language_level=3, compiler_directives=DIRECTIVES))
