"Installs semsynth; everything it needs to know stands in settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

settings = ConfigParser(delimiters=["="])
settings.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
project = settings["DEFAULT"]

setup(
    name=project["lib_name"],
    version=project["version"],
    description=project["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=project["author"],
    keywords=project["keywords"],
    url=project["git_url"],
    packages=find_packages(include=["semsynth", "semsynth.*"]),
    package_data={"semsynth": ["configs/*.yaml", "weights/*", "judges/*", "py.typed"]},
    python_requires=f">={project['min_python']}",
    install_requires=project["requirements"].split(),
    extras_require={
        # What the notebooks need beyond the package, for those who do not develop it.
        "course": project["course_requirements"].split(),
        # The Fréchet distance needs the exact Inception of 2015.
        "fid": project["fid_requirements"].split(),
        "dev": project["dev_requirements"].split(),
    },
    entry_points={
        "console_scripts": project["console_scripts"].split(),
        "nbdev": [f"{project['lib_name']}={project['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
