# The operator's image: slim, not root, no torch. Docker, Podman and Buildah build it alike from the repository's root:
#   docker build --tag lora-operator .
# A pip.conf of yours is used, and never stored, with: --secret id=pip.conf,src=/etc/pip.conf
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS dependencies
COPY requirements/operator.txt /tmp/requirements.txt
# pip has no use after this stage, and it is a quarter of what it installs here.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --disable-pip-version-check --requirement /tmp/requirements.txt \
    && /opt/venv/bin/pip uninstall --yes --quiet pip setuptools

FROM ${BASE_IMAGE}
COPY --from=dependencies /opt/venv /opt/venv
COPY operator/lora_operator /app/lora_operator
# Of the trainer only what both sides share; it needs nothing but the standard library.
COPY trainer_image/lora_trainer/__init__.py /app/lora_trainer/__init__.py
COPY trainer_image/lora_trainer/spec /app/lora_trainer/spec
COPY trainer_image/lora_trainer/plan /app/lora_trainer/plan
# Compiled here, since nothing can be written at run time; unchecked, since nothing changes either. The command is for
# kubectl exec: lora-operator explain NAMESPACE/NAME.
RUN /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app \
    && echo 'lora:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'lora:x:10001:' >> /etc/group \
    && printf '#!/bin/sh\nexec python -m lora_operator "$@"\n' > /usr/local/bin/lora-operator \
    && chmod 755 /usr/local/bin/lora-operator
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /
USER 10001:10001
ENTRYPOINT ["python", "-m", "lora_operator"]
