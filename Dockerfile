# ocistern in a container: `docker build -t ocistern .`, then
#   docker run -d -p 127.0.0.1:5000:5000 -v ocistern:/var/cache/ocistern ocistern
# Published on 127.0.0.1 it serves this machine; published on all addresses it serves whoever can reach them.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --features jemalloc --bin ocistern \
    && install -D target/release/ocistern /out/usr/bin/ocistern \
    && install -D LICENSE /out/usr/share/doc/ocistern/LICENSE
# The base image has no shell to make it with, and a new volume takes over owner and mode of what it covers.
RUN install -d -m 0700 /out/var/cache/ocistern

FROM ${BASE_IMAGE}
COPY --from=build /out/usr /usr
# 65532 is "nonroot" in distroless images; as a number it works on any base, and Kubernetes can check runAsNonRoot.
# By the directory around it: of the one that is named only what is in it is copied, without its own mode.
COPY --from=build --chown=65532:65532 /out/var/cache /var/cache
USER 65532:65532
# Loopback would be the container's own. A variable goes before the file: a mounted /etc/ocistern/config.toml decides about
# addresses only with -e OCISTERN_LISTEN= and -e OCISTERN_ADMIN_LISTEN= (empty is unset).
ENV OCISTERN_ROOT=/var/cache/ocistern \
    OCISTERN_LISTEN=0.0.0.0:5000 \
    OCISTERN_ADMIN_LISTEN=0.0.0.0:5080
VOLUME /var/cache/ocistern
EXPOSE 5000 5080
STOPSIGNAL SIGTERM
# Asks the admin socket in the root, and needs nothing of a configuration that the variables above do not say.
HEALTHCHECK --interval=30s --timeout=6s --start-period=30s --retries=3 CMD ["/usr/bin/ocistern", "health"]
ENTRYPOINT ["/usr/bin/ocistern"]
CMD ["serve"]
