# A static binary on nothing: no shell, no package manager, not root, and it needs no writable root filesystem.
ARG GO_VERSION=1.26
FROM golang:${GO_VERSION} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG VERSION=dev
ENV CGO_ENABLED=0
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /out/kube-node-manager ./cmd/kube-node-manager \
    && mkdir -p /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/kube-node-manager /kube-node-manager
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
ENV KNM_DATA_DIR=/data KNM_LISTEN=0.0.0.0:8080 KNM_METRICS_LISTEN=0.0.0.0:9090
VOLUME /data
EXPOSE 8080 9090
ENTRYPOINT ["/kube-node-manager"]
CMD ["serve"]
