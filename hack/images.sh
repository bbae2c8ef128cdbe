#!/usr/bin/env bash
# Builds the image of every role, with a Docker engine where one answers, else with buildah:
# BASE=localhost/node:24 IMAGE=localhost/distro:dev hack/images.sh [more build flags...]
set -euo pipefail
cd "$(dirname "$0")/.."
image=${IMAGE:-localhost/distro:dev}
flags=(--tag "$image" ${BASE:+--build-arg "BASE=$BASE"} "$@")
if docker info >/dev/null 2>&1; then
	docker build "${flags[@]}" .
elif command -v buildah >/dev/null; then
	# npm in the build trusts the authorities that this machine trusts, and compiles against its Node headers where the
	# base has none.
	npmrc=$(mktemp)
	trap 'rm -f "$npmrc"' EXIT
	authorities=/etc/ssl/certs/ca-certificates.crt
	if [ -e "$authorities" ]; then
		echo "cafile=$authorities" >>"$npmrc"
		flags+=(--volume "$authorities:$authorities:ro")
	fi
	for node in $(type -ap node); do
		headers=$(dirname "$(readlink -f "$node")")/../include/node
		[ -e "$headers/node.h" ] || continue
		echo 'nodedir=/opt/node' >>"$npmrc"
		flags+=(--volume "$(readlink -f "$headers"):/opt/node/include/node:ro")
		break
	done
	flags+=(--volume "$npmrc:/usr/local/etc/npmrc:ro")
	${BUILDAH:-buildah} build --isolation "${BUILDAH_ISOLATION:-chroot}" --network host --layers "${flags[@]}" .
else
	echo 'To build the image, a Docker engine or buildah is needed (Debian: apt-get install buildah).' >&2
	exit 1
fi
echo "Built $image"
