# normscan as a command; see docs/install.md.
FROM node:22-slim AS page
WORKDIR /src/web
COPY web ./
RUN npm ci --no-audit --no-fund --ignore-scripts && npm run build

FROM python:3.11-slim
# What pip is given for PyTorch, such as another index for a build without CUDA.
ARG TORCH="torch==2.13.0"
# What comes with normscan: weights,serve for the node.
ARG EXTRAS="weights"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install $TORCH
WORKDIR /src
COPY pyproject.toml constraints.txt hatch_build.py README.md LICENSE ./
COPY src ./src
COPY --from=page /src/src/normscan/viewer/page ./src/normscan/viewer/page
RUN pip install -c constraints.txt ".[$EXTRAS]"
# Any user of the machine may run it, also one without a home.
ENV NORMSCAN_CACHE=/tmp/normscan MPLCONFIGDIR=/tmp/matplotlib HOME=/tmp
WORKDIR /work
ENTRYPOINT ["normscan"]
CMD ["--help"]
