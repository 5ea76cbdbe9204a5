"""Foreign text and numbers, made fit for a status."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_operator.model import wording
from lora_operator.model.wording import (
    block_of,
    byte_size,
    decimal,
    duration,
    instant,
    last_line,
    masked,
    parse_instant,
    sentence,
)

SECRETS = [
    "HTTP 401 for hf_AbCdEfGhIjKlMnOpQrStUvWxYz123456",
    "key AKIAIOSFODNN7EXAMPLE is unknown",
    "Authorization: Bearer eyJhbGciOi.JIUzI1NiIs-InR5",
    "cannot reach https://user:hunter2hunter2@hub.example/api",
    "cannot reach http://user:p@hunter2@proxy.example",
    "cannot reach http://user:p/hunter2@proxy.example",
    "cannot reach http://user:p@ss/hunter2@proxy.example",
    f"cannot reach http://user:{300 * 'x'}hunter2@proxy.example",
    "AWS_SECRET_ACCESS_KEY wJalrXUtnFEMI2 is wrong",
    "Authorization: Token hunter2hunter2",
    "cannot reach http://user:hunter2@opensesame@proxy:3128",
    "cannot reach http://user:opensesame/hunter2@proxy:3128",
    "cannot reach https://hunter2hunter2@hub.example/api",
    "cannot reach http://user:8080hunter2/x@proxy",
    "AWS_SECRET_ACCESS_KEY wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "Authorization: Token abcdef0123456789abcdef",
    "'authorization': 'token abcdef0123456789abcdef'",
    "HF_TOKEN=abcdef123456 is set",
    "aws_secret_access_key: wJalrXUtnFEMI",
    'password="opensesame"',
    '{"auths":{"hub.example":{"auth":"dXNlcjpodW50ZXIy"}}}',
    r"cannot parse {\"auth\": \"dXNlcjpodW50ZXIy\"}",
    ".dockerconfigjson: eyJhdXRocyI6eyJodWIuZXhhbXBsZSI6e319",
    "403 for https://b.example/k?X-Amz-Algorithm=AWS4&X-Amz-Signature=fe5f80f77d5fa3beca038a248ff027d0445342fe2855ddc",
    "403 for https://b.example/k?X-Amz-Credential=TEMPKEY%2F20260101%2Feu%2Fs3&X-Amz-Date=20260101T000000Z",
    "403 for https://b.example/k?x-amz-security-token=IQoJb3JpZ2luX2VjEXAMPLE&X-Amz-Expires=60",
    "403 for https://b.example/k?AWSAccessKeyId=x&Signature=vjbyPxybdZaNmGa%2ByT272YEAiv4%3D",
    '{"url": {"X-Amz-Signature": "fe5f80f77d5fa3beca038a248ff027d0445342fe2855ddc"}}',
    r"cannot parse {\"X-Amz-Signature\": \"fe5f80f77d5fa3beca038a248ff027d0445342fe2855ddc\"}",
    "redirect=https%3A%2F%2Fb.example%2Fk%3FX-Amz-Date%3D1%26X-Amz-Signature%3Dfe5f80f77d5fa3beca038a248ff027d",
    r"{\"url\":\"https://b.example/k?X-Goog-Date=1\u0026X-Goog-Signature=fe5f80f77d5fa3beca038a248ff027d\"}",
    r"https://b.example/k?sv=2024\u0026sp=r\u0026sig=vjbyPxybdZaNmGa%3D",
    "Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/eu, SignedHeaders=host, Signature=fe5f80f77d5fa3beca038",
    "remote: ghp_16C7e42F292c6912E7710c838347Ae178B4a is revoked",
    "remote: gho_16C7e42F292c6912E7710c838347Ae178B4a is revoked",
    "remote: github_pat_11ABCDEFG0abcdefghij_klmnopqrstuvwxyz is revoked",
    "remote: glpat-nB5xQ2uWzT7yKc9dRf3h is revoked",
    "openai said no to sk-proj-T3BlbkFJa1b2c3d4e5f6g7h8",
    "slack said no to xoxb-2464212345-2468212345-AbCdEfGhIjKl",
    "slack said no to xoxp-2464212345-2468212345-AbCdEfGhIjKl",
    r'[{"seen":"env:\nhf_AbCdEfGhIjKl\tsk-proj-T3BlbkFJa1b2c3d4e5f6g7h8"}]',
    r'[{"seen":"\u001bAKIAIOSFODNN7EXAMPLE\reyJhdXRocyI6eyJodWIuZXhhbXBsZSI6e319"}]',
]
PARTS = [
    "AbCdEf",
    "IOSFOD",
    "JIUzI1",
    "hunter2",
    "abcdef",
    "wJalr",
    "opensesame",
    "dXNlcj",
    "eyJhdX",
    "fe5f80",
    "TEMPKEY",
    "IQoJb3",
    "vjbyPx",
    "16C7e4",
    "11ABCD",
    "nB5xQ2",
    "T3Blbk",
    "2464212345",
]
ORDINARY = [
    "asked https://hub.example:443, me@hub.example, and https://hub.example?email=me@hub.example",
    "the model has 32 tokens; see https://hub.example/docs: token budget",
    "failed to fetch anonymous token: unexpected status from GET request to https://hub.example/token: 401 No",
    "the pod asked for auth: none was given",
    "oci://registry:5000/team/x@sha256:0 and hf://org/model@main",
    '{"a":"http://x","b":"me@x"}',
    "AWS_SECRET_ACCESS_KEY is missing; authorization: token expired",
    "authentication required, auth scheme is unknown",
    "0/5 nodes are available: 3 had untolerated taint {node.kubernetes.io/disk-pressure: }",
    "Job sk-lora-support-tone-2f6c81d0-1 was refused",
    "pod xoxo-runner-12345678901234567890 failed",
    "https://bucket.example/key?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=60",
    "the signature = of the manifest differs",
    "hf://acme/tone@0123456 and pvc://claim/a:b@c",
    "oci://registry.example:5000/acme/tone:v1@sha256:0123",
    "docker-pullable://busybox@sha256:0123",
    "http://[fd00::7]:9090/a and see ops@example.org",
    "secret_access_key refers to nothing",
    "its authorization: token expired",
    "assert verify(message, signature=sig, key=k)",
    "rng.normal(mu=0.1, sig=0.5)",
]


@pytest.mark.parametrize("text", SECRETS)
def test_nothing_that_looks_like_a_secret_gets_through(text: str) -> None:
    """A log's last line may hold what a library was given."""
    shown = sentence(text)
    assert "***" in shown
    assert not [part for part in PARTS if part in shown]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    """Words like token in a sentence are no secrets, nor are names that begin like one."""
    assert sentence(text) == text


@pytest.mark.parametrize("filler", ["x ", "a-", "token ", "://", "sk-", " ", "\n", "basic "])
@pytest.mark.parametrize("shape", ["{filler}", "HF_TOKEN=hf_AbCdEfGhIj {filler}", "{filler} ghp_16C7e42F292c6912"])
def test_what_is_read_of_a_text_is_bounded(shape: str, filler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant may write a MiB into a status: no pattern runs over more than a few sentences of it, and those that
    another text begins with were read."""
    read: list[int] = []

    def counted(line: str) -> str:
        read.append(len(line))
        return masked(line)

    monkeypatch.setattr(wording, "masked", counted)
    text = shape.format(filler=filler * (2**20 // len(filler)))
    shown = sentence(text)
    assert last_line(text) is not None
    assert len(shown) <= wording.SENTENCE_LENGTH
    assert max(read, default=0) <= 8 * wording.SENTENCE_LENGTH
    assert not [part for part in PARTS if part in shown]


@pytest.mark.parametrize("secret", ["hf_AbCdEfGhIj", "https://u:AbCdEfGhIj@hub"])
def test_a_secret_that_is_cut_does_not_get_through(secret: str) -> None:
    """What is left of it may look like no secret any more: wherever the text is cut, however much before is masked."""
    for length in range(380, 480):
        assert "AbC" not in sentence(f"hf_{length * 'x'} {secret}{2000 * 'z'}", 60)


def test_the_last_line_of_a_long_log_does_not_begin_within_a_secret() -> None:
    """Of a line that is too long for one look, its end is shown from the next space on."""
    ends = [last_line(f"z hf_AbCdEfGhIj{'y' * 40} " + "z" * length) for length in range(8100, 8300)]
    assert not [end for end in ends if "yyy" in end]
    assert last_line("x" * 9000 + "\nValueError: odd") == "ValueError: odd"


@given(st.text(st.characters(), max_size=40), st.integers(2, 30))
def test_a_sentence_is_one_printable_line_within_its_limit(text: str, limit: int) -> None:
    """Control characters would steer a terminal, and halves of surrogate pairs cannot be written at all."""
    shown = sentence(text + "\ud800\x1b[31m\n", limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert shown.encode()


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("Traceback (most recent call last):\n  File x\nValueError: no such column\n\n", "ValueError: no such column"),
        ("loading\n=======\n   \n", "loading"),
        ("", ""),
        ("\n---\n", ""),
    ],
)
def test_the_last_line_that_says_something_stands_for_a_log(log: str, line: str) -> None:
    """Of a traceback it is the exception."""
    assert last_line(log) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45, "45s"), (200, "3m20s"), (3599, "59m59s"), (3600, "1h0m"), (4350, "1h12m"), (187_200, "2d4h")],
)
def test_a_duration_is_reported_in_its_two_largest_units(seconds: int, text: str) -> None:
    """As people say it."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (2048, "2 KiB"),
        (536_870_912, "512 MiB"),
        (20_079_050_752, "18.7 GiB"),
        (2**63 - 1, "8.0 EiB"),
    ],
)
def test_bytes_are_reported_in_binary_units(count: int, text: str) -> None:
    """As the memory limits of Kubernetes are."""
    assert byte_size(count) == text


@pytest.mark.parametrize(
    "text", [None, 5, "", "yesterday", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:00"]
)
def test_what_is_no_time_is_none(text: object) -> None:
    """1970 is how the definition of the resource says "not yet"."""
    assert parse_instant(text) is None


@pytest.mark.parametrize("text", ["2026-03-01T12:00:00Z", "2026-03-01T14:00:00+02:00", "2026-03-01T12:00:00.000000Z"])
def test_times_are_read_in_every_form_that_kubernetes_writes(text: str) -> None:
    """Seconds, microseconds, other zones."""
    moment = parse_instant(text)
    assert moment == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert instant(moment) == "2026-03-01T12:00:00Z"


def test_a_time_without_a_zone_is_utc() -> None:
    """Kubernetes never writes one, but reading it must not depend on the machine."""
    assert parse_instant("2026-03-01T12:00:00") == datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_fractions_are_strings_of_bounded_length() -> None:
    """Whatever the number."""
    assert [decimal(x, ".4f") for x in (1.5, float("nan"), float("-inf"))] == ["1.5000", "nan", "-inf"]
    assert len(decimal(1e300, ".4f")) == 32


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-05, "0.00001"), (1234567.8, "1234570"), (-2.5e-07, "-0.00000025"), (0.0, "0"), (442.7, "442.7")],
)
def test_fractions_have_no_exponents(value: float, text: str) -> None:
    """People compare them; one that would be too long keeps its exponent, rather than to lose its digits."""
    assert decimal(value, ".6g") == text
    assert float(decimal(1e-300, ".6g")) == 1e-300
    assert float(decimal(1e300, ".6g")) == 1e300


def test_a_block_that_is_no_map_reads_as_empty() -> None:
    """As does a missing one."""
    assert block_of({"progress": []}, "progress") == block_of({}, "progress") == {}


@pytest.mark.parametrize(
    "text", ["basic authentication failed", "bearer authentication required", "Basic training ends"]
)
def test_words_that_only_begin_like_a_header_stay(text: str) -> None:
    """A sentence without its end helps nobody."""
    assert sentence(text) == text


@pytest.mark.parametrize(
    "secret", ["YWxhZGRpbjpvcGVu", "abc.def.ghi", "abcdefg1", "abcdefghijklmnopqrstu", "abcdefgh=="]
)
def test_what_follows_a_header_and_may_be_a_secret_goes(secret: str) -> None:
    """Words have no digits, capitals, dots or padding, and are short."""
    for scheme in ("Bearer", "basic"):
        assert sentence(f"Authorization {scheme} {secret} was refused") == f"Authorization {scheme} *** was refused"
