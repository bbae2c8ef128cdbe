#!/usr/bin/env bash
# Starts every service of compose.yaml from the built image and stores a file through them (hack/check-image.ts): with a
# Docker engine where one answers, else as root in namespaces of its own, on the image's files as buildah mounts them.
set -euo pipefail
cd "$(dirname "$0")/.."
export IMAGE=${IMAGE:-localhost/distro:dev}
if docker info >/dev/null 2>&1; then exec node hack/check-image.ts docker; fi

for tool in buildah unshare setpriv nsenter ip; do
	command -v "$tool" >/dev/null && continue
	echo "To check the image without a Docker engine, $tool is needed (Debian: apt-get install buildah util-linux iproute2)." >&2
	exit 1
done
if [ "$(id -u)" != 0 ]; then
	echo 'To check the image without a Docker engine, run this as root: it makes namespaces.' >&2
	exit 1
fi
# Whatever is mounted and started in there goes with it.
if [ -z "${IN_NAMESPACES:-}" ]; then
	IN_NAMESPACES=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0"
fi
buildah=${BUILDAH:-buildah}
container=$($buildah from --pull-never "$IMAGE")
trap '$buildah rm "$container" >/dev/null' EXIT
$buildah inspect "$container" | node hack/check-image.ts "$($buildah mount "$container")"
