"""What trainers and nodes say, secrets among it, which nobody is to repeat."""

SECRET = "hf_" + "Zq7" * 9
PASSWORD = "s3cr3t" * 4
TALK = (
    "",
    f"Traceback (most recent call last):\nOSError: token={SECRET} was refused",
    f"cannot reach https://user:{PASSWORD}@mirror.example/models",
    f"the Hub does not know {SECRET}",
    f"503 from the Hub with Authorization: Bearer {SECRET}",
)
