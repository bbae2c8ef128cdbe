#!/usr/bin/env bash
# Says in one sentence each what this machine lacks to build Distro.
set -u
missing=0
need() { # command, sentence
	command -v "$1" >/dev/null 2>&1 || { echo "$2" >&2; missing=1; }
}
need node 'Node.js is missing: install version 20 or newer (https://nodejs.org); Distro brings its own Node 24 for the rest.'
need npm 'npm is missing: it comes with Node.js (Debian: apt-get install npm).'
need make 'make is missing (Debian: apt-get install make).'
need g++ 'g++ is missing: the erasure coding library is compiled here (Debian: apt-get install g++).'
need python3 'Python 3 is missing: node-gyp needs it to compile (Debian: apt-get install python3).'
if command -v node >/dev/null 2>&1 && [ "$(node -p 'Number(process.versions.node.split(".")[0]) >= 20')" != true ]; then
	echo "Node.js $(node --version) is too old: install version 20 or newer." >&2
	missing=1
fi
exit $missing
