# normscan as a command; see docs/install.md.
FROM python:3.11-slim
# What pip is given for PyTorch, such as another index for a build without CUDA.
ARG TORCH="torch==2.13.0"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install $TORCH
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN pip install -c constraints.txt '.[weights]'
# Any user of the machine may run it, also one without a home.
ENV NORMSCAN_CACHE=/tmp/normscan MPLCONFIGDIR=/tmp/matplotlib HOME=/tmp
WORKDIR /work
ENTRYPOINT ["normscan"]
CMD ["--help"]
