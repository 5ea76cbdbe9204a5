"""Bills of materials: every package of Debian and of Python, with its exact version, and what one lacks is named."""

import io
import json
import tarfile
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cyclonedx.model.component import ComponentType
from packageurl import PackageURL
from referencing import Registry, Resource
from tests.unit.releases import LOWER, SITE, UPPER, image_in

from lora_trainer.spec.release import RELEASE
from releasing import artifacts, check, contents, sbom
from releasing.layout import Descriptor

REPOSITORY = Path(__file__).parents[2]


def bill_of(packages: list[PackageURL], kind: ComponentType = ComponentType.CONTAINER) -> dict[str, Any]:
    """The document, read back."""
    content: dict[str, Any] = json.loads(sbom.document("lora-trainer", RELEASE, kind, packages))
    return content


@pytest.fixture(name="image")
def of_two_layers(tmp_path: Path) -> contents.Contents:
    """What an image of two layers has."""
    return contents.read(*image_in(tmp_path / "l", LOWER, UPPER))


def test_packages_have_their_exact_versions(image: contents.Contents) -> None:
    """And the source package, where Debian's differs: what a security tracker goes by. Removed ones are not listed."""
    assert [str(package) for package in sbom.recorded_packages(image.records)] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u13?arch=amd64&distro=debian-12&upstream=glibc",
        "pkg:deb/debian/libpam0g@1.5.2-6%2Bb1?arch=amd64&distro=debian-12&upstream=pam%401.5.2-6",
        "pkg:pypi/torch@2.15.0",
    ]


def test_a_document_is_cyclonedx_and_repeatable(image: contents.Contents) -> None:
    """By the schema of CycloneDX 1.6, which its library brings."""
    packages = sbom.recorded_packages(image.records)
    bill = bill_of(packages)
    folder = files("cyclonedx.schema._res")
    schemas = {name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text()) for name in ("spdx", "jsf-0.82")}
    schema = json.loads((folder / "bom-1.6.SNAPSHOT.schema.json").read_text())
    registry: Registry[Any] = Registry().with_resources(
        (f"{schema['$id'].rpartition('/')[0]}/{name}.SNAPSHOT.schema.json", Resource.from_contents(content))
        for name, content in schemas.items()
    )
    jsonschema.Draft7Validator(schema, registry=registry).validate(bill)
    assert bill["metadata"]["component"]["name"] == "lora-trainer"
    assert {one["name"]: one["version"] for one in bill["components"]} == {
        "libc6": "2.36-9+deb12u13",
        "libpam0g": "1.5.2-6+b1",
        "torch": "2.15.0",
    }
    again = bill_of(packages)
    assert {**again, "metadata": 0} == {**bill, "metadata": 0}


def test_an_image_is_covered_by_its_own_bill(image: contents.Contents) -> None:
    """Every list of dpkg and every .dist-info."""
    assert list(check.image_problems(image.paths, bill_of(sbom.recorded_packages(image.records)))) == []


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        pytest.param("var/lib/dpkg/info/zlib1g:amd64.list", "Debian's package zlib1g", id="debian"),
        pytest.param("var/lib/dpkg/info/base-files.list", "Debian's package base-files", id="all architectures"),
        pytest.param(f"{SITE}/torch-2.14.1.dist-info/WHEEL", "Python's package torch 2.14.1", id="another version"),
        pytest.param(f"{SITE}/a/_vendor/b_c-1.dist-info/RECORD", "Python's package b_c 1", id="vendored"),
    ],
)
def test_what_a_bill_lacks_is_named(image: contents.Contents, path: str, missing: str) -> None:
    """By the names of files, which no bill is made of."""
    bill = bill_of(sbom.recorded_packages(image.records))
    assert list(check.image_problems(image.paths | {path}, bill)) == [f"its bill of materials lacks {missing}"]


def test_names_of_python_are_compared_as_pypi_does(image: contents.Contents) -> None:
    """A folder has ruamel_yaml where METADATA has ruamel.yaml."""
    bill = bill_of([*sbom.recorded_packages(image.records), PackageURL("pypi", None, "Ruamel.yaml", "1")])
    assert sbom.uncovered(bill, {f"{SITE}/ruamel_yaml-1.dist-info/RECORD"}) == set()


def test_an_image_without_debians_packages_is_a_problem() -> None:
    """An empty image would be covered by an empty bill."""
    assert list(check.image_problems(set(), bill_of([]))) == ["its bill of materials has no package of Debian"]


def test_the_clients_bill_has_what_is_pinned() -> None:
    """requirements/client.txt, line by line."""
    text = (REPOSITORY / "requirements" / "client.txt").read_text()
    pins = list(sbom.pinned_packages(text))
    assert len(pins) == text.count("==") > 5
    assert {package.name for package in pins} >= {"kubernetes", "rich", "typer", "pyyaml"}


def chart_package(*names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return content.getvalue()


IMAGES = {
    image.repository: Descriptor(media_type="m", digest=f"sha256:{number:064x}", size=1)
    for number, image in enumerate(artifacts.IMAGES)
}
CHART_FILE = f"{artifacts.CHART}-{RELEASE}.tgz"


@pytest.mark.parametrize(
    ("name", "member", "images", "problems"),
    [
        pytest.param(CHART_FILE, "Chart.yaml", IMAGES, [], id="as it is"),
        pytest.param("c-0.tgz", "Chart.yaml", IMAGES, ["the package is c-0.tgz"], id="another release"),
        pytest.param(CHART_FILE, "values.yaml", IMAGES, ["the package has no Chart.yaml"], id="no chart"),
        pytest.param(
            CHART_FILE,
            "Chart.yaml",
            dict.fromkeys(IMAGES, IMAGES["lora-operator"]),
            ["its bill of materials has other images than the release"],
            id="other images",
        ),
    ],
)
def test_a_chart_is_for_the_images_beside_it(
    name: str, member: str, images: dict[str, Descriptor], problems: list[str]
) -> None:
    """By their digests."""
    urls = artifacts.chart_components(IMAGES)
    bill = bill_of([PackageURL.from_string(url) for url in urls], ComponentType.APPLICATION)
    package = chart_package(f"{artifacts.CHART}/{member}")
    assert list(check.chart_problems({name: package}, bill, images)) == problems


def wheel(*commands: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        lines = ["[console_scripts]", *(f"{command} = lora_client.__main__:main" for command in commands)]
        archive.writestr("lora-1.dist-info/entry_points.txt", "\n".join(lines))
    return content.getvalue()


@pytest.mark.parametrize(
    ("release", "commands", "pins", "problem"),
    [
        pytest.param(RELEASE, ("lora", "kubectl-lora"), "rich==15\n", "", id="as it is"),
        pytest.param(RELEASE, ("lora",), "rich==15\n", "has no command kubectl-lora", id="a command less"),
        pytest.param(
            "9.9", ("lora", "kubectl-lora"), "rich==15\n", f"is not of release {RELEASE}", id="another release"
        ),
        pytest.param(RELEASE, ("lora", "kubectl-lora"), "rich==16\n", "bill of materials and p.txt differ", id="pins"),
    ],
)
def test_a_client_has_its_commands_and_its_pins(
    release: str, commands: tuple[str, ...], pins: str, problem: str
) -> None:
    """`kubectl lora` is a file kubectl-lora on the path."""
    bill = bill_of([PackageURL("pypi", None, "rich", "15")], ComponentType.APPLICATION)
    layers = {f"w-{release}-py3-none-any.whl": wheel(*commands), "p.txt": pins.encode()}
    found = list(check.client_problems(layers, bill))
    assert len(found) == bool(problem)
    assert all(problem in one for one in found)
