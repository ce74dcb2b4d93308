# CPU image: builds in one stage, runs in another with the shared libraries that the binary needs, as a user
# without rights.
#   docker build -t sluice . && docker run --rm -p 127.0.0.1:8080:8080 sluice
# Another model: mount it and name it, e.g. -v /models/olmoe:/model:ro ... serve --model /model --host 0.0.0.0
FROM debian:12-slim AS build
WORKDIR /src
COPY scripts/install_packages.sh scripts/
RUN scripts/install_packages.sh
COPY CMakeLists.txt CMakePresets.json ./
COPY cmake cmake
COPY kernels kernels
COPY engine engine
COPY server server
COPY config/calibration.txt config/
RUN cmake --preset release -DSLUICE_TESTS=OFF && cmake --build build --target sluice && strip build/sluice

FROM debian:12-slim
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      curl libfmt9 libpcre2-8-0 libprometheus-cpp-core1.0 libspdlog1.10 libsystemd0 libtomlplusplus3 liburing2 libutf8proc2 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin sluice \
 && install -d -o sluice /var/cache/sluice
COPY --from=build /src/build/sluice /usr/bin/sluice
COPY deploy/demo-model /usr/share/sluice/demo-model
# Packs made on first use of a GGUF file or a directory: mount a volume here to keep them.
ENV XDG_CACHE_HOME=/var/cache
USER 10001
EXPOSE 8080
# Answers 200 only when a model is loaded and requests are accepted.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
  CMD ["curl", "-fsS", "http://127.0.0.1:8080/ready"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/sluice"]
CMD ["serve", "--model", "/usr/share/sluice/demo-model", "--host", "0.0.0.0", "--port", "8080"]
