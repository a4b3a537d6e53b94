# The image that WIPP runs: docker build -t bioio-tk:0.1.0 .
# First everything is installed into one folder, then only that goes into the image that is kept.
FROM python:3.12-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
# the java extra brings a Java and a Bio-Formats, so that nothing is downloaded at run time
RUN python -m venv /opt/bioio-tk \
    && /opt/bioio-tk/bin/pip install --no-cache-dir ".[java]"

FROM python:3.12-slim
COPY --from=build /opt/bioio-tk /opt/bioio-tk
RUN useradd --create-home --uid 1000 bioio
ENV PATH=/opt/bioio-tk/bin:$PATH \
    BIOIO_TK_CACHE=/tmp/bioio-tk \
    POLUS_IMG_EXT=.ome.tif \
    POLUS_LOG=INFO
USER bioio
WORKDIR /data
ENTRYPOINT ["bioio-tk", "wipp"]
CMD ["--help"]
