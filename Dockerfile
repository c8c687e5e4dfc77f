# The `omni2vec` command in a container. The ordinary torch wheels carry CUDA: a GPU needs only the driver on the host
# and the NVIDIA container toolkit.
#
#   docker build -t omni2vec .
#   docker run --rm -v "$PWD/runs:/home/omni/runs" omni2vec quickstart
#   docker run --rm --gpus all --ipc=host -v "$PWD:/home/omni/project" -w /home/omni/project omni2vec run my_recipe.py
#
# --ipc=host, or a large --shm-size, because data workers hand over chunks in shared memory.
# EXTRAS chooses optional parts: docker build --build-arg EXTRAS=audio,video,eval -t omni2vec .

FROM python:3.12-slim

ARG EXTRAS=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /opt/omni2vec
COPY . .
RUN pip install ".${EXTRAS:+[$EXTRAS]}"

RUN useradd --create-home omni
USER omni
WORKDIR /home/omni
# A mounted folder keeps its owner: with another user id than 1000, add --user "$(id -u):$(id -g)".
ENTRYPOINT ["omni2vec"]
CMD ["--help"]
