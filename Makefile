# Everything goes through npm scripts, which put the project's own Node (the npm package "node") on the PATH.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export NAME SEED STEPS SECONDS TRACE

.PHONY: help setup build generate check test sim sim-mutants soak run start migrate move restore bench images image-check clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: node_modules/.setup ## Check what the machine needs, and install the packages

node_modules/.setup: package.json package-lock.json hack/check-prerequisites.sh
	@bash hack/check-prerequisites.sh
	npm ci --no-audit --no-fund --loglevel=error
	@touch $@

build: setup ## Install and type-check (sources run as they are, nothing is bundled)
	npm run --silent typecheck

generate: setup ## Make proto/gen anew from proto/
	npm run --silent generate

check: setup ## Types, lint, import rules, generated files up to date
	npm run --silent check

test: build ## Every test; ends with "N passed, N failed"
	@npm run --silent test

sim: setup ## A simulated cluster with faults, many seeds for a minute; SEED=, STEPS=, SECONDS= choose others
	@npm run --silent sim

sim-mutants: setup ## Put bugs in on purpose, one by one: the simulation must find each
	@npm run --silent sim:mutants

soak: build ## The long scenarios in full
	@npm run --silent soak

run: build ## Starts an orchestrator and WORKERS=6 on this machine; METADATA=supabase ORCHESTRATORS=3 for several
	@npm run --silent start

start: setup ## Start a process that went down again: make start NAME=worker-3
	@npm run --silent start:one

migrate: setup ## Apply supabase/migrations to the Postgres that SUPABASE_DB_URL names
	@npm run --silent migrate

move: setup ## Metadata to Supabase or back: make move ARGS="--from sqlite --to supabase"
	@npm run --silent move -- $(ARGS)

restore: setup ## Metadata back from the workers: make restore FROM=snapshot (or disks), DRY=1 only says what would come
	@npm run --silent restore -- --from $(FROM) $(if $(DRY),--dry) $(ARGS)

bench: build ## Measure, and print the table
	@npm run --silent bench -- $(ARGS)

images: ## One image for every role: make images BASE=localhost/node:24
	hack/images.sh

image-check: setup ## Start every service of compose.yaml from that image, and store a file through them
	@npm run --silent image-check

clean: ## Remove what was installed (data stays)
	rm -rf node_modules
