"""The command line of hack/release."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from localcluster import packages, tools
from localcluster.console import Console
from localcluster.errors import ClusterError
from localcluster.settings import REPOSITORY, cache_directory
from releasing import build, check, publish
from releasing.errors import ReleaseError
from releasing.layout import Layout
from releasing.signing import PASSWORD, Cosign, Identity, Key, PublicKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from releasing.signing import Signer, Trust

_HELP = """\
Make a release, an OCI image layout with signatures and bills of materials; check one from there; copy it to a
registry. CONTRIBUTING.md has all of it.
"""
_OUTPUT = REPOSITORY / "build" / "release"
# Beside a layout that was signed by a key of its own.
_TRIAL = "trial"
# As registries take it: distribution/reference, reference.go.
_REGISTRY = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*/?")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a failure is one sentence and the end of the log that explains it."""
    options = parser().parse_args(arguments)
    console = Console()
    try:
        options.run(options, console)
    except ClusterError as error:
        console.say(f"hack/release: {error.explained()}")
        return 1
    except KeyboardInterrupt:
        console.say("hack/release: interrupted; run it again.")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of every command."""
    command_line = argparse.ArgumentParser(prog="hack/release", description=_HELP)
    commands = command_line.add_subparsers(required=True)
    made = commands.add_parser("build", help="make the release, and check it")
    made.set_defaults(run=_build)
    made.add_argument("--key", default="", help=f"private key, its password in {PASSWORD}; default: a new one")
    made.add_argument("--keyless", action="store_true", help="sign as the workflow that runs this, without a key")
    made.add_argument("--registry", type=registry, help="where it will be published, for the chart's annotations")
    made.add_argument("--source", default="", help="address of the repository, for the chart's annotations")
    checked = commands.add_parser("check", help="check the release")
    checked.set_defaults(run=_check)
    copied = commands.add_parser("publish", help="check the release, and copy it to a registry")
    copied.set_defaults(run=_publish)
    copied.add_argument("registry", type=registry, help="registry and path, as in registry.example.com/team")
    copied.add_argument("--plain-http", action="store_true", help="for a registry without TLS, as on this machine")
    for command in (checked, copied):
        command.add_argument("--key", type=Path, help="public key (default: cosign.pub of the release)")
    for command in (made, checked, copied):
        command.add_argument("--output", type=Path, default=_OUTPUT, help="folder (default: build/release)")
        command.add_argument("--identity", default="", help="without a key: who signs, the workflow's address")
        command.add_argument("--issuer", default="", help="without a key: who certifies that")
    return command_line


def registry(text: str) -> str:
    """A registry and path; a wrong one is refused before anything is made and signed for it."""
    if not _REGISTRY.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a registry and a path in lower case, as in registry.example.com/team"
        )
    return text


def _build(options: argparse.Namespace, console: Console) -> None:
    given, origin = signer(options, os.environ), build.provenance()
    if not origin.revision:
        if given is not None:
            raise ReleaseError("The tree has changes: a release is made of a commit. Commit or stash them.")
        console.say("The tree has changes: this release names no commit.")
    cosign = _cosign(console)
    # It is made aside: what was there stays until a new one is complete.
    work = options.output.with_name(f".{options.output.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    layout = Layout(folder=work / "layout")
    with tempfile.TemporaryDirectory() as folder:
        signs = given or cosign.generate(Path(folder), secrets.token_urlsafe())
        if isinstance(signs, Key):
            (work / "cosign.pub").write_text(cosign.public_key(signs))
        maker = build.Maker(
            layout=layout,
            origin=origin,
            cosign=cosign,
            signer=signs,
            cache=cache_directory(),
            console=console,
            registry=options.registry or "",
            source=options.source,
        )
        maker.make()
    if given is None:
        (work / _TRIAL).touch()
    trust: Trust = PublicKey(path=work / "cosign.pub") if isinstance(signs, Key) else signs
    lines = check.check(layout, cosign, trust, console)
    shutil.rmtree(options.output, ignore_errors=True)
    work.rename(options.output)
    print("\n".join(lines))
    if given is None:
        console.say("A trial: the key was made for it, and is gone.")


def signer(options: argparse.Namespace, environment: Mapping[str, str]) -> Signer | None:
    """Who signs, or None for a trial with a key of its own."""
    if options.keyless:
        return _identity(options)
    if not options.key:
        return None
    if PASSWORD not in environment:
        raise ReleaseError(f"--key needs the key's password in {PASSWORD}: set it, to nothing if the key has none.")
    return Key(reference=options.key, password=environment[PASSWORD])


def _identity(options: argparse.Namespace) -> Identity:
    if not options.identity or not options.issuer:
        raise ReleaseError("Without a key, --identity and --issuer say who signs: give both.")
    return Identity(subject=options.identity, issuer=options.issuer)


def _check(options: argparse.Namespace, console: Console) -> None:
    packages.ensure(packages.RELEASES, console, cache_directory() / "packages.log")
    key = options.key or options.output / "cosign.pub"
    trust: Trust = _identity(options) if options.identity else PublicKey(path=key)
    print("\n".join(check.check(Layout(folder=options.output / "layout"), _cosign(console), trust, console)))


def _publish(options: argparse.Namespace, console: Console) -> None:
    if (options.output / _TRIAL).exists() and not options.plain_http:
        raise ReleaseError(
            f"The release in {options.output} is a trial, whose key is gone: make one with --key or --keyless, or copy"
            " it to a registry without TLS (--plain-http)."
        )
    _check(options, console)
    oras = tools.ensure(tools.ORAS, cache_directory(), console) / "oras"
    layout = Layout(folder=options.output / "layout")
    print("\n".join(publish.publish(layout, options.registry, oras, console, plain_http=options.plain_http)))


def _cosign(console: Console) -> Cosign:
    cache = cache_directory()
    program, log = tools.ensure(tools.COSIGN, cache, console) / "cosign", cache / "cosign.log"
    log.unlink(missing_ok=True)
    return Cosign(program=program, log=log)
